"""Tensors of given values in every memory layout a caller may come with."""

from __future__ import annotations

import torch

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous()


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Pixels of a channel apart, channels of a pixel together; only for four and five dimensions."""
    return tensor.contiguous(memory_format=CHANNELS_LAST[tensor.dim()])


def sliced(tensor: torch.Tensor) -> torch.Tensor:
    """Every other element of a larger buffer, which starts at an odd address."""
    buffer = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"))
    view = buffer[..., 1::2]
    return view.copy_(tensor)


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The dimensions in reverse order in memory."""
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous().permute(*reversed(range(tensor.dim())))


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    """The first row for all rows, without a copy. It changes the values."""
    return tensor[:1].expand_as(tensor)


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, but the address is a multiple of the element size only."""
    buffer = tensor.new_empty(tensor.numel() + 1)
    return buffer[1:].view(tensor.shape).copy_(tensor)


def by_slab(arrange, samples: torch.Tensor) -> torch.Tensor:
    """Arranges a ``[k, B, ...]`` tensor as k * B examples."""
    return arrange(samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
