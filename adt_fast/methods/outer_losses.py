"""Outer losses: what a classifier is trained on, once the maximizer has perturbed the minibatch.

Each is called as ``loss(model, images, adversarial, labels)`` with images ``[B, C, H, W]``, adversarial images
``[n, B, C, H, W]``, n samples for each image, and labels ``[B]``. Losses over the n samples are their mean, which
estimates the expectation over the adversarial distribution (paper, Eq. 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._support.checks import check_bool, check_finite, check_not_negative


class OuterResult(NamedTuple):
    """The training loss of a minibatch, and what metrics are made of."""

    loss: Tensor
    """A number, with its graph."""
    logits: Tensor
    """Of the adversarial images ``[n * B, num_classes]``."""
    labels: Tensor
    """Their classes ``[n * B]``."""


OuterLoss = Callable[[nn.Module, Tensor, Tensor, Tensor], OuterResult]
"""(model, images [B, C, H, W], adversarial images [n, B, C, H, W], labels [B]) -> OuterResult."""


@dataclass(frozen=True)
class CrossEntropy:
    """An :data:`OuterLoss`: cross entropy on the adversarial images.

    Args:
        label_smoothing: s in [0, 1): the true class weighs 1 - s, and the others share s, as FeaScatter has it.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_finite("label_smoothing", self.label_smoothing)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def __call__(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> OuterResult:
        labels = labels.repeat(len(adversarial))  # [n * B]
        logits = model(adversarial.flatten(0, 1))
        loss = F.cross_entropy(logits, labels) if not self.label_smoothing else self._smoothed(logits, labels)
        return OuterResult(loss, logits, labels)

    def _smoothed(self, logits: Tensor, labels: Tensor) -> Tensor:
        # PyTorch's own smoothing spreads s over all classes, the true one among them, and takes no s above (K - 1) / K.
        share = self.label_smoothing / max(1, logits.shape[1] - 1)
        log_probabilities = logits.log_softmax(1)
        right = F.nll_loss(log_probabilities, labels)
        return (1 - self.label_smoothing - share) * right - share * log_probabilities.sum(1).mean()


@dataclass(frozen=True)
class HalfClean:
    """An :data:`OuterLoss`: half cross entropy on the images, half on the adversarial ones (Kurakin et al., 2017), plus
    logit pairing.

    Both go through the model in one batch, so that batch norm sees the mixture, as its authors advise.

    Args:
        logit_weight: beta >= 0 of the mean squared difference between the logits of an image and of its adversarial
            form (adversarial logit pairing; Kannan et al., 2018).

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    logit_weight: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("logit_weight", self.logit_weight)

    def __call__(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> OuterResult:
        samples = len(adversarial)
        both = model(torch.cat([images, adversarial.flatten(0, 1)]))
        clean, logits = both.split([len(images), samples * len(images)])
        adversarial_labels = labels.repeat(samples)
        loss = (F.cross_entropy(clean, labels) + F.cross_entropy(logits, adversarial_labels)) / 2
        if self.logit_weight:
            loss = loss + self.logit_weight * F.mse_loss(logits, clean.repeat(samples, 1))
        return OuterResult(loss, logits, adversarial_labels)


@dataclass(frozen=True)
class Trades:
    """An :data:`OuterLoss`: cross entropy on the images, plus ``trades_weight * KL(p(x) || p(x_adv))`` (Zhang et al.,
    2019; Section D.3).

    Gradients flow through both distributions.

    Args:
        trades_weight: 1 / lambda' >= 0; the paper's is 6.
        repeat_natural: send the images through the model a second time for the KL term, as the published code of TRADES
            does, instead of using the logits that are there. The loss is the same, unless the model is random; batch
            norm in train mode counts the images twice in its running statistics.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    trades_weight: float = 6.0
    repeat_natural: bool = False

    def __post_init__(self) -> None:
        check_not_negative("trades_weight", self.trades_weight)
        check_bool("repeat_natural", self.repeat_natural)

    def __call__(self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor) -> OuterResult:
        samples = len(adversarial)
        natural = model(images)
        logits = model(adversarial.flatten(0, 1))
        reference = model(images) if self.repeat_natural else natural
        divergence = F.kl_div(
            logits.log_softmax(1), reference.log_softmax(1).repeat(samples, 1), reduction="batchmean", log_target=True
        )
        loss = F.cross_entropy(natural, labels) + self.trades_weight * divergence
        return OuterResult(loss, logits, labels.repeat(samples))
