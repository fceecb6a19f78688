"""The amortised maximizers with the paper's networks: generator (Table 5) and variational encoder (Table 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._support.layout import to_channels_last
from .._support.model_state import device_of
from .._support.tensor_checks import COMPUTE_DTYPES
from ..attacks import EXPAM, IMPAM, L2L, ExpAmRecipe, ImpAmRecipe, exp_am_recipe, imp_am_recipe
from ..attacks.recipes import GradientScale, RecipeName
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
    """:class:`EXPAM` with a new generator for images of that shape.

    Args:
        model, epsilon, entropy_weight, recipe, **options: see :class:`EXPAM`.
        image_shape: (C, H, W) of the images.
        generator_width: filters of the generator's first convolution, >= 1; the paper's are 256.
    """
    recipe = exp_am_recipe(recipe)
    generator = _generator(model, image_shape, generator_width, recipe.narrow_third_block, outputs=2)
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
    """:class:`IMPAM` with a new generator and a new encoder for images of that shape.

    Args:
        model, epsilon, latent_dim, entropy_weight, recipe, **options: see :class:`IMPAM`.
        image_shape, generator_width: see :func:`exp_am`.
    """
    recipe = imp_am_recipe(recipe)
    generator = _generator(model, image_shape, generator_width, recipe.narrow_third_block, latent_dim=latent_dim)
    encoder = _placed(VariationalEncoder(image_shape[0], latent_dim), model)
    return IMPAM(
        model, epsilon, generator=generator, encoder=encoder, latent_dim=latent_dim, entropy_weight=entropy_weight,
        recipe=recipe, **options,
    )  # fmt: skip


def l2l(
    model: nn.Module,
    epsilon: float,
    *,
    image_shape: ImageShape,
    generator_width: int = 256,
    narrow_third_block: bool = True,
    gradient_scale: GradientScale = "max_abs",
    **options: Any,
) -> L2L:
    """:class:`L2L` with a new generator, the one of ADT-EXP-AM but for its outputs, as in the paper (Section D.4).

    Args:
        model, epsilon, gradient_scale, **options: see :class:`L2L`.
        image_shape, generator_width: see :func:`exp_am`.
        narrow_third_block: see :class:`adt_fast.models.PerturbationGenerator`.
    """
    generator = _generator(model, image_shape, generator_width, narrow_third_block)
    return L2L(model, epsilon, generator=generator, gradient_scale=gradient_scale, **options)


def _generator(
    model: nn.Module, image_shape: ImageShape, width: int, narrow: bool, *, outputs: int = 1, latent_dim: int = 0
) -> nn.Module:
    """A generator of ``outputs`` numbers for each element of an image."""
    channels, height, width_of_images = image_shape
    generator = PerturbationGenerator(
        _IMAGE_AND_GRADIENTS * channels, outputs * channels, width=width, narrow_third_block=narrow,
        latent_dim=latent_dim, image_size=(height, width_of_images),
    )  # fmt: skip
    return _placed(generator, model)


def _placed(network: nn.Module, model: nn.Module) -> nn.Module:
    """The network where the classifier is and in its precision, 16 bits aside; channels_last, and in train mode."""
    dtypes = (parameter.dtype for parameter in model.parameters())
    dtype = next((dtype for dtype in dtypes if dtype in COMPUTE_DTYPES), torch.float32)
    return to_channels_last(network, device_of(model), dtype).train()
