"""docs/options.md: every command and every option, from the dataclasses that the command line is made of."""

from __future__ import annotations

import inspect
import types
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from adt_fast.commands import COMMANDS, Train

from .docstrings import documented_names

_INTRODUCTION = """\
# Commands and options

`adt-fast COMMAND --help` prints what stands here, and `python -m tools.reference` writes this page from the same
source. A NUMBER is written as 0.03, 1e-3 or 8/255; an option without a value is a switch. Images are in [0, 1]: 8 of a
pixel's 255 levels are 8/255. The exit status is 0, 1 where a run failed, 2 for a bad setting (nothing has been
begun), and 130 after Ctrl-C. `--config` and the settings in files are described in [methods.md](methods.md).
"""

_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """An option, or an argument, of a command.

    Args:
        name: as on the command line: ``--batch-size``; of an argument, its place holder.
        values: what it takes: ``INT``, or words with ``|`` between them; empty for a switch.
        default: in words or as a constant; empty where it must be given.
        meaning: its docstring, empty where it has none.
    """

    name: str
    values: str
    default: str
    meaning: str


def command_options(command: type) -> list[Option]:
    """All of a command, in the order of its fields, its arguments first."""
    hints = get_type_hints(command, include_extras=True)
    meanings: dict[str, str] = {}
    for base in reversed(command.__mro__[:-1]):
        meanings |= documented_names(base)
    shown = [field for field in fields(command) if tyro.conf.Suppress not in _markers(hints[field.name])]
    shown.sort(key=lambda field: not _is_argument(hints[field.name]))
    return [_option(field, hints[field.name], meanings.get(field.name, "")) for field in shown]


def options_page() -> str:
    """The text of the page."""
    contents = "\n".join(
        f"- [`adt-fast {name}`](#adt-fast-{name}): {_summary(command)}" for name, command in COMMANDS.items()
    )
    sections = (_section(name, command) for name, command in COMMANDS.items())
    return "\n".join([_INTRODUCTION, contents, "", "\n".join(sections)])


def _section(name: str, command: type) -> str:
    options = command_options(command)
    of_train = set(command_options(Train)) if issubclass(command, Train.__base__) and command is not Train else set()
    own = [option for option in options if option not in of_train]
    lines = [f"## adt-fast {name}", "", _summary(command), ""]
    if of_train:
        same = ", ".join(f"`{option.name}`" for option in options if option in of_train)
        lines += [f"As for [`adt-fast train`](#adt-fast-train): {same}.", ""]
    if own:
        lines += ["| option | value | default | meaning |", "|---|---|---|---|", *map(_row, own), ""]
    elif not options:
        lines += ["It has no options.", ""]
    return "\n".join(lines)


def _row(option: Option) -> str:
    values = " or ".join(f"`{value}`" for value in option.values.split("|")) if option.values else "-"
    cells = (f"`{option.name}`", values, option.default or "to be given", " ".join(option.meaning.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _summary(command: type) -> str:
    return " ".join(inspect.getdoc(command).split())


def _option(field: Field, hint: Any, meaning: str) -> Option:
    if _is_argument(hint):
        return Option(_values(hint), "", "", meaning)
    return Option("--" + field.name.replace("_", "-"), _values(hint), _default(field, hint), meaning)


def _default(field: Field, hint: Any) -> str:
    said = [marker.help_behavior_hint for marker in _markers(hint) if getattr(marker, "help_behavior_hint", None)]
    if said:
        return said[-1].removeprefix("(default: ").removesuffix(")")
    if field.default is MISSING:
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    values = field.default if isinstance(field.default, tuple) else (field.default,)
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _values(hint: Any) -> str:
    metavars = [marker.metavar for marker in _markers(hint) if getattr(marker, "metavar", None)]
    if metavars:
        return metavars[-1]
    kind = _plain(hint)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{_values(get_args(kind)[0])} ..."
    return "" if kind is bool else _METAVARS[kind]


def _is_argument(hint: Any) -> bool:
    return tyro.conf.Positional in _markers(hint)


def _markers(hint: Any) -> tuple[Any, ...]:
    """What an annotation adds to a type: tyro's markers, and how values are read."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _plain(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        (kind,) = (option for option in get_args(hint) if option is not type(None))
        return _plain(kind)
    return hint
