"""Processes that train together: what they exchange is what each gave, and a failure in one is one in all."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from spawned import spawned
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adt_fast.processes import AnotherProcessFailed, Processes, end_process, local_device

gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
SIZE = 3
AWKWARD = [1e16, 1.0, -1e16]  # its sum depends on the order


def state_of(rank):
    """Another size on each process; a tuple, keys that are numbers, and no tensor at all on the last."""
    if rank == SIZE - 1:
        return {"name": "é"}
    noise = torch.arange(4.0 * rank).view(2, -1).T  # not contiguous
    return {"noise": noise, 7: [torch.tensor(True), None], "half": (torch.tensor([0.1]).bfloat16(), 0.1)}


def failed_in(call, *, rank, of):
    """What the call raises, here or in another process."""
    with pytest.raises((LookupError, AnotherProcessFailed)) as caught:
        call()
    assert isinstance(caught.value, LookupError if dist.get_rank() == rank else AnotherProcessFailed)
    if dist.get_rank() != rank:
        assert str(caught.value) == f"process {rank} of {of} failed: LookupError: ö\\udcff"


def run_three(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    model = DistributedDataParallel(nn.Linear(1, 1))
    processes = Processes.of(model)
    assert (processes.rank, processes.size, processes.is_first) == (rank, SIZE, rank == 0)
    assert Processes.of(torch.compile(model)).size == SIZE
    exchange(processes, rank)
    fail(processes, rank, folder)
    average(processes, rank)
    of_a_part(rank)
    processes.barrier()
    dist.destroy_process_group()


def exchange(processes, rank):
    sums = processes.sum([AWKWARD[rank], 0.1 * rank, rank])
    assert sums == [(AWKWARD[0] + AWKWARD[1]) + AWKWARD[2], 0.1 * 0 + 0.1 * 1 + 0.1 * 2, 3.0]
    assert processes.counts(2**40 + rank) == [2**40, 2**40 + 1, 2**40 + 2]
    states = processes.gather(state_of(rank))
    assert (states is None) == (rank > 0)
    for given, state in zip(map(state_of, range(SIZE)), states or []):
        if "half" in given:
            given["half"] = list(given["half"])
        assert given.keys() == state.keys()
        torch.testing.assert_close(state.get("noise", 0), given.get("noise", 0), rtol=0, atol=0)
        assert str(state) == str(given)  # dtypes, plain values and their nesting
    assert processes.from_first({"stop": [rank, None]} if rank == 0 else object()) == {"stop": [0, None]}


def fail(processes, rank, folder):
    ran = []

    def in_one(failing):
        with processes.all_or_none():
            if rank == failing:
                raise LookupError("ö\udcff")  # the latter is a byte of a path that is no UTF-8

    def first_first(failing):
        with processes.first_goes_first():
            ran.append(rank)
            if rank == failing:
                raise LookupError("ö\udcff")  # the latter is a byte of a path that is no UTF-8

    failed_in(lambda: in_one(0), rank=0, of=SIZE)
    failed_in(lambda: in_one(2), rank=2, of=SIZE)
    in_one(None)
    failed_in(lambda: first_first(0), rank=0, of=SIZE)
    assert ran == [0] * (rank == 0)
    failed_in(lambda: first_first(1), rank=1, of=SIZE)
    with processes.first_goes_first():
        (folder / "downloaded").open("x" if rank == 0 else "r").close()


def average(processes, rank):
    module = nn.Module()
    module.register_buffer("mean", torch.tensor([[1.0, 2.0], [3.0, rank]]))
    module.register_buffer("precise", torch.tensor([1e-9 * rank, 1.0], dtype=torch.float64), persistent=False)
    module.register_buffer("equal", torch.rand(100, generator=torch.Generator().manual_seed(0)))
    module.register_buffer("batches", torch.tensor(rank))
    equal = module.equal.clone()
    processes.average_buffers(module)
    torch.testing.assert_close(module.mean, torch.tensor([[1.0, 2.0], [3.0, 1.0]]), rtol=0, atol=0)
    torch.testing.assert_close(module.precise, torch.tensor([1e-9, 1.0], dtype=torch.float64), rtol=1e-15, atol=0)
    assert torch.equal(module.equal, equal)
    assert module.batches == rank
    processes.average_buffers(nn.Linear(1, 1))


def of_a_part(rank):
    """The last two processes, whose ranks are others in their own group."""
    part = dist.new_group([1, 2])
    if rank > 0:
        processes = Processes(part)
        assert processes.rank == rank - 1
        assert processes.from_first(rank) == 1
        states = processes.gather(rank)
        assert states == ([1, 2] if rank == 1 else None)


@gloo
def test_three_processes_exchange_and_fail_together(tmp_path):
    spawned(run_three, (tmp_path,), SIZE)


def test_alone_everything_is_what_was_given():
    processes = Processes.of(nn.BatchNorm1d(2))
    assert (processes.rank, processes.size, processes.is_first) == (0, 1, True)
    state = {"a": (1, torch.ones(2))}
    assert processes.sum([0.1, 2]) == [0.1, 2.0]
    assert processes.counts(3) == [3]
    (gathered,) = processes.gather(state)
    assert gathered is state
    assert processes.from_first(state) is state
    processes.barrier()
    processes.average_buffers(nn.BatchNorm1d(2))
    for together in (processes.all_or_none, processes.first_goes_first):
        with pytest.raises(KeyError), together():
            raise KeyError


def under_torchrun(monkeypatch, **changed):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (variables | {"LOCAL_WORLD_SIZE": None} | changed).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", None), ("RANK", "2"), ("RANK", "-1"), ("RANK", "one"), ("WORLD_SIZE", None), ("WORLD_SIZE", "0"),
     ("LOCAL_RANK", None), ("LOCAL_RANK", "2"), ("MASTER_ADDR", ""), ("MASTER_PORT", None), ("MASTER_PORT", "65536")],
)  # fmt: skip
def test_impossible_variables_are_named(monkeypatch, name, value):
    under_torchrun(monkeypatch, **{name: value})
    with pytest.raises(ValueError, match=f"^{name} must"), Processes.from_torchrun(torch.device("cpu")):
        pass
    assert not dist.is_initialized()


@pytest.mark.parametrize("ranks", [None, ("0", "1")], ids=["without torchrun", "one of torchrun's"])
def test_one_process_needs_no_group(monkeypatch, ranks):
    rank, size = ranks or (None, None)
    under_torchrun(monkeypatch, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size)
    with Processes.from_torchrun(torch.device("cpu")) as processes:
        assert processes.size == 1 and not dist.is_initialized()
    assert local_device(torch.device("cuda:1")) == torch.device("cuda:1")


def start_by_variables(rank, port):
    with pytest.MonkeyPatch.context() as patch:
        under_torchrun(patch, RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=port)
        with Processes.from_torchrun(torch.device("cpu")) as processes:
            assert processes.counts(rank) == [0, 1]
        assert not dist.is_initialized()


@gloo
def test_torchrun_variables_start_a_group_that_ends_with_the_context():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    spawned(start_by_variables, (port,), 2)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    under_torchrun(monkeypatch, LOCAL_WORLD_SIZE="2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device(torch.device("cuda")) == torch.device("cuda:1")
    assert local_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="device must be auto, cuda or cpu for several processes"):
        local_device(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--nproc-per-node must be at most 1, the number of GPUs here, got 2"):
        local_device(torch.device("cuda"))


def test_the_processes_of_torchrun_end_without_python_clearing_up(monkeypatch, capfd):
    """What is printed is not lost."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):  # of the line behind, which is not reached without the patch
        print("printed", end="")
        end_process(2)
    assert ended == [2] and capfd.readouterr().out == "printed"
    for status, error in ((256, ValueError), (None, TypeError)):
        with pytest.raises(error, match="status must be"):
            end_process(status)
    monkeypatch.delenv("RANK")
    with pytest.raises(SystemExit, match="0"):
        end_process()
    assert ended == [2]
