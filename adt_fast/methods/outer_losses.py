"""Outer losses: what a classifier is trained on, once the maximizer has perturbed the minibatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class OuterResult(NamedTuple):
    """The training loss of a minibatch, and what metrics are made of."""

    loss: Tensor
    """A number, with its graph."""
    logits: Tensor
    """Of the images trained on ``[N, num_classes]``."""
    labels: Tensor
    """Their classes ``[N]``."""


OuterLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], OuterResult]
"""(model, images [B, C, H, W], adversarial images [n, B, C, H, W], labels [B]) -> OuterResult."""


def cross_entropy(model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> OuterResult:
    """Mean cross entropy on the adversarial images: with n samples of a distribution, its expectation (Eq. 8)."""
    labels = labels.repeat(len(adversarial))  # [n * B]
    logits = model(adversarial.flatten(0, 1))
    return OuterResult(F.cross_entropy(logits, labels), logits, labels)
