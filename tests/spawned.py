"""Processes that share one call."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def spawned(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Calls function(rank, *arguments) in so many processes; an error in one is an error here.

    They end without Python's own clearing up, in which a thread of gloo may abort them: see `end_process` of
    adt_fast.processes.
    """
    mp.spawn(_called, (function, arguments), nprocs=processes)


def _called(rank: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    function(rank, *arguments)
    os._exit(0)
