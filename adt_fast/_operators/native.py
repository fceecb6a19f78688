"""Loads the native module, and says what was built and what is in use."""

from __future__ import annotations

import os
import platform
import re
import warnings
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from .._commit import commit

BACKEND_VARIABLE = "ADT_FAST_BACKEND"
INSTRUCTION_SET_VARIABLE = "ADT_FAST_CPU_ISA"

# The codes of adt::DType (csrc/kernels.h).
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class NativeUnavailableWarning(RuntimeWarning):
    """The native module did not load; the operators run in plain PyTorch."""


def _load() -> tuple[ModuleType | None, str]:
    """The native module, or None and the reason."""
    backend = os.environ.get(BACKEND_VARIABLE, "auto")
    if backend not in ("auto", "reference"):
        raise ValueError(f"{BACKEND_VARIABLE} must be 'auto' or 'reference', got {backend!r}")
    if backend == "reference":
        return None, f"{BACKEND_VARIABLE}=reference is set"
    try:
        from .. import _C
    except ImportError as error:
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"adt_fast's native module did not load ({reason}); the operators run in plain PyTorch, several times "
            "slower. Cure: install again on this machine with `pip install --force-reinstall --no-deps .` (it needs a "
            "C++17 compiler), and see `adt-fast info`.",
            NativeUnavailableWarning,
            stacklevel=2,
        )
        return None, reason
    if instruction_set := os.environ.get(INSTRUCTION_SET_VARIABLE):
        try:
            _C.use_instruction_set(instruction_set)
        except ValueError as error:
            raise ValueError(f"{INSTRUCTION_SET_VARIABLE}: {error}") from None
    return _C, ""


if TYPE_CHECKING:  # whether the module is there, :func:`runs_on` tells; calls are checked against _C.pyi
    from .. import _C

    module = _C

    unavailable_because: str
else:
    module, unavailable_because = _load()


def runs_on(device: torch.device) -> bool:
    """Whether the native module has kernels for tensors on this device."""
    if module is None:
        return False
    if device.type == "cuda":
        return module.with_cuda and _has_kernels_for(module.cuda_architectures, device)
    return device.type == "cpu"


@cache
def _has_kernels_for(architectures: str, device: torch.device) -> bool:
    """Whether kernels that were built for some architectures, as CMake names them, run on a GPU."""
    capability = torch.cuda.get_device_capability(device)
    return any(_runs_there(one, capability) for one in architectures.split())


def _runs_there(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a GPU of a compute capability, by NVIDIA's rules of compatibility.

    Machine code, ``86-real``, runs within its major version, from its minor version on; PTX, ``90-virtual``, on that
    and on all that came later; ``86`` is both. ``90a`` is for the very same capability, ``100f`` for its major version.
    """
    named = re.fullmatch(r"(\d+)(\d)([af]?)(?:-(real|virtual))?", architecture)
    if named is None:  # "native" and "all" do not tell for which, and whoever built so meant the GPUs that are there
        return True
    built, suffix, kind = (int(named[1]), int(named[2])), named[3], named[4]
    if suffix == "a":
        return built == capability
    has_ptx_for_later_ones = kind != "real" and not suffix
    return built <= capability and (built[0] == capability[0] or has_ptx_for_later_ones)


def target(device: torch.device) -> tuple[int, int, int]:
    """(device, stream, threads) for a native call: the current CUDA stream of the device, or the CPU's threads."""
    if device.type == "cpu":
        return -1, 0, torch.get_num_threads()
    return device.index, torch.cuda.current_stream(device).cuda_stream, 0


def build_info() -> dict[str, Any]:
    """What was built, what is in use on this machine, and why any fast path is off.

    Returns:
        A dict of plain values:

        - ``version``, ``torch``, ``python``: versions.
        - ``commit``: that of adt_fast, with ``-dirty`` behind it where its files had been changed; ``""`` if unknown.
        - ``native``: whether the native module is loaded; ``native_off_because`` says why not.
        - ``compiler``: what built it.
        - ``cpu_instruction_sets``: those built; ``cpu_instruction_set``: the one in use.
        - ``threads``: how many threads an operator uses; ``thread_runtime``: who runs them.
        - ``cuda_built``, ``cuda_architectures``, ``cuda_toolkit``: the GPU kernels in the module.
        - ``cuda_devices``: names and compute capabilities of the GPUs that torch sees.
        - ``cuda_off_because``: why GPU kernels are not in use, on all GPUs or on those that it names, or ``""``.
    """
    from .. import __version__

    info: dict[str, Any] = {
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "native": module is not None,
        "native_off_because": unavailable_because,
        "threads": torch.get_num_threads(),
        "cuda_devices": _cuda_devices(),
    }
    if module is None:
        return info | {
            "compiler": "",
            "cpu_instruction_sets": [],
            "cpu_instruction_set": "",
            "thread_runtime": "torch",
            "cuda_built": False,
            "cuda_architectures": [],
            "cuda_toolkit": "",
            "cuda_off_because": "the native module is not loaded",
        }
    return info | {
        "compiler": module.compiler,
        "cpu_instruction_sets": module.instruction_sets().split(","),
        "cpu_instruction_set": module.instruction_set(),
        "thread_runtime": module.thread_runtime(),
        "cuda_built": module.with_cuda,
        "cuda_architectures": module.cuda_architectures.split(),
        "cuda_toolkit": module.cuda_toolkit,
        "cuda_off_because": _cuda_off_because(module),
    }


def _cuda_devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    names = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    capabilities = (torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    return [f"{name} (compute capability {major}.{minor})" for name, (major, minor) in zip(names, capabilities)]


def _cuda_off_because(native: ModuleType) -> str:
    if not native.with_cuda:
        return native.without_cuda_because
    count, error = native.cuda_devices()
    if count == 0:
        return error or "no CUDA device was found"
    if not torch.cuda.is_available():
        return "this build of torch has no CUDA, or does not see the GPU"
    without = [name for index, name in enumerate(_cuda_devices())
               if not _has_kernels_for(native.cuda_architectures, torch.device("cuda", index))]  # fmt: skip
    if without:
        return (f"the module has kernels for {native.cuda_architectures}, which do not run on {', '.join(without)}: "
                "plain PyTorch does there; build with ADT_FAST_CUDA_ARCHITECTURES")
    return ""
