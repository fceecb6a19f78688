"""Feature scattering (Zhang & Wang, 2019): perturb a batch away from the natural one, as a whole and without labels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._support.checks import check_int, check_not_negative, check_positive
from .._support.layout import preferred_layout, with_layout
from ..input_gradient import GradientSession
from ._ball import linf_start
from ._checks import check_step_size
from .base import Attack


class FeatureScatter(Attack):
    """Sign-gradient ascent on the optimal transport distance between the natural and the perturbed logits of a batch.

    The distance is <T, C>, where C holds 1 - the cosine of each natural and each perturbed image's logits, and T is the
    transport plan that Sinkhorn's algorithm finds between the two batches, uniformly weighted. Its gradient goes
    through the iterations of the algorithm, as in the authors' code; unlike there, logarithms of sums are computed in
    the stable form, without 1e-6 inside.

    With a :attr:`share` the transport is within the images at hand: only their noise is that of the whole minibatch.

    Args:
        model, epsilon, **options: see :class:`Attack`; the loss is not used.
        steps: >= 0. The authors train with 1.
        step_size: in the images' units, > 0. Default: epsilon.
        regularization: of the transport's entropy, > 0.
        iterations: of Sinkhorn's algorithm, at most, >= 1.
        tolerance: it stops when the potentials of the natural images move by less than this altogether, >= 0. With 0
            there is nothing to wait for a GPU for, and the attack may be captured in a CUDA graph.
    """

    takes_targets = False

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 1,
        step_size: float | None = None,
        regularization: float = 0.01,
        iterations: int = 100,
        tolerance: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(model, epsilon, **options)
        check_int("steps", steps, 0, 2**31)
        check_positive("regularization", regularization)
        check_int("iterations", iterations, 1, 2**31)
        check_not_negative("tolerance", tolerance)
        self.steps = steps
        self.step_size = check_step_size(self.epsilon if step_size is None else step_size)
        self.regularization = float(regularization)
        self.iterations = iterations
        self.tolerance = float(tolerance)

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``. Its random start takes one draw of the noise."""
        noise = self.noise_on(images.device)
        settings = (self.steps, self.step_size, self.regularization, self.iterations) if self.tolerance == 0 else None
        (x_adv,) = self.run_on_engine(self._ascend, images, labels, settings, reads=(noise.state,))
        noise.advance()
        return with_layout(x_adv, preferred_layout(images)).unsqueeze(0)

    def _ascend(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
        x = with_layout(images, gradient.layout(images))
        natural = gradient.logits(x)
        x_adv = linf_start(x, self.noise.state, first_example=self.first_example, **self.ball)
        for _ in range(self.steps):
            grad = gradient.of_batch(x_adv, lambda logits: self.distance(natural, logits))
            ops.linf_step_(x_adv, grad, x, step_size=self.step_size, **self.ball)
        return (x_adv,)

    def distance(self, natural: Tensor, perturbed: Tensor) -> Tensor:
        """<T, C>, a number, differentiable in both logits.

        Args:
            natural, perturbed: logits ``[B, num_classes]`` and ``[B', num_classes]``.
        """
        cost = 1 - F.cosine_similarity(natural.unsqueeze(1), perturbed.unsqueeze(0), dim=2)  # [B, B']
        plan = sinkhorn_plan(cost, self.regularization, iterations=self.iterations, tolerance=self.tolerance)
        return (plan * cost).sum()


def sinkhorn_plan(cost: Tensor, regularization: float, *, iterations: int, tolerance: float) -> Tensor:
    """The plan of least <T, C> - regularization * H(T) between two uniform distributions (Cuturi, 2013).

    Args:
        cost: C ``[m, n]``; the result is like it, sums to 1 / n along columns, and to nearly 1 / m along rows.
        regularization: > 0.
        iterations: at most so many; the plan is differentiable through them.
        tolerance: stop when the row potentials change by less than this, summed.
    """
    log_kernel = -cost / regularization
    rows, columns = cost.shape
    log_row, log_column = -math.log(rows), -math.log(columns)
    u, v = cost.new_zeros(rows), cost.new_zeros(columns)  # potentials over the regularization
    for _ in range(iterations):
        before = u
        u = log_row - (log_kernel + v).logsumexp(1)
        v = log_column - (log_kernel + u.unsqueeze(1)).logsumexp(0)
        if tolerance > 0 and regularization * float((u - before).detach().abs().sum()) < tolerance:
            break
    return (log_kernel + u.unsqueeze(1) + v).exp()
