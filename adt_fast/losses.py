"""Losses of single examples, which attacks raise: (logits, targets) -> one number each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ._checks import check_finite

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, num_classes], labels [N]) -> losses [N]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example, ``[N]``."""
    return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class Margin:
    """Carlini & Wagner's margin loss: the best wrong logit less the right one, at most ``confidence``, ``[N]``.

    Beyond that margin an example is misclassified for sure, and its gradient is 0.

    Args:
        confidence: kappa, in logits, finite; the paper's C&W attack has 50.
    """

    confidence: float = 50.0

    def __post_init__(self) -> None:
        check_finite("confidence", self.confidence)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        right = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        wrong = logits.scatter(1, labels.unsqueeze(1), -float("inf")).amax(1)
        return (wrong - right).clamp(max=self.confidence)


class RelativeLoss(ABC):
    """A loss relative to what the classifier says of the natural image, instead of to the label."""

    @abstractmethod
    def targets(self, natural_logits: Tensor) -> Tensor:
        """What ``[N, ...]`` the logits of perturbed images are to be compared with; outside of autograd."""

    @abstractmethod
    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example ``[N]``."""


@dataclass(frozen=True)
class KLFromNatural(RelativeLoss):
    """``trades_weight * KL(p(x) || p(x_adv))``, the part of the TRADES loss that depends on the perturbation.

    Args:
        trades_weight: 1 / lambda' of the paper's Section D.3, > 0. It matters beside an entropy, not for the sign of a
            gradient.
    """

    trades_weight: float = 6.0

    def __post_init__(self) -> None:
        check_finite("trades_weight", self.trades_weight)
        if self.trades_weight <= 0:
            raise ValueError(f"trades_weight must be > 0, got {self.trades_weight}")

    def targets(self, natural_logits: Tensor) -> Tensor:
        """Log probabilities ``[N, num_classes]``."""
        return natural_logits.log_softmax(1)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        divergence = F.kl_div(logits.log_softmax(1), targets, reduction="none", log_target=True)
        return self.trades_weight * divergence.sum(1)
