"""Checks of arguments that are numbers or names, made before anything is changed.

Errors name the argument, what was given and what is wanted. For tensors see :mod:`adt_fast._support.tensor_checks`.
"""

from __future__ import annotations

import math

import torch

LONGEST_REASON = 500
"""Characters of another one's message in ours; it may quote a hostile file."""


def check_int(name: str, value: int, lowest: int, end: int) -> None:
    """An int in [lowest, end)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not lowest <= value < end:
        raise ValueError(f"{name} must be in [{lowest}, {end - 1}], got {shown(value)}")


def check_bool(name: str, value: bool) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_ball(epsilon: float, lower: float, upper: float, dtype: torch.dtype = torch.float64) -> None:
    """A radius > 0 that is finite in ``dtype``, and bounds that leave room between them."""
    check_positive("epsilon", epsilon, dtype)
    for name, bound in (("lower", lower), ("upper", upper)):
        _check_number(name, bound)
    if not lower < upper:  # also refuses NaN
        raise ValueError(f"lower must be < upper (either may be infinite), got lower={lower}, upper={upper}")


def check_finite(name: str, value: float, dtype: torch.dtype = torch.float64) -> None:
    """A number that is finite in ``dtype``, the one it is computed with."""
    _check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if abs(value) > torch.finfo(dtype).max:
        raise ValueError(f"{name} must be in the range of {dtype_name(dtype)}, got {value}")


def check_not_negative(name: str, value: float, dtype: torch.dtype = torch.float64) -> None:
    """A number >= 0 that is finite in ``dtype``."""
    check_finite(name, value, dtype)
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value}")


def check_positive(name: str, value: float, dtype: torch.dtype = torch.float64) -> None:
    """A number > 0 that is finite in ``dtype``."""
    check_finite(name, value, dtype)
    if value <= 0:
        raise ValueError(f"{name} must be > 0, got {value}")


def check_fraction(name: str, value: float) -> None:
    """A number between 0 and 1, neither of which it is."""
    check_finite(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of some names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} must be in the range of float64, got {shown(value)}") from None


def shown(value: object) -> str:
    """A value in a message, in some 200 characters at most, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 600:  # Python refuses to write out the longest ones
        return f"an int of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # one of those is in it, or it is nested too deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + " ..."


def dtype_name(dtype: torch.dtype) -> str:
    """Without ``torch.``, for messages."""
    return str(dtype).removeprefix("torch.")
