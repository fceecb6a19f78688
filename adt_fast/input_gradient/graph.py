"""CUDA graphs of an attack's whole inner loop: thousands of launches become one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

Loop = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(images, labels) -> tensors; on the device alone, without waiting for it."""

Pool = tuple[int, int]
"""Names memory that is set apart for graphs, as :func:`torch.cuda.graph_pool_handle` does."""

MOST_GRAPHS = 32
"""Of an engine: one for each part of a minibatch, where a step of training goes through it in parts."""


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    pool: Pool
    images: Tensor
    labels: Tensor
    outputs: tuple[Tensor, ...]


class LoopGraphs:
    """Runs loops, from the second time on as CUDA graphs, one for each key.

    The first run of a key is an ordinary one, which warms up libraries and caches, so that a shape that comes once, as
    the last batch of an epoch may, costs no capture. Of more than 32 keys the one used longest ago is dropped.

    All graphs work in the same memory: what a graph keeps between its steps may be overwritten by another's, and so may
    its outputs. That harms nobody. Graphs are replayed one after another, on the caller's stream; their inputs are
    outside of that memory; and outputs are copied before another graph can be replayed.
    """

    def __init__(self) -> None:
        self.off_because = ""
        self._seen: OrderedDict[Hashable, _Captured | None] = OrderedDict()

    @property
    def captured(self) -> int:
        """How many graphs there are."""
        return sum(graph is not None for graph in self._seen.values())

    def __call__(self, loop: Loop, images: Tensor, labels: Tensor, key: Hashable) -> tuple[Tensor, ...]:
        """The loop's outputs, in memory of their own. The key tells all that the loop depends on but its inputs."""
        if self.off_because or key not in self._seen:
            self._remember(key, None)
            return loop(images, labels)
        captured = self._seen[key]
        if captured is None:
            try:
                captured = _capture(loop, images, labels, self._pool(images.device))
            except RuntimeError as error:  # a model that waits for the device, or whose shapes depend on its values
                self.off_because = f"the loop cannot be captured ({str(error).splitlines()[0]})"
                self._seen.clear()
                return loop(images, labels)
        self._remember(key, captured)
        captured.images.copy_(images)
        captured.labels.copy_(labels)
        captured.graph.replay()
        return tuple(output.clone() for output in captured.outputs)

    def forget(self) -> None:
        """Drops every graph: what they read is no longer there."""
        self._seen.clear()

    def _pool(self, device: torch.device) -> Pool:
        """That of the graphs there are, or a new one: PyTorch takes none again that the last graph has given back."""
        for captured in self._seen.values():
            if captured is not None and captured.images.device == device:
                return captured.pool
        return torch.cuda.graph_pool_handle()

    def _remember(self, key: Hashable, captured: _Captured | None) -> None:
        self._seen[key] = captured
        self._seen.move_to_end(key)
        while len(self._seen) > MOST_GRAPHS:
            self._seen.popitem(last=False)


def _capture(loop: Loop, images: Tensor, labels: Tensor, pool: Pool) -> _Captured:
    images, labels = images.clone(), labels.clone()
    graph, device = torch.cuda.CUDAGraph(), images.device
    with torch.cuda.device(device):
        before = torch.cuda.current_stream(device)
        try:
            # Other threads, such as one that pins memory, may go on calling CUDA meanwhile.
            mode: Any = {"pool": pool, "stream": _capture_stream(device), "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **mode):
                outputs = loop(images, labels)
        except BaseException:
            torch.cuda.set_stream(before)  # torch.cuda.graph leaves it where the capture cannot be ended in order
            _give_back(pool, device)
            raise
    return _Captured(graph, pool, images, labels, outputs)


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: PyTorch's own default is on the device of the first capture, and records nothing on another.

    Libraries keep a workspace for each stream, so engines share it.
    """
    return torch.cuda.Stream(device)


def _give_back(pool: Pool, device: torch.device) -> None:
    """Where PyTorch has not done so: it ends a capture before it ends allocation for it, and the former may fail."""
    with suppress(AttributeError, RuntimeError):  # no public function; and an error where allocation has been ended
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
