"""Accuracy on natural and on adversarial images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._support.arithmetic import float32_arithmetic
from .._support.checks import check_int
from .._support.model_state import check_model, device_of, model_mode
from .._support.state_checks import check_keys
from .batches import Batches, checked_batches, in_batches


@dataclass(frozen=True)
class Accuracy:
    """How many images were classified right."""

    correct: int
    """Those."""
    total: int
    """All."""

    def __float__(self) -> float:
        """The share, from 0 to 1."""
        return self.correct / self.total

    def __str__(self) -> str:
        return f"{float(self):.2%}"


def accuracy_from_state(what: str, state: Any) -> Accuracy:
    """The accuracy that was saved as a dict. Raises TypeError or ValueError where it is none. what: its name in
    messages."""
    check_keys(what, state, ("correct", "total"))
    check_int(f"total of {what}", state["total"], 1, 2**63)
    check_int(f"correct of {what}", state["correct"], 0, state["total"] + 1)
    return Accuracy(**state)


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images are classified right, bool ``[B]``: a NaN is nobody's class, though ``argmax`` takes it for one.

    Args:
        logits: ``[B, num_classes]``; an image is wrong where one of its own is not finite.
        labels: int64 ``[B]``.
    """
    return (logits.argmax(1) == labels) & torch.isfinite(logits).all(1)


def evaluate_accuracy(
    model: nn.Module,
    data: Batches,
    attack: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    batch_size: int = 256,
    progress: str | None = None,
) -> Accuracy:
    """A classifier's accuracy, natural or under an attack; an image whose logits are not all finite counts as wrong.

    The model is in eval mode and in its own precision (autocast is off, and so is TF32) whatever the caller's settings;
    afterwards every module is in the mode it had.

    Args:
        model: images ``[B, C, H, W]`` in [0, 1] -> logits; it normalises inside.
        data: an :class:`adt_fast.data.ImageData`, or batches (images, labels) such as a DataLoader gives; they move to
            the model's device.
        attack: (images, labels) -> adversarial images, such as ``PGD(model, epsilon, steps=20)``; None for natural
            accuracy.
        batch_size: for an ``ImageData``; other data comes in batches of its own.
        progress: label of a progress bar, shown where stderr is a terminal; None for no bar.

    Raises:
        TypeError, ValueError: for bad images or labels, by name, or if there are no data.
    """
    check_model(model)
    check_int("batch_size", batch_size, 1, 2**31)
    if attack is not None and not callable(attack):
        raise TypeError(f"attack must be callable or None, got {type(attack).__name__}")
    device = device_of(model) or torch.device("cpu")
    correct = total = 0
    batches = in_batches(model, data, batch_size)
    bar = tqdm(batches, desc=progress, unit="batch", leave=False, disable=True if progress is None else None)
    with bar, model_mode(model, "eval"), float32_arithmetic(device):
        for images, labels in checked_batches(model, bar):
            adversarial = images if attack is None else attack(images, labels)
            with torch.no_grad():
                correct += int(is_right(model(adversarial), labels).sum())
            total += len(images)
    return Accuracy(correct, total)
