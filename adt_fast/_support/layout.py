"""Memory layouts: how a tensor of any shape looks to the kernels.

An example ``[C, *spatial]`` has C channels of P pixels. Two layouts are known to the kernels: contiguous, where a
channel's pixels are neighbours, and channels_last, where a pixel's channels are. Tensors with fewer than three
dimensions, and those with a single pixel or channel, have just one layout, and count as one channel.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_and_pixels(shape: torch.Size) -> tuple[int, int]:
    """(C, P) of an example of a ``[B, ...]`` tensor, as the noise index counts them."""
    if len(shape) < 3:
        return 1, math.prod(shape[1:])
    channels, pixels = shape[1], math.prod(shape[2:])
    return (channels, pixels) if pixels > 1 else (1, channels * pixels)


def layout_of(tensor: torch.Tensor) -> torch.memory_format | None:
    """The layout of a dense tensor: contiguous, channels_last (2d or 3d); None if it has neither."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    channels_last = _CHANNELS_LAST.get(tensor.dim())
    if channels_last is not None and tensor.is_contiguous(memory_format=channels_last):
        return channels_last
    return None


def preferred_layout(tensor: torch.Tensor) -> torch.memory_format:
    """The tensor's own layout, or contiguous if it is not dense."""
    return layout_of(tensor) or torch.contiguous_format


def with_layout(tensor: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """The same values in the given layout; a copy only when they are not there already."""
    return tensor.contiguous(memory_format=layout)


def empty_samples(
    like: torch.Tensor, samples: int, layout: torch.memory_format, dtype: torch.dtype
) -> torch.Tensor:
    """An empty ``[k, *like.shape]`` tensor of k slabs, each in the given layout."""
    shape = like.shape
    flat = (samples * shape[0], *shape[1:])
    return torch.empty(flat, dtype=dtype, device=like.device, memory_format=layout).unflatten(0, (samples, shape[0]))


def samples_with_layout(tensor: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """A ``[k, B, ...]`` tensor as k slabs in the given layout; a copy only when they are not so already."""
    samples, batch = tensor.shape[:2]
    return with_layout(tensor.flatten(0, 1), layout).unflatten(0, (samples, batch))


def to_channels_last(
    module: _Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> _Module:
    """``module.to`` with the weights of its 2d convolutions in channels_last; PyTorch's annotations lack that."""
    moved: Any = module
    moved.to(device, dtype, memory_format=torch.channels_last)
    return module
