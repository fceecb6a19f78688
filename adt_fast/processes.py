"""The processes that train one model together, each on its share of the images; for one process, a null version.

They are started by ``torchrun --nproc-per-node N``. Calls that exchange something have to be made by all processes, in
one order; a process that does not come makes the others wait. What may fail in one process alone (a file that is
missing on its node, a folder that is in use) therefore belongs into :meth:`Processes.all_or_none` or
:meth:`Processes.first_goes_first`, which fail in all. Anywhere else a process that fails ends, and torchrun then ends
the others, which hang no longer than that takes; without torchrun, until PyTorch's timeout (30 minutes, or 10 on GPUs).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._support.checks import check_int
from ._support.model_state import distributed_wrapper
from .checkpoint import pack_state, unpack_state

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


class AnotherProcessFailed(ValueError):
    """What this process cannot go on without has failed in another one; the message says where and why."""


class Processes:
    """Those of a process group, which is the one that the model's gradients are averaged over; or one process alone.

    Numbers and states are exchanged through the CPU's memory, by gloo, whatever the group's own backend is. Alone,
    every call gives back what it was given.

    Args:
        group: of this process and others; None for this process alone.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        is_first: whether the rank is 0.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.is_first = self.rank == 0
        self._group = group

    @classmethod
    def alone(cls) -> Processes:
        """This process, which trains without others."""
        return cls(None)

    @classmethod
    def of(cls, model: nn.Module) -> Processes:
        """Those that share a DistributedDataParallel, whose group they are, torch.compile around it or not; for any
        other model, this one alone."""
        wrapper = distributed_wrapper(model)
        return cls(None if wrapper is None else wrapper.process_group)

    @classmethod
    @contextmanager
    def from_torchrun(cls, device: torch.device) -> Iterator[Processes]:
        """All that torchrun started, as PyTorch's default group while the context lasts; without torchrun, or where it
        started one, this process alone.

        Args:
            device: where this process trains, see :func:`local_device`. Groups of GPUs use NCCL, others gloo.

        Raises:
            ValueError: naming the environment variable, where torchrun's are not all there, or have impossible values.
            RuntimeError: if the others do not come, or there is a default group already.
        """
        ranks = _torchrun_ranks()
        if ranks is None or ranks["WORLD_SIZE"] == 1:
            yield cls.alone()
            return
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
        ended = False
        try:
            yield cls(dist.group.WORLD)
            ended = True
        finally:
            # Of NCCL's, destroying waits for what is under way, which after a failure may never end.
            if ended or backend == "gloo":
                dist.destroy_process_group()

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each of the ``values`` over the processes, in float64 and in order of rank: the same bits in all
        of them."""
        total, *others = self._gathered(torch.tensor(values, dtype=torch.float64, device="cpu"))
        for other in others:
            total = total + other
        return total.tolist()

    def counts(self, n: int) -> list[int]:
        """The number ``n`` that each process gives, by rank."""
        return [int(number) for number in self._gathered(torch.tensor(n, device="cpu"))]

    def gather(self, state: Any) -> list[Any] | None:
        """The state of each process, by rank, on the first one; None on the others.

        state: what :func:`adt_fast.checkpoint.pack_state` takes, its plain values such as JSON has. Tensors arrive on
            the CPU, and tuples as lists; nothing is pickled.
        """
        if self._group is None:
            return [state]
        content = _to_bytes(state)
        lengths = self.counts(len(content))
        if not self.is_first:
            dist.send(_tensor_of(content), self._global_rank(0), group=self._cpu_group)
            return None
        contents = [torch.empty(length, dtype=torch.uint8, device="cpu") for length in lengths[1:]]
        for rank, received in enumerate(contents, start=1):
            dist.recv(received, self._global_rank(rank), group=self._cpu_group)
        return [_from_bytes(part) for part in (content, *(part.numpy().tobytes() for part in contents))]

    def from_first(self, value: Any) -> Any:
        """The value that the first process gives, in all; the others' is not looked at.

        value: as for :meth:`gather`.
        """
        if self._group is None:
            return value
        content = _to_bytes(value) if self.is_first else b""
        length = self.counts(len(content))[0]
        sent = _tensor_of(content) if self.is_first else torch.empty(length, dtype=torch.uint8, device="cpu")
        dist.broadcast(sent, self._global_rank(0), group=self._cpu_group)
        return _from_bytes(sent.numpy().tobytes())

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self._group is not None:
            dist.barrier(self._cpu_group)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """What is done inside is done by all processes or fails in all: an exception in one ends the block in each.

        The processes wait for each other at the end, and must not exchange anything inside.

        Raises:
            AnotherProcessFailed: in the processes that had no exception of their own.
        """
        try:
            yield
        except BaseException as error:
            self._failures(error)
            raise
        failures = self._failures(None)
        for rank, failure in enumerate(failures):
            if failure:
                raise AnotherProcessFailed(f"process {rank} of {self.size} failed: {failure}")

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first process does what is inside alone, such as a download, and then the others, which find it done.

        An exception in one process is one in all, as in :meth:`all_or_none`; the others do not begin where the first
        one failed.

        Raises:
            AnotherProcessFailed: in the processes that had no exception of their own.
        """
        if self.is_first:
            with self.all_or_none():
                yield
            with self.all_or_none():
                pass
        else:
            with self.all_or_none():
                pass
            with self.all_or_none():
                yield

    @torch.no_grad()
    def average_buffers(self, module: nn.Module) -> None:
        """Floating-point buffers of a ``module``, such as a batch norm's running statistics, become their mean.

        In one all-reduce of the model's own group, in float64; so narrower ones that are equal stay as they are, bit
        for bit. All processes get the same bits. Integer and bool buffers are left alone.
        """
        if self._group is not None:
            buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
            average_(buffers, self._group, dtype=torch.float64)

    @cached_property
    def _cpu_group(self) -> dist.ProcessGroup:
        """A gloo group of the same processes, made when all of them use it first."""
        if dist.get_backend(self._group) == "gloo":
            assert self._group is not None  # one process alone sends nothing
            return self._group
        ranks = dist.get_process_group_ranks(self._group)
        return dist.new_group(ranks, backend="gloo", use_local_synchronization=True)

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        """A CPU tensor of one shape and dtype from each process, by rank."""
        if self._group is None:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor, group=self._cpu_group)
        return gathered

    def _failures(self, error: BaseException | None) -> list[str]:
        """What failed in each process, by rank; an empty string where nothing did."""
        if self._group is None:
            return [""]
        # A path that is no UTF-8 must not keep the message from the others, who wait for it.
        content = b"" if error is None else f"{type(error).__name__}: {error}".encode(errors="backslashreplace")
        lengths = self.counts(len(content))
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device="cpu")
        padded[: len(content)] = _tensor_of(content)
        gathered = self._gathered(padded) if max(lengths) else [padded] * self.size
        return [part[:length].numpy().tobytes().decode() for part, length in zip(gathered, lengths)]

    def _global_rank(self, rank: int) -> int:
        assert self._group is not None  # one process alone sends nothing
        return dist.get_global_rank(self._group, rank)


