"""The ball around an image: points of it at random, and into it to the last bit."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .. import ops

Norm = Literal["linf", "l2"]
"""Of the ball around an image: the largest change of an element, or the Euclidean length of all changes."""


def linf_start(
    x: Tensor, noise: Tensor, *, epsilon: float, lower: float, upper: float, draw: int = 0, first_example: int = 0
) -> Tensor:
    """Uniform points of the L-infinity balls around x ``[B, C, H, W]``, clamped to the data bounds. Takes one draw."""
    ball = {"epsilon": epsilon, "lower": lower, "upper": upper}
    return ops.uniform_start_(torch.empty_like(x), x, noise, draw=draw, first_example=first_example, **ball)


def symmetric_uniform(zeros: Tensor, noise: Tensor, *, first_example: int = 0) -> Tensor:
    """Numbers uniform in [-1, 1], like ``zeros`` ``[B, ...]``. Takes one draw."""
    return linf_start(zeros, noise, epsilon=1.0, lower=-math.inf, upper=math.inf, first_example=first_example)


def l2_start(
    x: Tensor, noise: Tensor, *, epsilon: float, lower: float, upper: float, first_example: int = 0
) -> Tensor:
    """Uniform points of the L2 balls around x ``[B, C, H, W]``, clamped to the data bounds. Takes one draw.

    The first D of D + 2 coordinates of a uniform point on a sphere are uniform in the ball (Voelker et al., 2017).
    """
    flat = x.flatten(1)
    normals = ops.normal(flat.new_empty(len(flat), flat.shape[1] + 2), noise, first_example=first_example)[0]
    direction = normals[:, :-2] / normals.norm(dim=1, keepdim=True)
    start = torch.add(flat, direction, alpha=epsilon).view(x.shape).clamp_(lower, upper)
    return torch.empty_like(x).copy_(start)


def confine(candidates: Tensor, x: Tensor, *, norm: Norm, epsilon: float, lower: float, upper: float) -> Tensor:
    """Candidates ``[n, B, C, H, W]`` that are near the balls around x, in place, put inside them and the data bounds.

    x + delta, once rounded, may be half a unit in the last place too far away, and epsilon itself is rounded where
    float32 is added to it. Here no difference to x, computed exactly, exceeds the radius.
    """
    candidates.clamp_(lower, upper)
    delta = candidates.double() - x  # exact for float32
    if norm == "linf":
        outside = delta.abs() > epsilon
        limited = delta.clamp_(-epsilon, epsilon)
    else:
        length = delta.flatten(2).norm(dim=2)[..., None, None, None]  # [n, B, 1, 1, 1]
        outside = length > epsilon
        limited = delta.mul_((epsilon / length).clamp_(max=1))
    if bool(outside.any()):
        nearest = (x + limited).to(candidates.dtype)
        # One unit nearer to x than the rounded sum is no further from it than the sum was.
        nearer = torch.nextafter(nearest, x.expand_as(nearest))
        candidates.copy_(torch.where(outside, nearer, candidates))
    return candidates
