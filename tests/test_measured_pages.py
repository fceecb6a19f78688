"""Measured numbers of README.md and docs/ are those of benchmarks/results/, which say what they were measured on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.measured import MODULES, all_blocks, load, machine_words, page_blocks, pages, results, updated

FILES = sorted({name for module in MODULES for name in module.FILES})
INLINE = "It takes <!-- measured: a.ratio -->1.49<!-- /measured --> times as long.\n"
TABLE = "Before.\n\n<!-- measured: a.table -->\n\n| x |\n|---|\n\n<!-- /measured -->\n\nAfter.\n"


@pytest.fixture(scope="module")
def blocks():
    return all_blocks()


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_a_page_has_the_numbers_that_were_measured(path, blocks):
    text = path.read_text()
    fresh = updated(text, blocks) == text  # a comparison in the assert would print both pages
    assert fresh, f"{path.name} is out of date: run python -m tools.measured"


def test_every_block_is_used(blocks):
    used = {name for path in pages() for name, _, _ in page_blocks(path.read_text())}
    assert set(blocks) - used == set()


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_results_says_what_it_was_measured_on(name):
    words = machine_words(load(name))
    assert "torch 2." in words and "thread" in words and words[-10:-6].isdigit()


@pytest.mark.parametrize("key", ["cpu", "time", "adt_fast.torch", "adt_fast.threads"])
def test_results_of_an_unknown_machine_are_refused(key, tmp_path, monkeypatch):
    document = json.loads((results.RESULTS / FILES[0]).read_text())
    *inside, last = key.split(".")
    machine = document["machine"]
    del (machine[inside[0]] if inside else machine)[last]
    (tmp_path / "some.json").write_text(json.dumps(document))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=f"^some.json does not say what it was measured on: {last}"):
        load("some.json")


def test_blocks_are_filled_in():
    assert updated(INLINE, {"a.ratio": "1.50"}) == INLINE.replace("1.49", "1.50")
    assert updated(INLINE + TABLE, {"a.ratio": "1.49", "a.table": "| x |\n|---|"}) == INLINE + TABLE
    empty = TABLE.replace("\n| x |\n|---|\n\n", "")
    assert updated(empty, {"a.table": "| x |\n|---|"}) == TABLE


@pytest.mark.parametrize(
    "text, message",
    [
        (INLINE.replace("a.ratio", "a.other"), "no block 'a.other'"),
        (INLINE.replace("<!-- /measured -->", ""), "line 1: .* has no end"),
        (INLINE.replace("<!-- measured: a.ratio -->", ""), "line 1: <!-- /measured --> is not where"),
        (INLINE.replace("1.49", "<!-- measured: a.table -->1.49"), "line 1: <!-- measured: a.table --> is not where"),
        (INLINE.replace("a.ratio", "a.table"), "a.table has several lines"),
        (INLINE.replace("takes ", "takes\n"), "line 2: .* must have a line for itself, or words before it"),
        (TABLE.replace("<!-- measured", "Words <!-- measured"), "line 3: .* must have a line for itself, or words"),
    ],
)
def test_a_block_that_cannot_be_filled_in_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        updated(text, {"a.ratio": "1.49", "a.table": "| x |\n|---|"})
