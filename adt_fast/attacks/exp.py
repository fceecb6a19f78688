"""EXP: the explicit adversarial distribution of ADT-EXP (paper, Section 3.1 and Algorithm 2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._support.checks import check_finite, check_int
from .._support.layout import preferred_layout, samples_with_layout, with_layout
from .._support.tensor_checks import check_samples
from ..input_gradient import GradientSession
from ._checks import check_step_size
from .base import Attack, repeated
from .free_sigma import LEAST_SIGMA, ascent_step_on_sigma_, rho_of
from .recipes import ExpRecipe, RecipeName, exp_recipe


class Maximized(NamedTuple):
    """The distribution that the inner maximisation found, and samples of it."""

    mu: Tensor
    """Location of u, ``[B, C, H, W]``."""
    rho: Tensor
    """sigma = softplus(rho), ``[B, C, H, W]``."""
    x_adv: Tensor
    """Fresh samples ``[n, B, C, H, W]``; n is the recipe's ``outer_samples``."""


class EXP(Attack):
    """For every image, a distribution delta = epsilon tanh(mu + sigma r) of high expected loss and high entropy.

    ``steps`` times, k samples estimate the gradient of E[L] + lambda H in (mu, rho) (Eq. 10), which an Adam step with
    betas (0, 0) climbs (Section C.3). Then the last samples are drawn.

    Args:
        model, epsilon, **options: see :class:`Attack`.
        steps: T, gradient steps on (mu, rho), >= 0. The paper trains with 7.
        samples: k, Monte Carlo samples for each gradient, >= 1. The paper trains with 5.
        step_size: of a step on (mu, rho), > 0; the paper's is 0.3.
        entropy_weight: lambda, finite; the paper's is 0.01.
        recipe: ``"published"`` (default), ``"paper"``, or an :class:`ExpRecipe`.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 7,
        samples: int = 5,
        step_size: float = 0.3,
        entropy_weight: float = 0.01,
        recipe: RecipeName | ExpRecipe = "published",
        **options: Any,
    ) -> None:
        super().__init__(model, epsilon, **options)
        check_int("steps", steps, 0, 2**31)
        check_samples(samples)
        check_finite("entropy_weight", entropy_weight)
        self.steps = steps
        self.samples = samples
        self.step_size = check_step_size(step_size)
        self.entropy_weight = float(entropy_weight)
        self.recipe = exp_recipe(recipe)

    @torch.no_grad()
    def maximize(self, images: Tensor, labels: Tensor) -> Maximized:
        """The inner maximisation for a minibatch that was checked.

        It takes ``steps + 1`` draws of the noise: the samples of step t are draw t, the last ones draw ``steps``.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, contiguous or channels_last; the results are like it.
            labels: int64 ``[B]``.
        """
        noise = self.noise_on(images.device)
        settings = (self.steps, self.samples, self.step_size, self.entropy_weight, self.recipe)
        mu, rho, x_adv = self.run_on_engine(self._ascend, images, labels, settings, reads=(noise.state,))
        noise.advance(self.steps + 1)
        layout = preferred_layout(images)
        return Maximized(with_layout(mu, layout), with_layout(rho, layout), samples_with_layout(x_adv, layout))

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Samples of the distribution found, ``[n, B, C, H, W]``; n is the recipe's ``outer_samples``."""
        return self.maximize(images, labels).x_adv

    def _ascend(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``steps`` ascent steps from the start, and samples of the distribution they end at: (mu, rho, x_adv)."""
        x = with_layout(images, gradient.layout(images))
        mu, rho = torch.zeros_like(x), torch.full_like(x, self.recipe.rho_init)
        if self.recipe.sigma == "free":
            rho = self._climb_sigma(gradient, x, labels, mu, F.softplus(rho).clamp(min=LEAST_SIGMA))
        else:
            self._climb_rho(gradient, x, labels, mu, rho)
        x_adv, _ = ops.tanh_gaussian_sample(
            x, mu, rho, self.noise.state, samples=self.recipe.outer_samples, draw=self.steps, density=False,
            **self._sampling,
        )  # fmt: skip
        return mu, rho, x_adv

    def _climb_rho(self, gradient: GradientSession, x: Tensor, labels: Tensor, mu: Tensor, rho: Tensor) -> None:
        """The steps, on (mu, rho) in place; each draws the samples of the next in the same kernel."""
        noise = self.noise.state
        if self.steps > 0:
            options = self._ascent_options(mu, rho)
            targets = repeated(self.targets(gradient, x, labels), self.samples)  # [k * B, ...]
            x_adv, _ = ops.tanh_gaussian_sample(
                x, mu, rho, noise, samples=self.samples, dtype=gradient.dtype, density=False, **self._sampling
            )
        for step in range(self.steps):
            result = gradient(x_adv.flatten(0, 1), targets)
            options["grad_scale"] = self._objective_scale(x) / result.loss_scale
            grad = result.grad.view_as(x_adv)
            if step + 1 < self.steps:
                ops.tanh_gaussian_ascent_step_and_sample_(mu, rho, grad, x, noise, draw=step, out=x_adv, **options)
            else:
                ops.tanh_gaussian_ascent_step_(mu, rho, grad, x, noise, draw=step, **options)

    def _climb_sigma(
        self, gradient: GradientSession, x: Tensor, labels: Tensor, mu: Tensor, sigma: Tensor
    ) -> Tensor:
        """The steps, on (mu, sigma) in place; the rho they end at."""
        noise, options = self.noise.state, self._ascent_options(mu, sigma)
        targets = repeated(self.targets(gradient, x, labels), self.samples)  # [k * B, ...]
        for step in range(self.steps):
            x_adv, _ = ops.tanh_gaussian_sample(
                x, mu, rho_of(sigma), noise, samples=self.samples, draw=step, dtype=gradient.dtype, density=False,
                **self._sampling,
            )  # fmt: skip
            result = gradient(x_adv.flatten(0, 1), targets)
            options["grad_scale"] = self._objective_scale(x) / result.loss_scale
            ascent_step_on_sigma_(mu, sigma, result.grad.view_as(x_adv), x, noise, draw=step, **options)
        return rho_of(sigma)

    def _objective_scale(self, x: Tensor) -> float:
        """What the recipe's objective is of the sum of all k * B losses."""
        return 1 / self.whole_batch_size(x) if self.recipe.objective == "sum_of_batch_means" else 1 / self.samples

    def _ascent_options(self, mu: Tensor, rho: Tensor) -> dict[str, Any]:
        """The recipe, in the operators' terms."""
        recipe = self.recipe
        weight = self.entropy_weight
        if recipe.objective == "mean_per_example":
            weight /= self.samples
        if recipe.entropy_reduction == "mean":  # the operators' is over the images at hand
            weight *= len(mu) / self.whole_batch_size(mu)
        return {
            "step_size": self.step_size,
            "entropy_weight": weight,
            "entropy_reduction": recipe.entropy_reduction,
            "log_offset": recipe.log_offset,
            "update": recipe.update,
            "accumulated": (torch.zeros_like(mu), torch.zeros_like(rho)) if recipe.accumulate else None,
            **self._sampling,
        }

    @property
    def _sampling(self) -> dict[str, Any]:
        """What every operator that samples is told alike."""
        return {"first_example": self.first_example, **(self.ball if self.recipe.clamp else self.unclamped_ball)}
