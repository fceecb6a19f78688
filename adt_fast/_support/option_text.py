"""Numbers and options as text, as in ``published,accumulate=false`` and ``pgd-20:restarts=5:step_size=1/255``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from .suggest import unknown_name_message

_WORDS = {"true": True, "false": False, "none": None}


def parse_number(text: str) -> float:
    """A number as people write it: "0.03", "1e-3" or a fraction such as "8/255".

    Raises:
        ValueError: if it is neither, or not finite.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a number such as 0.03 or 8/255, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text!r}")
    return value


def parse_options(kind: str, texts: Iterable[str], known: tuple[str, ...]) -> dict[str, Any]:
    """The options that texts such as "rho_init=-5" give.

    Args:
        kind: what they are options of, for messages.
        texts: ``NAME=VALUE`` each; a value is a number, a fraction, true, false, none, or a word. What looks like a
            number is a word in double quotes.
        known: the names there are.

    Raises:
        ValueError: if a text is not of that form, or its name is unknown or comes twice.
    """
    options = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"{kind} options are written NAME=VALUE, got {text!r}")
        if name not in known:
            raise ValueError(unknown_name_message(f"option of the {kind}", name, known))
        if name in options:
            raise ValueError(f"{name}, an option of the {kind}, must be given once, got {text!r} besides")
        options[name] = _parsed(value)
    return options


def _parsed(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for parse in (json.loads, parse_number):
        try:
            return parse(text)
        except (ValueError, RecursionError):
            continue
    return text
