"""What runs here: hardware and versions, for the record beside a measurement."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import safetensors
import torch

from .. import __version__
from .._operators.native import build_info
from .._support.utc import utc_now


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and settings, as plain values; None where something is absent."""
    info: dict[str, Any] = {
        "time": utc_now(),
        "cpu": _cpu_model(),
        "logical_cpus": os.cpu_count(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "adt_fast": build_info(),
        "torch_git": torch.version.git_version,
    }
    if device.type == "cuda":
        info["gpu"] = _describe_gpu(device)
    return info


def versions(device: torch.device) -> dict[str, Any]:
    """What a result on this device may depend on to the last bit, as plain values."""
    build = build_info()
    return {
        "adt_fast": __version__,
        "commit": build["commit"] or "unknown",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "safetensors": safetensors.__version__,
        "device": device_name(device),
        "threads": build["threads"],
        "instruction_set": build["cpu_instruction_set"],
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()


def first_line(*command: str) -> str | None:
    """The first line a command prints; None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    finished = subprocess.run(command, capture_output=True, text=True, timeout=30)
    lines = finished.stdout.strip().splitlines()
    return lines[0] if finished.returncode == 0 and lines else None


@cache
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_cache_bytes": properties.L2_cache_size,
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda_of_torch": torch.version.cuda,
        "triton": _triton_version(),
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__
