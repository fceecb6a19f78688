"""Measured numbers of README.md and docs/ are those of benchmarks/results/, which say what they were measured on.

Numbers that look measured and stand elsewhere are refused, but for those in NOT_MEASURED.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.measured import MODULES, all_blocks, load, machine_words, page_blocks, pages, results, updated

FILES = sorted({name for module in MODULES for name in module.FILES})
NOT_LOOKED_AT = {
    "options.md": "its numbers are defaults, from the code",
    "methods.md": "its numbers are weights and options of the methods, from the paper and the code",
}

NOT_MEASURED = {
    "api.md": {"timeout (30 minutes, or 10 on GPUs)": "PyTorch's documentation"},
    "attacks.md": {"0 beyond 17 nats": "float32's 24 bits"},
    "performance.md": {
        "5 times its inner arithmetic": "k = 5 samples",
        "ADT-EXP at nearly 5 times AT-PGD": "the paper, Section D.2",
        "holds 99% of the elements to 1e-6": "asserted by the test that is named there",
    },
    "scaling.md": {
        "about 3 times its forward pass": "counted, as the rest of that table",
        "F is 49 times that": "(224 / 32) squared",
        "(2 T k + 3) / 3 times as high: 24 times for T = 7, k = 5, and 5.7 times for PGD-7": "that formula",
        "24 times as slowly": "the same",
        "450 GB/s from GPU to GPU": "data sheet",
        "50 GB/s for each GPU": "data sheet",
        "half of 790 TFLOP/s, which is 80% of the 989": "assumed, and said to be",
    },
    "results.md": {
        "accuracy of 20% from so many has a standard error of 1.8 points": "the binomial distribution",
        "nearly 5 times as long as AT-PGD": "the paper, Section D.2",
    },
    "training.md": {"limit of 30 seconds": "torchrun's", "torchrun kills after 30 seconds": "torchrun's"},
}
"""Of each page what may stand outside of blocks, and where it comes from. Pages without an entry may have nothing."""

UNIT = r"(ms|s|x|%|points?|percent|GB/s|MB/s|TFLOP/s|images/s|times|seconds|minutes|hours|nats)(?![\w/])"
LOOKS_MEASURED = re.compile(rf"(?<![\w.])\d[\d,.]*\s?{UNIT}|\d ?(±|\+-) ?\d|\| *-?\d+\.\d+%? *\|")

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


def looks_measured(text, allowed):
    """What looks like a measured number outside of blocks, code and addresses, with some words around it."""
    for _, start, end in reversed(page_blocks(text)):
        text = text[:start] + text[end:]
    for not_prose in (r"(?ms)^```.*?^```$", r"`[^`]*`", r"<!--.*?-->", r"\]\([^)]*\)"):
        text = re.sub(not_prose, "", text)
    for phrase in allowed:
        text = re.sub(words(phrase), "", text)
    return [text[max(0, found.start() - 40) : found.end() + 20] for found in LOOKS_MEASURED.finditer(text)]


def words(phrase):
    """A pattern for the phrase, wherever its lines end."""
    return r"\s+".join(map(re.escape, phrase.split()))


@pytest.mark.parametrize(
    "path", [path for path in pages() if path.name not in NOT_LOOKED_AT], ids=lambda path: path.name
)
def test_no_number_that_looks_measured_stands_outside_of_blocks(path):
    allowed = NOT_MEASURED.get(path.name, {})
    assert looks_measured(path.read_text(), allowed) == [], "put it in a block, see tools/measured/__init__.py"
    assert [phrase for phrase in allowed if not re.search(words(phrase), path.read_text())] == []


@pytest.mark.parametrize(
    "text",
    ["takes 2.10 s in", "4.31x", "22.4% in", "25.73 +- 0.12", "1.49\ntimes", "by 2.2 points", "| a | 73.6 | b |"],
)
def test_a_number_that_looks_measured_is_found(text):
    assert len(looks_measured(f"It {text}\n", {})) == 1


@pytest.mark.parametrize("text", ["32x32 images", "T = 7, k = 5", "`--limit 5 s`", "WRN-28-10", INLINE])
def test_a_number_of_another_kind_is_left_alone(text):
    assert looks_measured(f"It has {text}\n", {}) == []
