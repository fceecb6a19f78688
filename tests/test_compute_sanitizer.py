"""NVIDIA's compute-sanitizer over every operator: it reports nothing, and does report a planted bug.

The planted bug is an output much too short: the kernel writes past its end. Allocations come straight
from the driver, without torch's cache, so that the sanitizer knows their true sizes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on PATH"),
]

ERROR_EXIT = 86

EVERY_OPERATOR = """
import torch
from test_cuda_device import arguments, on_gpu, run_all

for shape in ((2, 3, 8, 8), (2, 3, 5, 5), (2, 5, 4, 4), (3, 130)):
    for storage in (torch.float32, torch.bfloat16):
        for channels_last in (False, True)[: 2 if len(shape) == 4 else 1]:
            run_all(on_gpu(arguments(shape, torch.float32, storage, channels_last)), storage)
torch.cuda.synchronize()
"""

PLANTED_BUG = """
import torch
from adt_fast import NoiseStream
from adt_fast._operators import native as _native

device = torch.device("cuda", torch.cuda.current_device())
batch, size = 1, 128 * 1024 // 4  # a whole number of the driver's allocation units
x = torch.zeros(batch, size, device=device)
noise = NoiseStream(1, device).state
_native.module.normal(
    _native.target(device), _native.DTYPE_CODES[x.dtype], (batch, 1, 2 * size, False), (noise.data_ptr(), 0, 0), 64,
    x.data_ptr(),
)
torch.cuda.synchronize()
"""


def run_under(tool: str, program: str) -> subprocess.CompletedProcess[str]:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(ERROR_EXIT), sys.executable, "-c", program]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_every_operator_is_clean(tool: str) -> None:
    run = run_under(tool, EVERY_OPERATOR)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]


def test_a_write_past_the_end_is_reported() -> None:
    run = run_under("memcheck", PLANTED_BUG)
    assert run.returncode != 0
    assert "Invalid __global__ write" in run.stdout, run.stdout[-4000:] + run.stderr[-4000:]
