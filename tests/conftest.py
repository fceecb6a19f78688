"""Devices: a test that takes the `device` fixture runs on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if CUDA_OFF_BECAUSE and item.get_closest_marker("cuda"):
        pytest.skip(f"no GPU kernels: {CUDA_OFF_BECAUSE}")
