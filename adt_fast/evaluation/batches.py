"""The images of an evaluation, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .._support.batch_check import BatchCheck, pairs
from .._support.model_state import device_of
from ..data import BatchLoader, ImageData

Batches = ImageData | Iterable[tuple[Tensor, Tensor]]
"""An :class:`adt_fast.data.ImageData`, or batches (images, labels) such as a DataLoader gives."""


def checked_batches(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on the model's device, each looked at.

    Raises:
        TypeError, ValueError: for bad images or labels, by name, or if there are no data.
    """
    device = device_of(model) or torch.device("cpu")
    check_batch = BatchCheck(model)
    empty = True
    for batch in pairs("data", batches):
        images, labels = (part.detach().to(device) for part in batch)
        check_batch(images, labels)
        yield images, labels
        empty = False
    if empty:
        raise ValueError("data must have at least one image, it is empty")


def in_batches(model: nn.Module, data: Batches, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """An ``ImageData`` in batches of that size; other data as they are."""
    if isinstance(data, ImageData):
        return BatchLoader(data, batch_size, device=device_of(model) or "cpu", channels_last=True)
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be an ImageData, or batches (images, labels), got {type(data).__name__}")
    return data
