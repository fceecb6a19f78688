"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: nothing to report, except a planted bug."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adt_fast._operators import native

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SANITIZERS = "-fsanitize=address,undefined -fno-omit-frame-pointer -g1"
REPORT = re.compile(r"ERROR: AddressSanitizer|runtime error:")

# A write one element too far, in the last tile of the last example: where the mutation goes, what it was, what it is.
PLANTED = ("csrc/cpu/random_fill.cpp", "store_tile<V>(out, chunk.tile", "store_tile<V>(out + 1, chunk.tile")


def runtime_libraries() -> list[str]:
    """The sanitizers' shared libraries, to be loaded before the interpreter; empty where the compiler has none."""
    compiler = shutil.which("g++")
    if compiler is None:
        return []
    paths = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return paths if all(os.path.isabs(path) for path in paths) else []


LIBRARIES = runtime_libraries()
pytestmark = [
    pytest.mark.slow,  # building takes a minute
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the source tree"),
    pytest.mark.skipif(not LIBRARIES, reason="g++ with libasan and libubsan is not installed"),
    pytest.mark.skipif(native.module is None, reason=f"no native module: {native.unavailable_because}"),
]


class SanitizedBuild:
    """A copy of the sources with a build of its own, which shares nothing with the installed module."""

    def __init__(self, folder: Path) -> None:
        self.source, self.build, self.package = folder / "source", folder / "build", folder / "package"
        shutil.copytree(ROOT / "csrc", self.source / "csrc")
        # -O3 takes twice as long and finds nothing more: the sanitizers see the source, not the machine code.
        (self.source / "CMakeLists.txt").write_text((ROOT / "CMakeLists.txt").read_text().replace("-O3", "-O1"))
        shutil.copytree(
            ROOT / "adt_fast", self.package / "adt_fast", ignore=shutil.ignore_patterns("_C*", "__pycache__")
        )

    def compile(self) -> None:
        import pybind11

        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = [
            "cmake", "-S", self.source, "-B", self.build, *generator, "-DADT_FAST_CUDA=off", "-DCMAKE_BUILD_TYPE=None",
            "-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_CXX_FLAGS={SANITIZERS}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.package / 'adt_fast'}",
        ]  # fmt: skip
        for command in (configure, ["cmake", "--build", self.build, "--target", "_C", "--parallel", "2"]):
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == 0, run.stdout + run.stderr

    def plant(self, file: str, was: str, becomes: str) -> None:
        path = self.source / file
        text = path.read_text()
        assert text.count(was) == 1, f"{file} no longer has the line that the planted bug replaces"
        path.write_text(text.replace(was, becomes))

    def run(self) -> subprocess.CompletedProcess:
        environment = {
            "LD_PRELOAD": " ".join(LIBRARIES),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter and torch leak as they please
            "PYTHONPATH": os.pathsep.join([str(self.package), str(TESTS)]),
        }
        return subprocess.run(
            [sys.executable, TESTS / "sanitizer_workload.py"], env=os.environ | environment, capture_output=True,
            text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> SanitizedBuild:
    build = SanitizedBuild(tmp_path_factory.mktemp("sanitized"))
    build.compile()
    return build


def test_the_sanitizers_have_nothing_to_report(sanitized: SanitizedBuild) -> None:
    run = sanitized.run()
    assert run.returncode == 0 and not REPORT.search(run.stderr), run.stderr[-8000:]
    assert run.stdout.startswith("ran on")


def test_a_planted_write_out_of_bounds_is_reported(sanitized: SanitizedBuild) -> None:
    """Or else their silence would mean nothing. Runs last: the build is spoilt afterwards."""
    sanitized.plant(*PLANTED)
    sanitized.compile()
    run = sanitized.run()
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr and "random_fill.cpp" in run.stderr, run.stderr[-8000:]
