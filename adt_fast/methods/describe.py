"""Methods in words, for people: their parts and their options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .method import part_defaults
from .registry import method_spec


def describe_method(name: str) -> str:
    """Some lines of text: name and summary, then each part of the method with its options and their defaults.

    Raises:
        ValueError: if there is no such method.
    """
    spec = method_spec(name)
    rows = {"maximizer": spec.maximizer, "raises": spec.inner_loss, "outer loss": spec.outer_loss, "trains": spec.joint}
    lines = [f"  {role:<10}  {_describe_part(part)}" for role, part in rows.items() if part is not None]
    return "\n".join([f"{name}: {spec.summary}", *lines])


def _describe_part(part: Callable[..., Any]) -> str:
    options = ", ".join(f"{name}={_shown(value)}" for name, value in part_defaults(part).items())
    function = part.func if isinstance(part, partial) else part
    return f"{function.__name__}({options})"


def _shown(value: Any) -> str:
    if value is None:
        return "automatic"
    return f"{value:g}" if isinstance(value, float) else str(value)
