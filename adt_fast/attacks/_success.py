"""Whether an attack may stop: which images the classifier still gets right."""

from __future__ import annotations

import torch
from torch import Tensor


def still_right(logits: Tensor, labels: Tensor, *, check_finite: bool) -> Tensor:
    """Which images are classified right, bool ``[N]``, from logits ``[N, num_classes]``.

    Raises FloatingPointError where ``check_finite`` and a logit is NaN, which would pass for a misclassification.
    """
    if check_finite and bool(torch.isnan(logits).any()):
        bad = int(torch.isnan(logits).any(1).sum())
        raise FloatingPointError(f"the logits of {bad} of {len(logits)} images are NaN. Check the model's weights")
    return logits.argmax(1) == labels
