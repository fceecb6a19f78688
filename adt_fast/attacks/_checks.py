"""Checks of options that several attacks have."""

from __future__ import annotations

import torch
from torch import Tensor

from .._support.checks import check_positive
from ..losses import PerExampleLoss, RelativeLoss


def check_step_size(step_size: float) -> float:
    """The step size of an attack as a float; raises TypeError or ValueError where it is not a finite number > 0."""
    check_positive("step_size", step_size)
    return float(step_size)


def check_logits(logits: Tensor) -> None:
    """Raises FloatingPointError where one of the logits ``[N, num_classes]`` is NaN, which would pass for success."""
    bad = torch.isnan(logits).any(1)
    if bool(bad.any()):
        raise FloatingPointError(f"the logits of {int(bad.sum())} of {len(logits)} images are NaN. Check the model's "
                                 "weights")


def check_start(loss: PerExampleLoss, is_random: bool) -> None:
    """Raises ValueError where an attack would start at the image on a loss that has no gradient there."""
    if isinstance(loss, RelativeLoss) and not is_random:
        raise ValueError(f"loss must have a gradient at the image, where the attack starts, and {loss} has none there: "
                         "it is relative to the image. PGD with a random start can climb it")
