"""What tests share: devices, threads, folders, and a Python without matplotlib.

A test that takes the `device` fixture runs on the CPU and, where there is one, on a GPU.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import adt_fast


def _cuda_off_because() -> str:
    """Why tests marked `cuda` cannot run here, or an empty string."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return adt_fast.build_info()["cuda_off_because"]


CUDA_OFF_BECAUSE = _cuda_off_because()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device the operators run on natively; `cuda` is a particular one, as kernels need an index."""
    return torch.device("cuda", torch.cuda.current_device()) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, which wait for each other where other processes use the machine; and sums
    over several threads have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def import_(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return find(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", import_)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if CUDA_OFF_BECAUSE and item.get_closest_marker("cuda"):
        pytest.skip(f"no GPU kernels: {CUDA_OFF_BECAUSE}")
