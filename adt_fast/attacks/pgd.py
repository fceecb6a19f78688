"""PGD (Madry et al., 2018): gradient steps, projected onto the ball (paper, Eq. 3)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .. import ops
from .._support.checks import check_choice, check_int
from .._support.layout import preferred_layout, with_layout
from ..input_gradient import GradientSession
from ..losses import Margin
from ._ball import Norm, l2_start, linf_start
from ._checks import check_start, check_step_size
from .base import Attack

_GAUSSIAN_START = 0.001


class PGD(Attack):
    """Projected gradient ascent: sign steps in the L-infinity ball, steps along the normalised gradient in the L2 ball.

    Args:
        model, epsilon, **options: see :class:`Attack`. In L2, epsilon is a Euclidean length, 0.5 for example.
        steps: gradient steps, >= 0. The paper evaluates with 20 and trains with 7.
        step_size: of a step, in the images' units, > 0. Default: epsilon / 4, as in the paper.
        norm: ``"linf"`` (default) or ``"l2"``.
        random_start: start from a uniform point of the ball, clamped to the data bounds, instead of from the image; or
            ``"gaussian"``: from the image plus 0.001 r, r ~ N(0, 1), as TRADES' own code does.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 20,
        step_size: float | None = None,
        norm: Norm = "linf",
        random_start: bool | Literal["gaussian"] = True,
        **options: Any,
    ) -> None:
        if not isinstance(random_start, bool) and random_start != "gaussian":
            raise ValueError(f"random_start must be True, False or 'gaussian', got {random_start!r}")
        self.draws_noise = random_start is not False
        super().__init__(model, epsilon, **options)
        check_int("steps", steps, 0, 2**31)
        check_choice("norm", norm, get_args(Norm))
        self.norm: Norm = norm
        self.steps = steps
        self.step_size = check_step_size(self.epsilon / 4 if step_size is None else step_size)
        check_start(self.input_gradient.loss, random_start is not False)
        self.random_start = random_start

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``. A random start takes one draw of the noise."""
        noise = self.noise_on(images.device)
        settings = (self.steps, self.step_size, self.norm, self.random_start)
        (x_adv,) = self.run_on_engine(self._ascend, images, labels, settings, reads=(noise.state,))
        if self.random_start:
            noise.advance()
        return with_layout(x_adv, preferred_layout(images)).unsqueeze(0)

    def _ascend(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
        x = with_layout(images, gradient.layout(images))
        targets = self.targets(gradient, x, labels)
        x_adv = self._start(x)
        for _ in range(self.steps):
            self._step_(x_adv, gradient(x_adv, targets).grad, x, self.step_size)
        return (x_adv,)

    def _step_(self, x_adv: Tensor, grad: Tensor, x: Tensor, step_size: float) -> None:
        step_ = ops.l2_step_ if self.norm == "l2" else ops.linf_step_
        step_(x_adv, grad, x, step_size=step_size, **self.ball)

    def _start(self, x: Tensor) -> Tensor:
        noise, first = self.noise.state, self.first_example
        if self.random_start == "gaussian":
            x_adv = torch.add(x, ops.normal(x, noise, first_example=first)[0], alpha=_GAUSSIAN_START)
            # No step, but into the ball and the data bounds.
            self._step_(x_adv, torch.zeros_like(x), x, 0.0)
            return x_adv
        if not self.random_start:
            return x.clone()
        start = l2_start if self.norm == "l2" else linf_start
        return start(x, noise, first_example=first, **self.ball)


class CW(PGD):
    """C&W in a ball: PGD on the margin loss of Carlini & Wagner (2017), as the paper has it (Section 5.2).

    Args:
        model, epsilon, step_size, norm, random_start, **options: see :class:`PGD`; the loss is the margin.
        steps: gradient steps, >= 0. The paper evaluates with 30.
        confidence: kappa, in logits: an image is left alone once it is misclassified by that margin.
    """

    def __init__(
        self, model: nn.Module, epsilon: float = 8 / 255, *, steps: int = 30, confidence: float = 50.0, **options: Any
    ) -> None:
        if "loss" in options:
            raise TypeError("loss is no option of CW, whose loss is the margin: use PGD for another")
        super().__init__(model, epsilon, steps=steps, loss=Margin(confidence), **options)
