"""How the command line reads values, and what its help says of defaults that are not constants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from .._support.option_text import parse_number


def parse_boolean(text: str) -> bool:
    """True or false, in any case.

    Raises:
        ValueError: if it is neither.
    """
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def _parse_integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected a whole number, got {text!r}") from None


def argument(parse: Callable[[str], Any], metavar: str) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """How the command line reads a value that may also be left out (None)."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def default_is(text: str) -> Any:
    """What help texts say of a default that is not a constant."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


Number = argument(parse_number, "NUMBER")
Integer = argument(_parse_integer, "INT")
Boolean = argument(parse_boolean, "true|false")
Text = argument(str, "NAME")
Folder = argument(Path, "DIR")
