"""The precision guard: 16-bit gradients are compared with float32 ones as training goes on, and given up where they
are not good enough."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._support.checks import check_int, dtype_name, shown
from .._support.state_checks import check_keys
from .options import EngineOptions


class PrecisionWarning(UserWarning):
    """16-bit gradients were given up for float32 ones."""


class Agreement(NamedTuple):
    """One comparison of the 16-bit with the float32 input gradient, on a few images."""

    minibatch: int
    """Counted from 0."""
    cosine: float
    """Between the two gradients, all images together; NaN where one is zero or not finite."""
    sign_agreement: float
    """Share of the elements whose signs agree."""
    passed: bool


class PrecisionGuard:
    """Decides, minibatch by minibatch, whether 16 bits may be used.

    Args:
        options: when to compare, and what is good enough.
        dtype: the 16-bit type.
    """

    def __init__(self, options: EngineOptions, dtype: torch.dtype) -> None:
        self.options = options
        self.name = dtype_name(dtype)
        self.minibatches = 0
        self.allowed = True
        self.off_because = ""
        self.history: list[Agreement] = []
        self._final = False
        self._warned = False

    @property
    def due(self) -> bool:
        """Whether the next minibatch is one to compare in."""
        return not self._final and self.minibatches % self.options.check_every == 0

    def compare(self, half: Tensor, full: Tensor) -> Agreement:
        """Judges a 16-bit gradient by the float32 one of the same images, and logs it."""
        a, b = half.double().flatten(), full.double().flatten()
        cosine = float(torch.dot(a, b) / (a.norm() * b.norm()))
        sign_agreement = float((a.sign() == b.sign()).double().mean())
        options = self.options
        passed = cosine >= options.min_cosine and sign_agreement >= options.min_sign_agreement  # not with a NaN
        agreement = Agreement(self.minibatches, cosine, sign_agreement, passed)
        self.history.append(agreement)
        if passed:
            self.allowed, self.off_because = True, ""
        else:
            self.fall_back(f"their cosine with float32 is {cosine:.3f} (at least {options.min_cosine:g} is wanted), "
                           f"{sign_agreement:.1%} of their signs agree (at least {options.min_sign_agreement:.0%})")
        return agreement

    def fall_back(self, reason: str, *, final: bool = False) -> None:
        """Float32 from now on: until a comparison passes, or for good. Warns the first time."""
        self.allowed, self.off_because = False, reason
        self._final |= final
        if not self._warned:
            until = "" if self._final else f" until a check, every {self.options.check_every} minibatches, passes"
            warnings.warn(f"{self.name} input gradients are not used: {reason}. Using float32{until}",
                          PrecisionWarning, stacklevel=2)
            self._warned = True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to take and to tell the same decisions: plain values."""
        return {
            "dtype": self.name,
            "minibatches": self.minibatches,
            "allowed": self.allowed,
            "final": self._final,
            "off_because": self.off_because,
            "history": [list(agreement) for agreement in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`. A fall back warns again, once, for another process may not have heard of it.

        Raises:
            ValueError: if it is no such state, or of another type; nothing is changed then.
        """
        check_keys("state of the guard", state, self.state_dict())
        if state["dtype"] != self.name:
            raise ValueError(f"state of the guard must be of {self.name}, got {shown(state['dtype'])}")
        check_int("minibatches in the state of the guard", state["minibatches"], 0, 2**63)
        for name, kind in (("allowed", bool), ("final", bool), ("off_because", str), ("history", (list, tuple))):
            if not isinstance(state[name], kind):
                raise ValueError(f"state of the guard has {name}={shown(state[name])}")
        if not all(map(_is_agreement, state["history"])):
            raise ValueError("state of the guard must have in its history the minibatch, cosine, sign agreement and "
                             "outcome of each comparison")
        self.history = [Agreement(*agreement) for agreement in state["history"]]
        self.minibatches, self.allowed, self._final = state["minibatches"], state["allowed"], state["final"]
        self.off_because = state["off_because"]


def _is_agreement(values: object) -> bool:
    if not isinstance(values, (list, tuple)) or len(values) != len(Agreement._fields):
        return False
    *numbers, passed = values  # the cosine may be NaN
    return isinstance(passed, bool) and all(type(number) in (int, float) for number in numbers)
