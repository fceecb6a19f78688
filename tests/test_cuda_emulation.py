"""The GPU kernels, the very .cu files, run on the CPU (tests/cuda_emulator) under AddressSanitizer and UBSan.

Every operator is compared with its CPU kernel in both orders of threads; then bugs are planted in copies of the
sources, one at a time, and each must be found, so that silence means something. What this cannot show: races between
threads that really run at once, the device's memory ordering, and its own arithmetic. Those take a GPU
(test_cuda_device.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import adt_fast

ROOT = Path(__file__).resolve().parents[1]
BUILDS = ROOT / "build" / "cuda_emulation"
EMULATOR = ROOT / "tests" / "cuda_emulator"
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))

MIN_CASES = {
    "sample": 720,
    "sample_backward": 1200,
    "ascent": 1000,
    "linf_step": 750,
    "l2_step": 750,
    "momentum_linf_step": 750,
    "uniform_start": 350,
    "normal": 170,
    "affine_relu": 500,
    "affine_relu_backward": 500,
}


def _unavailable_because() -> str:
    """Why the kernels cannot be emulated here, or an empty string."""
    for tool in ("cmake", "ninja", "g++"):
        if not shutil.which(tool, path=PATH):
            return f"{tool} is not installed"
    if not importlib.util.find_spec("pybind11"):
        return "pybind11 is not installed"
    if not all(os.path.isabs(library) for library in _sanitizer_runtime()):
        return "g++ has no AddressSanitizer runtime (libasan)"
    return ""


def _sanitizer_runtime() -> list[str]:
    """What must be loaded before Python is; libstdc++ too, whose exceptions AddressSanitizer watches."""
    return [_output("g++", f"-print-file-name={name}").strip() for name in ("libasan.so", "libstdc++.so")]


def _output(*command: str, **options) -> str:
    """A command's output; fails with all it said if it fails."""
    environment = os.environ | {"PATH": PATH}
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert result.returncode == 0, f"{shlex.join(command)} failed:\n{result.stdout}"
    return result.stdout


UNAVAILABLE_BECAUSE = _unavailable_because()
pytestmark = pytest.mark.skipif(bool(UNAVAILABLE_BECAUSE), reason=f"no emulation: {UNAVAILABLE_BECAUSE}")


# ---- Building ------------------------------------------------------------------------------------------------------


def _sources_digest() -> str:
    digest = hashlib.sha256(sys.version.encode())
    sources = (path for folder in (ROOT / "csrc", EMULATOR) for path in folder.rglob("*"))
    for path in (ROOT / "CMakeLists.txt", *sorted(path for path in sources if path.suffix in (".h", ".cpp", ".cu"))):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def build() -> Path:
    """The build folder of the emulated module; one per state of the sources, kept for the next session."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with open(BUILDS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = BUILDS / _sources_digest()
        for other in BUILDS.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        _output(
            "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={_output(sys.executable, '-m', 'pybind11', '--cmakedir').strip()}",
            "-DCMAKE_CXX_COMPILER=g++", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            "-DADT_FAST_CUDA=off", "-DADT_FAST_CUDA_EMULATION=ON", "-DADT_FAST_BASE_ISA_ONLY=ON",
            "-DADT_FAST_SANITIZE=address,undefined",
        )  # fmt: skip
        _output("cmake", "--build", str(folder), "--target", "_emulated")
        return folder


def _module(folder: Path) -> Path:
    (module,) = folder.glob("_emulated.*.so")
    return module


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs one of the emulator's scripts in a process of its own, as a planted bug may take the process with it."""
    environment = os.environ | {
        "LD_PRELOAD": " ".join(_sanitizer_runtime()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", Path(adt_fast.__file__).parents[1]))),
    }
    command = [sys.executable, str(EMULATOR / script), *arguments]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )


def _compare(module: Path, operator: str) -> subprocess.CompletedProcess:
    return _run("compare.py", str(module), "--operators", operator)


def _assert_agreement(result: subprocess.CompletedProcess, min_cases: int) -> None:
    assert result.returncode == 0, result.stdout
    assert int(result.stdout.split()[-3]) >= min_cases, result.stdout


@pytest.mark.parametrize("operator", MIN_CASES)
def test_agrees_with_cpu_kernel_under_sanitizers(build: Path, operator: str) -> None:
    _assert_agreement(_compare(_module(build), operator), MIN_CASES[operator])


def test_agrees_through_the_public_operators(build: Path) -> None:
    _assert_agreement(_run("through_operators.py", str(_module(build))), 1200)


# ---- Planted bugs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """A change of one source file, the operator whose kernels are compiled with it, and how it is found."""

    file: str
    text: str
    instead: str
    operator: str
    found_by: str


