"""Minibatches on their way to a GPU while it works on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def prefetched(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's minibatches; on CUDA, copied from pinned memory on a stream of their own, one ahead.

    Args:
        loader: gives (images, labels), as a ``DataLoader`` does, with ``pin_memory`` or without. It may fill the same
            memory again for every batch.
        device: where they go. On a CPU, and for what is no tensor or is on the device already, there is nothing to do.
    """
    if device.type != "cuda":
        yield from loader
        return
    stream = torch.cuda.Stream(device)
    waiting = None
    for batch in loader:
        with torch.cuda.stream(stream):
            coming: Any = tuple(_sent(part, device) for part in batch)
        if waiting is not None:
            yield waiting
        _receive(coming, stream)
        waiting = coming
        if any(_is_pinned(part) for part in batch):
            # The loader may fill that memory again. Only copies are waited for, and this one had the time in which the
            # batch before was worked on; memory that is pinned here is PyTorch's to keep until it was copied.
            stream.synchronize()
    if waiting is not None:
        yield waiting


def _sent(part: Tensor, device: torch.device) -> Tensor:
    if not isinstance(part, Tensor) or part.device.type != "cpu":
        return part
    pinned = part if _is_pinned(part) else part.pin_memory()
    return pinned.to(device, non_blocking=True)


def _is_pinned(part: Tensor) -> bool:
    return isinstance(part, Tensor) and part.device.type == "cpu" and part.is_pinned()


def _receive(batch: tuple[Tensor, ...], stream: torch.cuda.Stream) -> None:
    """The current stream waits for the copies, and their memory is not used again before it is done with them."""
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    for part in batch:
        if isinstance(part, Tensor) and part.is_cuda:
            part.record_stream(current)
