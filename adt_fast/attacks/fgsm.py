"""FGSM (Goodfellow et al., 2015; paper, Eq. 2), and its targeted form (Kurakin et al., 2017)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_choice
from .._layout import preferred_layout, with_layout
from ..input_gradient import GradientSession
from ._checks import check_start
from .base import Attack


class FGSM(Attack):
    """One sign-gradient step of size epsilon from the image.

    Args:
        model, epsilon, **options: see :class:`Attack`.
        target: ``"none"`` (default) raises the loss of the true class; ``"least-likely"`` lowers that of the class
            which the model finds least likely for the image, the targeted attack that AT-FGSM trains on.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        target: Literal["none", "least-likely"] = "none",
        **options: Any,
    ) -> None:
        super().__init__(model, epsilon, **options)
        check_choice("target", target, ("none", "least-likely"))
        check_start(self.input_gradient.loss, is_random=False)
        self.target = target

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``; no noise is drawn."""
        settings = (*self.ball.values(), self.target)
        (x_adv,) = self.input_gradient.run(self._step, images.detach(), labels, key=(type(self), settings))
        return with_layout(x_adv, preferred_layout(images)).unsqueeze(0)

    def _step(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
        x = with_layout(images, gradient.layout(images))
        targeted = self.target == "least-likely"
        targets = gradient.logits(x).argmin(1) if targeted else labels
        step_size = -self.epsilon if targeted else self.epsilon
        return (ops.linf_step_(x.clone(), gradient(x, targets).grad, x, step_size=step_size, **self.ball),)
