"""What an attack that stops early has to know of the logits that tell it so."""

from __future__ import annotations

import torch
from torch import Tensor


def require_numbers(logits: Tensor) -> None:
    """Raises FloatingPointError where one of the logits ``[N, num_classes]`` is NaN.

    It would pass for a misclassification.
    """
    if bool(torch.isnan(logits).any()):
        bad = int(torch.isnan(logits).any(1).sum())
        raise FloatingPointError(f"the logits of {bad} of {len(logits)} images are NaN. Check the model's weights")
