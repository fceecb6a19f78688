"""FGSM (Goodfellow et al., 2015; paper, Eq. 2), and its targeted form (Kurakin et al., 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._support.layout import preferred_layout, with_layout
from ..input_gradient import GradientSession
from ._checks import check_start
from .base import Attack, Target


class FGSM(Attack):
    """One sign-gradient step of size epsilon from the image.

    Args:
        model, epsilon, **options: see :class:`Attack`.
        target: see :class:`Attack`; ``"least-likely"`` is what AT-FGSM trains on.
    """

    draws_noise = False

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        target: Target = "none",
        **options: Any,
    ) -> None:
        super().__init__(model, epsilon, target=target, **options)
        check_start(self.input_gradient.loss, is_random=False)

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``; no noise is drawn."""
        (x_adv,) = self.run_on_engine(self._step, images, labels, ())
        return with_layout(x_adv, preferred_layout(images)).unsqueeze(0)

    def _step(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
        x = with_layout(images, gradient.layout(images))
        grad = gradient(x, self.targets(gradient, x, labels)).grad
        return (ops.linf_step_(x.clone(), grad, x, step_size=self.epsilon, **self.ball),)
