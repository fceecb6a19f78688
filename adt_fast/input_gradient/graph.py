"""CUDA graphs of an attack's whole inner loop: thousands of launches become one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

Loop = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(images, labels) -> tensors; on the device alone, without waiting for it."""

_MOST_GRAPHS = 4


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    outputs: tuple[Tensor, ...]


class LoopGraphs:
    """Runs loops, from the second time on as CUDA graphs, one for each key.

    The first run of a key is an ordinary one, which warms up libraries and caches, so that a shape that comes once, as
    the last batch of an epoch may, costs no capture. Of more than four keys the one used longest ago is dropped.
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
                captured = _capture(loop, images, labels)
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

    def _remember(self, key: Hashable, captured: _Captured | None) -> None:
        self._seen[key] = captured
        self._seen.move_to_end(key)
        while len(self._seen) > _MOST_GRAPHS:
            self._seen.popitem(last=False)


def _capture(loop: Loop, images: Tensor, labels: Tensor) -> _Captured:
    images, labels = images.clone(), labels.clone()
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as one that pins memory, may go on calling CUDA meanwhile.
    with torch.cuda.device(images.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = loop(images, labels)
    return _Captured(graph, images, labels, outputs)
