"""The networks of amortised ADT, in proportion to the classifier."""

from __future__ import annotations

import math

import torch
from torch import nn

from adt_fast.models import PerturbationGenerator, VariationalEncoder

from ..model_flops import forward_flops
from .task import ADT_EXP_AM, ADT_IMP_AM

LATENTS = 64  # of z

_PAPER_WIDTH = 256
_PAPER_SHARE = 2.02  # a forward pass of the paper's generator over one of its classifier, WRN-28-10


def default_generator_width(classifier_flops: int, image: tuple[int, int, int]) -> int:
    """The multiple of 8 that keeps the paper's proportion, given the classifier's forward pass of one image.

    A generator of the paper's size would cost 27 times as much as the small classifier that a CPU can time.
    """
    with torch.device("meta"):
        generator = _generator(image, image[0], _PAPER_WIDTH, 0).eval()
        paper = forward_flops(generator, torch.empty(1, 3 * image[0], *image[1:]))
    width = _PAPER_WIDTH * math.sqrt(_PAPER_SHARE * classifier_flops / paper)  # nearly all of it goes with the square
    return max(8, 8 * round(width / 8))


def amortized_networks(objective: str, image: tuple[int, int, int], width: int) -> nn.ModuleDict:
    """What an objective trains beside the classifier; nothing where it is not amortised."""
    channels = image[0]
    if objective == ADT_EXP_AM:
        return nn.ModuleDict({"generator": _generator(image, 2 * channels, width, 0)})
    if objective == ADT_IMP_AM:
        generator, encoder = _generator(image, channels, width, LATENTS), VariationalEncoder(channels, LATENTS)
        return nn.ModuleDict({"generator": generator, "encoder": encoder})
    return nn.ModuleDict()


def _generator(image: tuple[int, int, int], outputs: int, width: int, latents: int) -> PerturbationGenerator:
    channels, *size = image
    return PerturbationGenerator(3 * channels, outputs, width=width, latent_dim=latents, image_size=tuple(size))
