"""CUDA graphs of inner loops without CUDA: what is captured where, and what is left of a capture that fails.

A capture is played on the CPU, where it computes, and a replay does nothing: the outputs are there.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast.compat import adt_loss
from adt_fast.compat.published import _maximizers
from adt_fast.input_gradient import EngineOptions, InputGradient
from adt_fast.input_gradient.graph import MOST_GRAPHS, LoopGraphs, _capture_stream
from adt_fast.losses import cross_entropy
from adt_fast.methods import create_method
from adt_fast.noise import NoiseStream
from adt_fast.trainer import Trainer

FLOAT32 = EngineOptions(precision="fp32", graph=True)


class Cuda:
    """What torch.cuda does of a capture, after its source: a current stream, and pools that count their graphs."""

    def __init__(self) -> None:
        self.stream = "the caller's"
        self.capturing = False
        self.breaks = False
        """Whether a capture that fails cannot be ended, as after a call that no capture allows."""
        self.captures: list[tuple[str, tuple[int, int]]] = []
        self.graphs_of: dict[tuple[int, int], int] = {}
        self.allocating: list[tuple[int, int]] = []

    class Graph:
        def replay(self) -> None:
            pass

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        assert self.graphs_of[pool] > 0 or not any(pool == used for _, used in self.captures), "a pool given back"
        before, self.stream = self.stream, stream
        self.graphs_of[pool] += 1
        self.allocating.append(pool)
        self.capturing = True
        try:
            yield
        except RuntimeError as error:
            if self.breaks:
                raise RuntimeError("operation failed due to a previous error during capture") from error
            self._end(pool, before)
            self.graphs_of[pool] -= 1  # as the graph is gone
            raise
        finally:
            self.capturing = False
        self._end(pool, before)
        self.captures.append((stream, pool))

    def _end(self, pool, before):
        self.allocating.remove(pool)
        self.stream = before

    def new_pool(self):
        pool = (0, len(self.graphs_of) + 1)
        self.graphs_of[pool] = 0
        return pool

    def end_allocation(self, device, pool):
        if pool not in self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating.remove(pool)

    def release(self, device, pool):
        self.graphs_of[pool] -= 1


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Cuda.Graph)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", fake.new_pool)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(fake, "stream", stream))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end_allocation, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", fake.release, raising=False)
    monkeypatch.setattr(InputGradient, "_graph_wanted", lambda self, device: self.twin is not None)
    _capture_stream.cache_clear()
    yield fake
    _capture_stream.cache_clear()


@pytest.mark.parametrize("breaks", [False, True])
def test_a_capture_that_fails_leaves_no_trace(cuda, breaks):
    """Neither magnitudes that no kernel has computed, nor a stream, nor an allocator that still allocates for it."""
    cuda.breaks = breaks
    losses = 0

    def loss(logits, labels):
        nonlocal losses
        losses += cuda.capturing
        if losses == 2:
            losses = 0
            raise RuntimeError("operation not permitted when stream is capturing")
        return cross_entropy(logits, labels) * (torch.nan if cuda.capturing else 1)

    def loop(session, images, labels):
        return tuple(session(images, labels).grad for _ in range(2))

    engine = InputGradient(TinyClassifier(), loss=loss, options=FLOAT32)
    first, second = (engine.run(loop, *tiny_batch(5), key="two") for _ in range(2))
    assert torch.equal(first[0], second[1])
    assert "cannot be captured" in engine.features()["graph"]
    assert cuda.stream == "the caller's" and cuda.allocating == [] and set(cuda.graphs_of.values()) == {0}


def captured(cuda, graphs, *, key, device="cpu"):
    """The stream and the pool of a loop run twice."""
    for _ in range(2):
        graphs(lambda images, labels: (images + 1,), *(torch.zeros(2, device=device) for _ in range(2)), key)
    return cuda.captures[-1]


def test_every_device_has_a_capture_stream_of_its_own(cuda):
    devices = ["cpu", "meta", "cpu"]
    streams = [captured(cuda, LoopGraphs(), key="one", device=device)[0] for device in devices]
    assert streams == [f"a stream of {device}" for device in devices]


def test_graphs_of_one_device_share_their_memory(cuda):
    graphs = LoopGraphs()
    first, second = (captured(cuda, graphs, key=key)[1] for key in "ab")
    assert first == second != captured(cuda, graphs, key="c", device="meta")[1]


def test_memory_that_the_last_graph_gave_back_is_not_asked_for_again(cuda):
    graphs = LoopGraphs()
    pool = captured(cuda, graphs, key="a")[1]
    graphs.forget()
    cuda.graphs_of[pool] = 0  # as PyTorch does when a graph is gone
    assert captured(cuda, graphs, key="a")[1] != pool


def test_the_graph_used_longest_ago_is_dropped(cuda):
    graphs = LoopGraphs()
    for key in range(MOST_GRAPHS + 3):
        captured(cuda, graphs, key=key)
    assert graphs.captured == MOST_GRAPHS and len(cuda.captures) == MOST_GRAPHS + 3
    captured(cuda, graphs, key=3)
    assert len(cuda.captures) == MOST_GRAPHS + 3
    captured(cuda, graphs, key=0)
    assert len(cuda.captures) == MOST_GRAPHS + 4


def test_every_part_of_an_accumulated_step_has_a_graph(cuda):
    """And all of them share one pool, so that parts save the memory that they are for."""
    model = TinyClassifier()
    method = create_method("at-pgd", model, steps=2, engine=FLOAT32)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), method, accumulation_steps=6)
    for _ in range(3):
        trainer.step(*tiny_batch(12))
    assert len(cuda.captures) == 6 and len({pool for _, pool in cuda.captures}) == 1


def test_the_published_loss_has_one_graph_for_all_minibatches(cuda):
    """Its noise is new for every minibatch, and where it was; a stream that is given is the caller's."""
    model, given = TinyClassifier(), NoiseStream(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seeds = []
    for noise in (None, None, given, None, None):
        adt_loss(model, *tiny_batch(4), optimizer, perturb_steps=1, num_samples=1, noise=noise)
        seeds.append(_maximizers[optimizer][1].noise.seed)
    assert len(set(seeds)) == 5 and seeds[2] == given.seed == 3 and len(cuda.captures) == 1
