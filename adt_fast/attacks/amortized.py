"""Amortised attacks: a generator network gives the perturbation, or its distribution (paper, Sections 3.2 and 3.3).

Their generator sees the image, the gradient g1 of the loss there, and the gradient g2 at the FGSM example (Section
C.2). They are of use once the generator is trained, by a method of :mod:`adt_fast.methods` for example.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._support.checks import check_choice, check_finite, check_int
from .._support.layout import preferred_layout, samples_with_layout, with_layout
from .._support.model_state import check_model, model_mode
from ..input_gradient import GradientSession
from ._ball import symmetric_uniform
from ._checks import check_start
from .base import Attack
from .recipes import (
    GRADIENT_SCALES,
    ExpAmRecipe,
    GradientScale,
    ImpAmRecipe,
    RecipeName,
    exp_am_recipe,
    imp_am_recipe,
)


class AmortizedSample(NamedTuple):
    """A sample of the generator's distribution, with its graph."""

    x_adv: Tensor
    """``[1, B, C, H, W]``; its graph leads to the generator, which is to raise the loss."""
    penalty: Tensor | None
    """What the attack's networks are to lower besides, a number: minus the weighted entropy, or its bound. It is a mean
    over the images at hand, but for a recipe's hinge, which is of that mean."""


class AmortizedAttack(Attack):
    """An attack by a trained generator; a subclass defines :meth:`sample`.

    Args:
        model, epsilon, **options: see :class:`Attack`. The loss is that of g1 and g2.
        generator: ``[B, 3 C, H, W]``, the stack [x, g1, g2], to ``[B, ..., H, W]``, such as
            :class:`adt_fast.models.PerturbationGenerator`, on the model's device.
        gradient_scale: of g1 and g2: ``"per_example"``, of each example's own loss; ``"batch_mean"``, that over B, the
            whole minibatch's where there is a :attr:`share`; or ``"max_abs"``, divided by the largest absolute value in
            the batch, which with a share is that of the images at hand, and so not what the whole would give.
        clamp: clamp adversarial images, the FGSM example of g2 among them, to the data bounds.
    """

    takes_targets = False

    def __init__(
        self,
        model: nn.Module,
        epsilon: float,
        *,
        generator: nn.Module,
        gradient_scale: GradientScale,
        clamp: bool,
        **options: Any,
    ) -> None:
        super().__init__(model, epsilon, **options)
        check_model(generator, "generator")
        check_choice("gradient_scale", gradient_scale, GRADIENT_SCALES)
        check_start(self.input_gradient.loss, is_random=False)
        self.generator = generator
        self.gradient_scale: GradientScale = gradient_scale
        self.clamp = clamp

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What is to be trained, by name."""
        return {"generator": self.generator}

    @abstractmethod
    def sample(self, images: Tensor, labels: Tensor) -> AmortizedSample:
        """A sample for a minibatch that was checked; the networks run in the mode they are in. Uses up to one draw.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [lower, upper], on the model's device.
            labels: int64 ``[B]``, the true classes.
        """

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``, by the networks in eval mode."""
        with model_mode(nn.ModuleDict(self.networks), "eval"):
            x_adv = self.sample(images.detach(), labels).x_adv
        return samples_with_layout(x_adv, preferred_layout(images))

    @torch.no_grad()
    def generator_inputs(self, images: Tensor, labels: Tensor) -> Tensor:
        """[x, g1, g2], ``[B, 3 C, H, W]``, from the model in the attack's ``model_mode``.

        Args:
            images, labels: as for :meth:`sample`.
        """
        (inputs,) = self.run_on_engine(self._stack, images, labels, (self.clamp, self.gradient_scale))
        return inputs

    def _stack(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
        x = with_layout(images, gradient.layout(images))
        g1 = gradient(x, labels).grad
        x_fgsm = ops.linf_step_(x.clone(), g1, x, step_size=self.epsilon, **self._sampling_ball)
        g2 = gradient(x_fgsm, labels).grad
        return (torch.cat([x, self._scaled(g1), self._scaled(g2)], 1),)

    @property
    def _sampling_ball(self) -> dict[str, Any]:
        return self.ball if self.clamp else self.unclamped_ball

    def _scaled(self, grad: Tensor) -> Tensor:
        if self.gradient_scale == "batch_mean":
            return grad / self.whole_batch_size(grad)
        if self.gradient_scale == "max_abs":
            return grad / grad.abs().amax().clamp_min(torch.finfo(grad.dtype).tiny)
        return grad

    def _generate(self, images: Tensor, inputs: Tensor, *z: Tensor, outputs: int = 1) -> Tensor:
        """The generator's output in the images' dtype, ``[B, outputs * C, H, W]``."""
        output = self.generator(inputs, *z)
        wanted = (len(images), outputs * images.shape[1], *images.shape[2:])
        if output.shape != wanted:
            raise ValueError(f"generator must give {list(wanted)} for images {list(images.shape)}, "
                             f"got {list(output.shape)}")
        return output.to(images.dtype)

    def _added(self, images: Tensor, direction: Tensor) -> Tensor:
        """``[1, B, C, H, W]``: the images plus epsilon times a direction in [-1, 1]."""
        x_adv = torch.add(images, direction, alpha=self.epsilon)
        return (x_adv.clamp(self.lower, self.upper) if self.clamp else x_adv).unsqueeze(0)


class EXPAM(AmortizedAttack):
    """EXP-AM: the generator gives (mu, rho) of the explicit distribution (paper, Section 3.2).

    Args:
        model, epsilon, generator, **options: see :class:`AmortizedAttack`; the generator has 2 C output channels, mu
            before rho.
        entropy_weight: lambda, finite; the paper's is 0.01.
        recipe: ``"published"`` (default), ``"paper"``, or an :class:`ExpAmRecipe`.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        generator: nn.Module,
        entropy_weight: float = 0.01,
        recipe: RecipeName | ExpAmRecipe = "published",
        **options: Any,
    ) -> None:
        self.recipe = exp_am_recipe(recipe)
        check_finite("entropy_weight", entropy_weight)
        super().__init__(
            model, epsilon, generator=generator, gradient_scale=self.recipe.gradient_scale, clamp=self.recipe.clamp,
            **options,
        )  # fmt: skip
        self.entropy_weight = float(entropy_weight)

    def sample(self, images: Tensor, labels: Tensor) -> AmortizedSample:
        """x_adv, and -lambda times the mean entropy of an example (Eq. 12)."""
        noise = self.noise_on(images.device)
        inputs = self.generator_inputs(images, labels)
        layout = preferred_layout(inputs)
        phi = self._generate(images, inputs, outputs=2)
        mu, rho = (with_layout(half, layout) for half in phi.chunk(2, 1))
        x_adv, neg_log_density = ops.tanh_gaussian_sample(
            with_layout(images, layout), mu, rho, noise.state, density=self.entropy_weight != 0,
            log_offset=self.recipe.log_offset, first_example=self.first_example, **self._sampling_ball,
        )  # fmt: skip
        noise.advance()
        return AmortizedSample(x_adv, None if neg_log_density is None else self._penalty(neg_log_density, images))

    def _penalty(self, neg_log_density: Tensor, images: Tensor) -> Tensor:
        elements = images[0].numel() if self.recipe.entropy_reduction == "mean" else 1
        return -self.entropy_weight / elements * neg_log_density.mean()


class IMPAM(AmortizedAttack):
    """IMP-AM: the generator gives the perturbation from noise z ~ U(-1, 1) (paper, Section 3.3).

    The entropy of what it gives is bounded from below by log q(z | delta) of an encoder, plus a constant (Eq. 14).

    Args:
        model, epsilon, generator, **options: see :class:`AmortizedAttack`; the generator takes z as its second
            argument, and its output goes through tanh.
        encoder: delta / epsilon to the mean and the raw spread of z, ``[B, latent_dim]`` each, such as
            :class:`adt_fast.models.VariationalEncoder`.
        latent_dim: length of z, >= 1; the paper's is 64.
        entropy_weight: lambda, finite. Default: the recipe's.
        recipe: ``"published"`` (default), ``"paper"``, or an :class:`ImpAmRecipe`.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        generator: nn.Module,
        encoder: nn.Module,
        latent_dim: int = 64,
        entropy_weight: float | None = None,
        recipe: RecipeName | ImpAmRecipe = "published",
        **options: Any,
    ) -> None:
        self.recipe = imp_am_recipe(recipe)
        weight = self.recipe.entropy_weight if entropy_weight is None else entropy_weight
        check_finite("entropy_weight", weight)
        check_model(encoder, "encoder")
        check_int("latent_dim", latent_dim, 1, 2**31)
        super().__init__(
            model, epsilon, generator=generator, gradient_scale=self.recipe.gradient_scale, clamp=self.recipe.clamp,
            **options,
        )  # fmt: skip
        self.encoder = encoder
        self.latent_dim = latent_dim
        self.entropy_weight = float(weight)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What is to be trained, by name."""
        return {"generator": self.generator, "encoder": self.encoder}

    def sample(self, images: Tensor, labels: Tensor) -> AmortizedSample:
        """x_adv, and -lambda times the bound of the entropy, less its constant, or the recipe's hinge of it."""
        inputs = self.generator_inputs(images, labels)
        z = self._latent(images)
        direction = self._generate(images, inputs, z).tanh()
        penalty = self._penalty(z, direction) if self.entropy_weight != 0 else None
        return AmortizedSample(self._added(images, direction), penalty)

    def log_q(self, z: Tensor, direction: Tensor) -> Tensor:
        """log q(z | delta) of each latent ``[B, latent_dim]``; direction is delta / epsilon ``[B, C, H, W]``."""
        mean, raw = (part.to(z.dtype) for part in self.encoder(direction))
        if mean.shape != z.shape or raw.shape != z.shape:
            raise ValueError(f"encoder must give mean and spread {list(z.shape)}, got {list(mean.shape)} and "
                             f"{list(raw.shape)}")
        spread, offset = F.softplus(raw), self.recipe.log_offset
        variance = spread if self.recipe.spread == "variance" else spread.square()
        exponent = -(z - mean).square() / (2 * variance + offset)
        return exponent - ((variance + offset).log() + math.log(2 * math.pi)) / 2

    def _latent(self, images: Tensor) -> Tensor:
        noise = self.noise_on(images.device)
        zeros = images.new_zeros(len(images), self.latent_dim)
        z = symmetric_uniform(zeros, noise.state, first_example=self.first_example)
        noise.advance()
        return z

    def _penalty(self, z: Tensor, direction: Tensor) -> Tensor:
        by_latent = self.log_q(z, direction)
        per_example = by_latent.mean(1) if self.recipe.latent_reduction == "mean" else by_latent.sum(1)
        upper_bound = -per_example.mean()  # of minus the entropy, but for a constant
        if self.recipe.hinge is not None:
            upper_bound = F.relu(upper_bound - self.recipe.hinge)
        return self.entropy_weight * upper_bound


class L2L(AmortizedAttack):
    """Learning to attack (Chen et al., 2018): the generator gives one perturbation, without noise (Section D.4).

    Args:
        model, epsilon, generator, **options: see :class:`AmortizedAttack`; the generator's output goes through tanh.
        gradient_scale: see :class:`AmortizedAttack`. Default: ``"max_abs"``, L2L's own.
    """

    draws_noise = False

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        generator: nn.Module,
        gradient_scale: GradientScale = "max_abs",
        **options: Any,
    ) -> None:
        super().__init__(model, epsilon, generator=generator, gradient_scale=gradient_scale, clamp=True, **options)

    def sample(self, images: Tensor, labels: Tensor) -> AmortizedSample:
        """x_adv; there is no penalty, and no noise is drawn."""
        direction = self._generate(images, self.generator_inputs(images, labels)).tanh()
        return AmortizedSample(self._added(images, direction), None)