def average_(tensors: Sequence[Tensor], group: dist.ProcessGroup | None, *, dtype: torch.dtype | None = None) -> None:
    """Tensors become their means over the processes, in place, by one all-reduce.

    Args:
        tensors: on one device, of any shapes; as many, of the same shapes, in every process.
        group: the processes; None for the default group.
        dtype: what is added up in. Default: the tensors' own.
    """
    if not tensors:
        return
    together = torch.cat([tensor.to(dtype or tensor.dtype).flatten() for tensor in tensors])
    dist.all_reduce(together, group=group)
    together.div_(dist.get_world_size(group))
    for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def local_device(device: torch.device) -> torch.device:
    """Where this process trains: the ``device`` itself, or, under torchrun, of GPUs ("cuda") the one with the number of
    the process on its node.

    Raises:
        ValueError: under torchrun with several processes, for "cuda:INDEX", as each needs a GPU of its own, and where
            there are fewer GPUs than processes on this node; see :meth:`Processes.from_torchrun` too.
    """
    ranks = _torchrun_ranks()
    if device.type != "cuda" or ranks is None or ranks["WORLD_SIZE"] == 1:
        return device
    if device.index is not None:
        raise ValueError(f"device must be auto, cuda or cpu for several processes, each with its GPU, got {device}")
    here = _number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in os.environ else ranks["LOCAL_RANK"] + 1
    if here > torch.cuda.device_count():
        raise ValueError(f"--nproc-per-node must be at most {torch.cuda.device_count()}, the number of GPUs here, got "
                         f"{here}; processes on the CPU need --device cpu")
    return torch.device("cuda", ranks["LOCAL_RANK"])


def started_by_torchrun() -> bool:
    """Whether any of its variables is in the environment."""
    return any(name in os.environ for name in _RANKS)


def end_process(status: int = 0) -> NoReturn:
    """The last line of a program in several processes: ends this one, without Python's own clearing up if torchrun
    started it.

    A thread of gloo lets go of the tensors of the last exchange when it comes to it. If Python is on its way out by
    then, it aborts the process: one that has done its work would look like one that has failed, and torchrun would end
    the others. What was printed is written first; functions of ``atexit`` are not called. Without torchrun, this is
    ``sys.exit``.

    status: 0 where all went well, to 255.

    Raises TypeError or ValueError for a bad status.
    """
    check_int("status", status, 0, 256)
    if started_by_torchrun():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _torchrun_ranks() -> dict[str, int] | None:
    """RANK, WORLD_SIZE and LOCAL_RANK as torchrun set them, with an address; None without torchrun.

    Raises ValueError that names the variable, where one is missing or impossible.
    """
    if not started_by_torchrun():
        return None
    for name in (*_RANKS, *_ADDRESS):
        if not os.environ.get(name):
            raise ValueError(f"{name} must be in the environment for several processes, as torchrun sets it: "
                             f"{', '.join(given for given in _RANKS if given in os.environ)} is there")
    size = _number("WORLD_SIZE", 1)
    _number("MASTER_PORT", 0, 2**16)
    return {"WORLD_SIZE": size, "RANK": _number("RANK", 0, size), "LOCAL_RANK": _number("LOCAL_RANK", 0, size)}


def _number(name: str, lowest: int, end: int | None = None) -> int:
    """An environment variable that is a whole number in [lowest, end)."""
    text = os.environ[name]
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < lowest or (end is not None and number >= end):
        wanted = f"at least {lowest}" if end is None else f"in [{lowest}, {end - 1}]"
        raise ValueError(f"{name} must be a whole number {wanted}, got {text!r} in the environment")
    return number


def _to_bytes(state: Any) -> bytes:
    """The length of the structure's JSON in 8 bytes, the JSON, and the tensors as a safetensors file."""
    tensors, structure = pack_state(state)
    plain = json.dumps(structure).encode()
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return len(plain).to_bytes(8, "little") + plain + safetensors.torch.save(tensors)


def _from_bytes(content: bytes) -> Any:
    end = 8 + int.from_bytes(content[:8], "little")
    return unpack_state(safetensors.torch.load(content[end:]), json.loads(content[8:end]))


def _tensor_of(content: bytes) -> Tensor:
    if not content:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
