"""Two processes in a group of gloo, which call functions together, test after test; and torchrun's, for the real thing.

Whatever happens in them ends in time: a call that does not come back is an error, and the processes are killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import adt_fast

SIZE = 2

PYTHONPATH = os.pathsep.join(str(Path(file).parents[level]) for file, level in ((adt_fast.__file__, 1), (__file__, 0)))
"""Where processes find the adt_fast that is tested, and the tests."""


class Failed(AssertionError):
    """A process has raised something, or is dead, or late."""


class TwoProcesses:
    """Started when first called, and anew after a failure, which leaves a group that nobody knows the state of.

    folder: for the store of each group.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = 0
        self._processes: list[tuple[Any, Any]] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any, timeout: float = 60) -> list[Any]:
        """What function(rank, SIZE, *arguments) gives in each of them; it is found by its module and name."""
        if not self._processes:
            self._start()
        try:
            for _, connection in self._processes:
                connection.send((function, arguments))
            end = time.monotonic() + timeout
            answers = [self._answer(rank, end) for rank in range(SIZE)]
        except BaseException:
            self.close()
            raise
        failures = [f"process {rank}:\n{text}" for rank, (text, _) in enumerate(answers) if text]
        if failures:
            self.close()
            raise Failed("\n".join(failures))
        return [value for _, value in answers]

    def close(self) -> None:
        for process, connection in self._processes:
            process.kill()
            process.join()
            connection.close()
        self._processes = []

    def _start(self) -> None:
        # Forked from a process that has imported everything and run nothing; it finds modules by this alone.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["adt_fast.cli", "torch._dynamo", "test_resume", "sklearn.datasets"])
        self._starts += 1
        for rank in range(SIZE):
            here, there = context.Pipe()
            store = f"file://{self._folder}/store{self._starts}"
            process = context.Process(target=_serve, args=(rank, store, there), daemon=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", PYTHONPATH)
                process.start()
            there.close()
            self._processes.append((process, here))

    def _answer(self, rank: int, end: float) -> tuple[str, Any]:
        _, connection = self._processes[rank]
        if not connection.poll(max(0.0, end - time.monotonic())):
            raise Failed(f"process {rank} has not answered in time")
        try:
            return connection.recv()
        except EOFError:
            raise Failed(f"process {rank} is dead") from None


def _serve(rank: int, store: str, connection: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=30))
    while True:
        function, arguments = connection.recv()
        try:
            connection.send(("", function(rank, SIZE, *arguments)))
        except BaseException:
            connection.send((traceback.format_exc(), None))


class Torchrun:
    """``python -m torch.distributed.run --nproc-per-node 2 WORDS``, in a session of its own."""

    def __init__(self, *words: str | Path, cwd: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(SIZE), *map(str, words)]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Waits for it: its exit status, what it has printed, and its errors."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.terminate()  # it ends its own
            try:
                out, err = self.process.communicate(timeout=35)
            finally:
                self.process.kill()
            raise Failed(f"torchrun had not ended after {timeout} s\n{out}{err}") from None
        return self.process.returncode, out, err

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)
