"""Losses of single examples, which attacks raise: (logits, targets) -> one number each.

``logits`` are ``[N, num_classes]``; ``labels``, or ``targets`` where a class is to be reached, are int64 ``[N]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ._support.checks import check_finite, check_positive

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, num_classes], labels [N]) -> losses [N]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example, ``[N]``, with a gradient that does not cancel where the model is sure.

    It is softplus(l - z_y), where l is the logarithm of the sum of exp(z_j) over the other classes. In PyTorch's
    form, log-softmax, the gradient in z_y is p_y - 1: where p_y is nearly 1, what float32 leaves of it is noise, and
    exactly 0 beyond 17 nats. What attacks lose by that is in docs/attacks.md.
    """
    index = labels.unsqueeze(1)
    others = logits.scatter(1, index, -float("inf")).logsumexp(1)
    # Beyond the threshold softplus is linear, which at PyTorch's 20 would be an error of 2e-9.
    return F.softplus(others - logits.gather(1, index).squeeze(1), threshold=50.0)


@dataclass(frozen=True)
class Margin:
    """Carlini & Wagner's margin loss: the best wrong logit less the right one, at most ``confidence``, ``[N]``.

    Beyond that margin an example is misclassified for sure, and its gradient is 0.

    Args:
        confidence: kappa, in logits, finite; the paper's C&W attack has 50.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    confidence: float = 50.0

    def __post_init__(self) -> None:
        check_finite("confidence", self.confidence)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _best_other_less(logits, labels).clamp(max=self.confidence)


def _best_other_less(logits: Tensor, classes: Tensor) -> Tensor:
    """The best logit of another class less that of the given one, ``[N]``."""
    index = classes.unsqueeze(1)
    others = logits.scatter(1, index, -float("inf")).amax(1)
    return others - logits.gather(1, index).squeeze(1)


@dataclass(frozen=True)
class TargetMargin:
    """The target class's logit less the best other one, at most ``confidence``, ``[N]``: C&W's loss towards a class.

    Args:
        confidence: kappa, in logits, finite.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    confidence: float = 50.0

    def __post_init__(self) -> None:
        check_finite("confidence", self.confidence)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -_best_other_less(logits, targets).clamp(min=-self.confidence)


@dataclass(frozen=True)
class Lowered:
    """Minus another loss, so that raising it lowers that one."""

    loss: PerExampleLoss

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -self.loss(logits, labels)


def towards(loss: PerExampleLoss) -> PerExampleLoss:
    """What a targeted attack raises where an untargeted one raises ``loss``.

    Raises:
        ValueError: for a loss relative to the natural image, which knows no class.
    """
    if isinstance(loss, RelativeLoss):
        raise ValueError(f"loss must be of a class for a targeted attack, and {loss} is relative to the natural image")
    return TargetMargin(loss.confidence) if isinstance(loss, Margin) else Lowered(loss)


class RelativeLoss(ABC):
    """A loss relative to what the classifier says of the natural image, instead of to the label."""

    @abstractmethod
    def targets(self, natural_logits: Tensor) -> Tensor:
        """What ``[N, ...]`` the logits of perturbed images are to be compared with; outside of autograd.

        Args:
            natural_logits: ``[N, num_classes]``, of the natural images.
        """

    @abstractmethod
    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example ``[N]``."""


@dataclass(frozen=True)
class KLFromNatural(RelativeLoss):
    """``trades_weight * KL(p(x) || p(x_adv))``, the part of the TRADES loss that depends on the perturbation.

    Args:
        trades_weight: 1 / lambda' of the paper's Section D.3, > 0. It matters beside an entropy, not for the sign of a
            gradient.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    trades_weight: float = 6.0

    def __post_init__(self) -> None:
        check_positive("trades_weight", self.trades_weight)

    def targets(self, natural_logits: Tensor) -> Tensor:
        """Log probabilities ``[N, num_classes]``."""
        return natural_logits.log_softmax(1)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        divergence = F.kl_div(logits.log_softmax(1), targets, reduction="none", log_target=True)
        return self.trades_weight * divergence.sum(1)