BUGS = {
    "none": Bug("linf_step.cu", "", "", "linf_step", ""),
    "no barrier before sums are read": Bug(
        "reduce.h", "__syncthreads();\n  double sum", "double sum", "momentum_linf_step", "differ"
    ),
    "no barrier before sums are overwritten": Bug(
        "reduce.h", "__syncthreads();  // until the sums of an earlier call have been read", "", "l2_step", "differ"
    ),
    "some threads pass by a barrier": Bug(
        "momentum_linf_step.cu",
        "block_sum(magnitude)",
        "(threadIdx.x < 32 ? block_sum(magnitude) : magnitude)",
        "momentum_linf_step",
        "threads ended before a barrier",
    ),
    "threads wait at different barriers": Bug(
        "reduce.h",
        "__syncthreads();\n  double sum",
        "if (threadIdx.x < 64)\n__syncthreads();\nelse\n__syncthreads();\ndouble sum",
        "momentum_linf_step",
        "threads wait at different barriers",
    ),
    "lanes without a tile leave before the sum": Bug(
        "tanh_gaussian_sample.cu",
        "if (!kDensity && !active) return;",
        "if (!active) return;",
        "sample",
        "is missing from a shuffle",
    ),
    "shuffle mask without a lane": Bug(
        "reduce.h", "kWholeWarp = 0xffffffffu", "kWholeWarp = 0x7fffffffu", "momentum_linf_step", "takes no part"
    ),
    "partial sum in another's slot": Bug(
        "draw.h", "sums[row * warps + tile / kWarpSize]", "sums[row * warps + tile / kTileThreads]", "sample", "differ"
    ),
    "packs at addresses that are not checked": Bug(
        "access.h", "% (kPack * sizeof(S)) == 0", "% sizeof(S) == 0", "linf_step", "misaligned address"
    ),
    "one buffer's address is not checked": Bug(
        "projected_step.h", "aligned<G>(args.grad) && ", "", "linf_step", "misaligned address"
    ),
    "a pixel too many at the end of a channel": Bug(
        "access.h", "left = shape.pixels - first;", "left = shape.pixels - first + 1;", "normal", "overflow"
    ),
    "write behind the end": Bug("linf_step.cu", "run < runs", "run <= runs", "linf_step", "heap-buffer-overflow"),
    "samples overlap": Bug(
        "access.h", "shape.batch * shape.example_size(),", "shape.example_size(),", "normal", "differ"
    ),
    "normals in the wrong lanes": Bug("draw.h", "normals.lane[lane])", "normals.lane[lane ^ 1])", "normal", "differ"),
    "examples beyond the grid are left out": Bug(
        "access.h", "shape.batch < room ? shape.batch : room", "shape.batch", "uniform_start", "differ"
    ),
    "gradient passes the clamp": Bug(
        "tanh_gaussian_sample_backward.cu",
        "masked_by_clamp<T>(grad[i], x[i] + bounds.epsilon * terms.tanh, bounds.lower, bounds.upper)",
        "grad[i]",
        "sample_backward",
        "grad_x: ",
    ),
    "backward without the offset": Bug(
        "tanh_gaussian_sample_backward.cu", "location_gradient<kLogOffset>", "location_gradient<false>",
        "sample_backward", "grad_mu: ",
    ),
    "packs of channels counted as if they were channels": Bug(
        "affine_relu.cu", "Divisor(shape.channels / kPack)", "Divisor(shape.channels)", "affine_relu", "overflow"
    ),
    "gradient passes at zero": Bug(
        "affine_relu.cu", "y[slot][i] <= T(0)", "y[slot][i] < T(0)", "affine_relu_backward", "grad_x: "
    ),
    "only the first of a thread's examples": Bug(
        "affine_relu.cu", "first + slot * held;\n      if (example < shape.batch) write",
        "first;\n      if (example < shape.batch) write", "affine_relu", "differ"
    ),
}


def _sources_with(bug: Bug, folder: Path) -> Path:
    """A copy of csrc with the bug in it."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    file = folder / "csrc" / "cuda" / bug.file
    source = file.read_text()
    if bug.text:
        assert source.count(bug.text) == 1, f"{bug.file} no longer has, just once: {bug.text!r}; plant another bug"
    file.write_text(source.replace(bug.text, bug.instead) if bug.text else source)
    return folder / "csrc"


KERNEL_FILES = {operator: f"tanh_gaussian_{operator}" for operator in ("sample", "sample_backward", "ascent")}
KERNEL_FILES["affine_relu_backward"] = "affine_relu"


def _build_with(bug: Bug, build: Path, folder: Path) -> Path:
    """Compiles one kernel file from the changed sources, and links it with the other objects."""
    kernel = KERNEL_FILES.get(bug.operator, bug.operator)
    changed = _sources_with(bug, folder) / "cuda" / f"{kernel}.cu"
    entries = json.loads((build / "compile_commands.json").read_text())
    (command,) = (entry["command"] for entry in entries if entry["file"].endswith(f"/emulated/{kernel}.cpp"))
    compiler, *options = shlex.split(command)
    options = options[: options.index("-o")]
    _output(compiler, *options, "-x", "c++", "-c", str(changed), "-o", str(folder / "kernel.o"), cwd=build)

    objects = [path for path in build.rglob("*.o") if path.parts[-2:] != ("emulated", f"{kernel}.cpp.o")]
    module = folder / _module(build).name
    sanitizers = [option for option in options if option.startswith("-fsanitize")]
    link = [compiler, "-shared", *sanitizers, "-o", str(module), str(folder / "kernel.o"), *map(str, objects)]
    _output(*link, "-ldl", "-lpthread")
    return module


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(build: Path, tmp_path: Path, name: str) -> None:
    bug = BUGS[name]
    result = _compare(_build_with(bug, build, tmp_path), bug.operator)
    if not bug.found_by:
        assert result.returncode == 0, f"sources without a bug, built alike:\n{result.stdout}"
        return
    assert result.returncode != 0, "not found"
    assert bug.found_by in result.stdout, f"found, but not as {bug.found_by!r}:\n{result.stdout}"
