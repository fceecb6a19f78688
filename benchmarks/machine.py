"""What the numbers were measured on: hardware and versions; and a plain copy, to measure them against."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adt_fast._runs.machine import describe_machine, first_line

from .timing import Call


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and settings, as plain values; None where something is absent."""
    compiler = first_line(os.environ.get("CXX", "g++"), "--version")
    return {**describe_machine(device), "inductor_compiler": compiler, "git_commit": git_commit()}


def copy_call(device: torch.device, bytes_moved: int) -> Call:
    """A copy that reads and writes so many bytes in all: the bound of what only moves memory."""
    source = torch.ones(max(1, bytes_moved // 8), device=device)
    return partial(torch.empty_like(source).copy_, source)


def cache_bytes(device: torch.device) -> int:
    """The size of a GPU's second-level cache."""
    return torch.cuda.get_device_properties(device).L2_cache_size


def git_commit() -> str | None:
    """The commit of this checkout, with "-dirty" after it when files differ from it."""
    root = Path(__file__).resolve().parent.parent
    return first_line("git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
