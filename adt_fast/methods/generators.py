"""The amortised maximizers with the paper's networks: generator (Table 5) and variational encoder (Table 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._checks import check_int
from ..attacks import EXPAM, IMPAM, L2L, ExpAmRecipe, ImpAmRecipe, exp_am_recipe, imp_am_recipe
from ..attacks.recipes import GradientScale, RecipeName
from ..model_state import device_of
from ..models import PerturbationGenerator, VariationalEncoder

ImageShape = tuple[int, int, int]
"""(C, H, W)."""

_IMAGE_AND_GRADIENTS = 3  # the generator's inputs, C channels each


def exp_am(
    model: nn.Module,
    epsilon: float,
    *,
    image_shape: ImageShape,
    generator_width: int = 256,
    entropy_weight: float = 0.01,
    recipe: RecipeName | ExpAmRecipe = "published",
    **options: Any,
) -> EXPAM:
    """:class:`EXPAM` with a new generator for images of that shape."""
    recipe = exp_am_recipe(recipe)
    channels, *size = image_shape
    generator = PerturbationGenerator(
        _IMAGE_AND_GRADIENTS * channels, 2 * channels, width=generator_width,
        narrow_third_block=recipe.narrow_third_block, image_size=tuple(size),
    )  # fmt: skip
    generator = _placed(generator, model)
    return EXPAM(model, epsilon, generator=generator, entropy_weight=entropy_weight, recipe=recipe, **options)


def imp_am(
    model: nn.Module,
    epsilon: float,
    *,
    image_shape: ImageShape,
    generator_width: int = 256,
    latent_dim: int = 64,
    entropy_weight: float | None = None,
    recipe: RecipeName | ImpAmRecipe = "published",
    **options: Any,
) -> IMPAM:
    """:class:`IMPAM` with a new generator and a new encoder for images of that shape."""
    recipe = imp_am_recipe(recipe)
    check_int("latent_dim", latent_dim, 1, 2**31)
    channels, *size = image_shape
    generator = PerturbationGenerator(
        _IMAGE_AND_GRADIENTS * channels, channels, width=generator_width,
        narrow_third_block=recipe.narrow_third_block, latent_dim=latent_dim, image_size=tuple(size),
    )  # fmt: skip
    return IMPAM(
        model, epsilon, generator=_placed(generator, model),
        encoder=_placed(VariationalEncoder(channels, latent_dim), model),
        latent_dim=latent_dim, entropy_weight=entropy_weight, recipe=recipe, **options,
    )  # fmt: skip


def l2l(
    model: nn.Module,
    epsilon: float,
    *,
    image_shape: ImageShape,
    generator_width: int = 256,
    gradient_scale: GradientScale = "max_abs",
    **options: Any,
) -> L2L:
    """:class:`L2L` with a new generator, the one of ADT-EXP-AM but for its outputs, as in the paper (Section D.4)."""
    channels, *size = image_shape
    generator = PerturbationGenerator(
        _IMAGE_AND_GRADIENTS * channels, channels, width=generator_width, image_size=tuple(size)
    )
    return L2L(model, epsilon, generator=_placed(generator, model), gradient_scale=gradient_scale, **options)


def _placed(network: nn.Module, model: nn.Module) -> nn.Module:
    """The network where the classifier is, in the layout that convolutions are fastest in, and in train mode."""
    return network.to(device_of(model), memory_format=torch.channels_last).train()
