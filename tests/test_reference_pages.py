"""docs/options.md and docs/api.md say what the code says, and the code says what each option is."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

from adt_fast import cli
from adt_fast.commands import COMMANDS

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.reference import FOLDER, PAGES
from tools.reference.options import command_options


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_makes_of_it(name):
    fresh = (FOLDER / name).read_text() == PAGES[name]()  # a comparison in the assert would print both pages
    assert fresh, f"docs/{name} is out of date: run python -m tools.reference"


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_those_of_the_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    printed = re.sub(r"[╭╰─│╮╯]", " ", capsys.readouterr().out)
    options = command_options(COMMANDS[name])
    flags = [option.name for option in options if option.name.startswith("--")]
    assert set(flags) == set(re.findall(r"^ {1,3}(--\w[\w-]*)", printed, re.MULTILINE)) - {"--help"}
    printed = squeezed(printed)
    for option in options:
        values = option.values.replace("|", ",") if f"{option.name}{{" in printed else option.values
        shown = f"{option.name}{{{values}}}" if values != option.values else f"{option.name}{values}"
        default = {"on": "True", "off": "False"}.get(option.default, option.default)
        default = f"(default:{default})" if option.name in flags else ""
        several = shown.endswith("NUMBER ...") and f"{option.name}[NUMBER[NUMBER...]]"
        assert squeezed(f"{several or shown}{option.meaning}{default}") in printed


def squeezed(text):
    """Without white space, so that it does not matter where lines end; 0.0 is 0."""
    return re.sub(r"\s", "", re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):g}", text))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_meaning_and_a_default(name):
    assert inspect.getdoc(COMMANDS[name])
    for option in command_options(COMMANDS[name]):
        assert option.meaning, f"{option.name} of {name} has no docstring"
        assert option.default or not option.name.startswith("--"), f"{option.name} of {name} does not say its default"
        assert option.default != "None", f"{option.name} of {name}: None is no default for people; see default_is"


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_the_same_everywhere(name):
    text = (FOLDER / name).read_text()
    assert not re.search(r"\b0x[0-9a-f]{6}|<function|<class|<factory|object at", text)
    assert str(FOLDER.parent) not in text and str(Path.home()) + "/" not in text
