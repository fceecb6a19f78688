"""Times calls fairly: warmed up, interleaved, and reported by their median and spread."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one number a repeat."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        return min(self.seconds)

    def percentile(self, percent: float) -> float:
        """Linear between the two nearest repeats."""
        ordered = sorted(self.seconds)
        place = (len(ordered) - 1) * percent / 100.0
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    def as_dict(self) -> dict[str, float | list[float]]:
        """Milliseconds: median, 10th and 90th percentile, fastest, and every repeat."""
        return {
            "median_ms": self.median * 1e3,
            "p10_ms": self.percentile(10) * 1e3,
            "p90_ms": self.percentile(90) * 1e3,
            "fastest_ms": self.fastest * 1e3,
            "repeats_ms": [seconds * 1e3 for seconds in self.seconds],
        }


def time_interleaved(
    contestants: Mapping[str, Sequence[Call]],
    device: torch.device,
    *,
    repeats: int,
    warmup: int = 3,
    cuda_graph: bool = True,
) -> dict[str, Timing]:
    """Times the contestants in turn, round after round, so that whatever the machine does meanwhile hits all alike.

    Every other round goes backwards, so that nobody always follows the same neighbour.

    Args:
        contestants: name -> one call per set of inputs. All sets are called in a row and the time is divided by their
            number: with sets that together exceed the cache, each call finds its inputs in memory.
        device: where the calls run. On the CPU a wall clock times them; on CUDA, events.
        repeats: rounds that are timed, >= 1.
        warmup: rounds before, not timed, >= 1; compilation happens there.
        cuda_graph: on CUDA, capture each contestant's row of calls and time replays, which leaves out what the host
            needs to launch them.

    Returns:
        name -> its timing.
    """
    rounds = {name: _round_of(calls, device, warmup, cuda_graph) for name, calls in contestants.items()}
    clock = _time_on_cuda if device.type == "cuda" else _time_on_cpu
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(rounds)
    with _no_garbage_collection():
        for repeat in range(repeats):
            for name in order if repeat % 2 == 0 else reversed(order):
                seconds[name].append(clock(rounds[name]) / len(contestants[name]))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def keep_freed_memory() -> None:
    """Asks the C library to keep freed memory for the next call instead of returning it to the system.

    Otherwise the page faults of fresh outputs fall on one contestant or another by the state of the heap, and can cost
    as much as the work. A C library other than glibc is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**30)


def _round_of(calls: Sequence[Call], device: torch.device, warmup: int, cuda_graph: bool) -> Call:
    """One call that makes all of `calls`, warmed up."""

    def run() -> None:
        for call in calls:
            call()

    if device.type != "cuda" or not cuda_graph:
        for _ in range(warmup):
            run()
        return run
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    graph.replay()
    return graph.replay


def _time_on_cpu(run: Call) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _time_on_cuda(run: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    run()  # keeps the GPU busy while the host queues what is timed
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


@contextmanager
def _no_garbage_collection():
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
