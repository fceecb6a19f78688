"""Learning-rate schedules, as factors of the highest rate that change with every minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ._support.checks import check_choice, check_int

ScheduleName = Literal["one-cycle", "cosine", "step", "constant"]
"""See :func:`create_schedule`."""

_WARM_UP = 0.3  # of a one-cycle run
_FIRST_FACTOR = 0.04  # of a one-cycle run


def _one_cycle(done: float) -> float:
    if done < _WARM_UP:
        return _FIRST_FACTOR + (1 - _FIRST_FACTOR) * done / _WARM_UP
    return (1 - done) / (1 - _WARM_UP)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _constant(done: float) -> float:
    return 1.0


def create_schedule(name: ScheduleName, optimizer: Optimizer, *, epochs: int, batches: int) -> LambdaLR:
    """A scheduler whose ``step()`` is to be called after every minibatch.

    Args:
        name: ``"one-cycle"``: linearly from 4% of the optimizer's rate up to it in the first 30% of the run, and down
            to 0; ``"cosine"``: half a cosine from it down to 0; ``"step"``: a tenth of it for the last 2 epochs of 76,
            as in the paper, rounded to whole epochs after the first; ``"constant"``.
        optimizer: its learning rates are the highest of the run.
        epochs: of the run, >= 1.
        batches: of an epoch, >= 1.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    check_int("epochs", epochs, 1, 2**31)
    check_int("batches", batches, 1, 2**63)
    # The paper drops at the 75th epoch and stops after the 76th (Section C.3).
    drop = max(1, epochs * 74 // 76) / epochs
    factors: dict[str, Callable[[float], float]] = {
        "one-cycle": _one_cycle,
        "cosine": _cosine,
        "step": lambda done: 1.0 if done < drop else 0.1,
        "constant": _constant,
    }
    check_choice("name", name, tuple(factors))
    factor, last = factors[name], epochs * batches
    return LambdaLR(optimizer, lambda step: factor(min(step, last) / last))
