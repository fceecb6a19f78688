"""docs/options.md and docs/api.md say what the code says, and the code says what each option, name and parameter is."""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from pathlib import Path

import pytest

from adt_fast import cli
from adt_fast.commands import COMMANDS

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.reference import FOLDER, PAGES
from tools.reference.api import attributes, constructor_parameters, members, public_modules, public_objects
from tools.reference.options import command_options

OBJECTS = [one for module in public_modules() for one in public_objects(module) if one.home == module.__name__]
DOCSTRINGS = {one.title: one.docstring for one in OBJECTS}


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


def test_every_public_module_and_name_has_a_docstring():
    assert [module.__name__ for module in public_modules() if not inspect.getdoc(module)] == []
    assert [title for title, docstring in DOCSTRINGS.items() if not docstring] == []
    undocumented = [
        f"{one.title}.{name}"
        for one in OBJECTS if isinstance(one.value, type)
        for name, value in members(one.value).items() if not inspect.getdoc(value)
    ]  # fmt: skip
    assert undocumented == []


def callables():
    """Title, parameters and what describes them, of every public function, constructor and method."""
    for one in OBJECTS:
        module = inspect.getdoc(sys.modules[one.home])
        if inspect.isfunction(one.value):
            yield one.title, list(inspect.signature(one.value).parameters), one.docstring + module
        if isinstance(one.value, type):
            own = "\n".join([with_attributes(one), module])
            yield one.title, [parameter.name for parameter in constructor_parameters(one.value) or ()], own
            for name, value in members(one.value).items():
                function = getattr(value, "__func__", value)
                if inspect.isfunction(function):
                    same = [getattr(base, name).__doc__ or "" for base in one.value.__mro__ if hasattr(base, name)]
                    yield f"{one.title}.{name}", list(inspect.signature(function).parameters), "\n".join([own, *same])


@cache
def with_what_it_names(text):
    """And the docstrings of the public objects that it names as code."""
    names = set(re.findall(r"`~?([\w.]+)`", text))
    return "\n".join([text, *(with_attributes(one) for one in OBJECTS if one.title in names or one.name in names)])


def with_attributes(one):
    """The docstring of a public object, and the names and texts of its attributes."""
    texts = attributes(one.value).items() if isinstance(one.value, type) else ()
    return "\n".join([one.docstring, *(f"{name}: {text}" for name, text in texts)])


def test_every_parameter_is_documented():
    missing = []
    for title, parameters, text in callables():
        module, _, name = title.rpartition(".")
        if module == "adt_fast.reference":  # whose docstring refers to the operators of the same name
            text += DOCSTRINGS.get(f"adt_fast.ops.{name}", "")
        text = with_what_it_names(with_what_it_names(text))
        known = {"self", "cls", *re.findall(r"\w+", text)}
        missing += [f"{title}: {name}" for name in parameters if name not in known]
    assert missing == []
