"""MIM, the momentum iterative method (Dong et al., 2018; paper, Section 5.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._support.checks import check_int, check_not_negative
from .._support.layout import preferred_layout, with_layout
from ..input_gradient import GradientSession
from ._checks import check_start, check_step_size
from .base import Attack


class MIM(Attack):
    """Sign steps along a momentum of gradients, each divided by its L1 norm, projected onto the L-infinity ball.

    Args:
        model, epsilon, **options: see :class:`Attack`.
        steps: >= 0. The paper evaluates with 20.
        step_size: of a step, in the images' units, > 0. Default: epsilon / 4, as in the paper.
        decay: of the momentum from one step to the next, >= 0; the method's own is 1.

    It starts at the image, as its authors do, and draws no noise.
    """

    draws_noise = False

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 20,
        step_size: float | None = None,
        decay: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, epsilon, **options)
        check_int("steps", steps, 0, 2**31)
        check_not_negative("decay", decay)
        check_start(self.input_gradient.loss, is_random=False)
        self.steps = steps
        self.step_size = check_step_size(self.epsilon / 4 if step_size is None else step_size)
        self.decay = float(decay)

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``."""
        (x_adv,) = self.run_on_engine(self._ascend, images, labels, (self.steps, self.step_size, self.decay))
        return with_layout(x_adv, preferred_layout(images)).unsqueeze(0)

    def _ascend(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
        x = with_layout(images, gradient.layout(images))
        targets = self.targets(gradient, x, labels)
        x_adv, momentum = x.clone(), torch.zeros_like(x)
        for _ in range(self.steps):
            grad = gradient(x_adv, targets).grad
            ops.momentum_linf_step_(
                x_adv, momentum, grad, x, step_size=self.step_size, decay=self.decay, **self.ball
            )
        return (x_adv,)
