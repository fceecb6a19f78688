"""The GPU kernels compile for every architecture, without spills, within their registers, with wide memory accesses.

Needs nvcc and no GPU. Occupancy and bandwidth, which registers and access widths stand for, need a GPU to measure.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
HOST_CODE_WITH = "80"
MACHINE_CODE_OF = "90"

# The most registers a thread may use, by kernel, for (one channel, three interleaved channels, float64). With blocks of
# 128 threads 64 registers keep half of a multiprocessor's 2048 threads in flight, 128 a quarter, 168 three blocks.
TILE_KERNEL_CEILINGS = {
    "sample_kernel": (64, 96, 96),
    "sample_backward_kernel": (80, 128, 168),
    "ascent_kernel": (64, 168, 168),
    "uniform_start_kernel": (64, 64, 64),
    "normal_kernel": (64, 96, 64),
    "affine_relu_kernel": (64, 64, 64),
    "affine_relu_backward_kernel": (64, 64, 64),
}
OTHER_CEILING = 64


def find_nvcc() -> str | None:
    named = os.environ.get("CUDACXX")
    return named or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


NVCC = find_nvcc()
pytestmark = pytest.mark.skipif(NVCC is None, reason="no CUDA compiler: nvcc is not on PATH and CUDACXX is not set")


@dataclass(frozen=True)
class Kernel:
    """What the assembler says about a kernel."""

    name: str  # mangled
    registers: int
    spill_stores: int
    spill_loads: int

    @property
    def plain_name(self) -> str:
        """The last part of a mangled name, which its length precedes, before the template arguments."""
        candidates = re.findall(r"(?=(\d\d)([a-z]\w*?_kernel)I)", self.name)
        return next(name for length, name in reversed(candidates) if len(name) == int(length))

    @property
    def template_arguments(self) -> str:
        """Mangled: ``Lb1E`` is true, ``Li4E`` is 4, ``f`` float, ``d`` double."""
        return self.name.split(self.plain_name, 1)[1]

    @property
    def computes_in_double(self) -> bool:
        return re.match(r"I(L[bi]\d+E)*d", self.template_arguments) is not None

    @property
    def register_ceiling(self) -> int:
        if self.plain_name not in TILE_KERNEL_CEILINGS:
            return OTHER_CEILING
        one_channel, interleaved, double = TILE_KERNEL_CEILINGS[self.plain_name]
        if self.computes_in_double:
            return double
        return interleaved if "VectorTileILi3E" in self.name else one_channel

    @property
    def is_vectorised(self) -> bool:
        """Whether it is the variant for aligned memory."""
        return re.search(r"VectorTile|ChannelTile|step_kernelILi4E", self.name) is not None


@dataclass(frozen=True)
class Compiled:
    architecture: str
    kernels: list[Kernel]
    binaries: list[Path]


def compile_source(source: Path, architecture: str, folder: Path) -> tuple[list[Kernel], Path]:
    """For one architecture the host code is compiled too, with warnings as errors."""
    binary = folder / f"{source.stem}.o"
    what = ["-c", "-Xcompiler=-Wall,-Wextra,-Werror"] if architecture == HOST_CODE_WITH else ["-cubin"]
    command = [NVCC, "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas=-v", *what, source, "-o", binary]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr, run.stderr
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, run.stderr, flags=re.DOTALL)
    return [Kernel(name, int(used), int(stores), int(loads)) for name, stores, loads, used in found], binary


@cache
def supported_architectures() -> set[str]:
    listed = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"sm_(\d+)", listed))


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Every source, compiled for one architecture."""
    if request.param not in supported_architectures():
        pytest.skip(f"this nvcc does not know sm_{request.param}")
    folder = tmp_path_factory.mktemp(f"sm_{request.param}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda source: compile_source(source, request.param, folder), SOURCES))
    kernels, binaries = zip(*results)
    return Compiled(request.param, [kernel for some in kernels for kernel in some], list(binaries))


def find_cuobjdump() -> str | None:
    """From the CUDA toolkit, or the one that triton carries; it runs nvdisasm, which is looked for beside it."""
    triton = importlib.util.find_spec("triton")
    carried = str(Path(triton.origin).parent / "backends" / "nvidia" / "bin") if triton and triton.origin else ""
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=carried)


def sass_of(binary: Path) -> dict[str, str]:
    """The machine code of each kernel, by mangled name."""
    dump = subprocess.run([find_cuobjdump(), "-sass", binary], capture_output=True, text=True, check=True).stdout
    functions = re.split(r"Function : (\S+)", dump)
    return dict(zip(functions[1::2], functions[2::2]))


def access_widths(instruction: str, code: str) -> set[int]:
    """The bits that accesses of this kind move: ``STG.E.128`` moves 128; plain ``STG.E`` 32, and ``.U16`` counts so."""
    suffixes = re.findall(rf"\b{instruction}\.E(\S*)", code)
    return {next((bits for bits in (128, 64) if f".{bits}" in suffix), 32) for suffix in suffixes}


def test_all_kernels_were_seen(compiled: Compiled) -> None:
    names = {kernel.plain_name for kernel in compiled.kernels}
    expected = {"linf_step_kernel", "l2_step_kernel", "momentum_linf_step_kernel", "sum_partials_kernel"}
    assert names == expected | set(TILE_KERNEL_CEILINGS)


def test_no_kernel_spills(compiled: Compiled) -> None:
    spilling = [kernel for kernel in compiled.kernels if kernel.spill_stores or kernel.spill_loads]
    assert not spilling


def test_registers_stay_within_their_ceilings(compiled: Compiled) -> None:
    above = {kernel.name: kernel.registers for kernel in compiled.kernels if kernel.registers > kernel.register_ceiling}
    assert not above


@pytest.mark.skipif(NVCC is not None and find_cuobjdump() is None, reason="no cuobjdump, on PATH or with triton")
def test_vectorised_kernels_access_memory_in_whole_words(compiled: Compiled) -> None:
    """Four elements at a time: 16 bytes of float, 8 of a 16-bit type; never less in a store of x_adv or a parameter."""
    if compiled.architecture != MACHINE_CODE_OF:
        pytest.skip(f"the same on every architecture: looked at in the code for sm_{MACHINE_CODE_OF}")
    code = {name: text for binary in compiled.binaries for name, text in sass_of(binary).items()}
    vectorised = [kernel for kernel in compiled.kernels if kernel.is_vectorised]
    assert len(vectorised) >= 60
    for kernel in vectorised:
        stores, loads = (access_widths(instruction, code[kernel.name]) for instruction in ("STG", "LDG"))
        leaves_partial_sums = kernel.plain_name == "sample_kernel" and kernel.template_arguments.startswith("ILb1E")
        assert stores <= ({32, 64, 128} if leaves_partial_sums else {64, 128}), (kernel.name, stores)
        all_is_half = kernel.plain_name.startswith("affine") and "float16" in kernel.template_arguments
        assert kernel.plain_name == "normal_kernel" or (64 if all_is_half else 128) in loads, (kernel.name, loads)
