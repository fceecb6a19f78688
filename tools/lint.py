"""What a machine can say of the code, for a developer and for the continuous integration alike.

``python -m tools.lint`` runs all checks, ``python -m tools.lint ruff mypy`` some of them. It needs ``pip install
".[lint]"``, where the versions are pinned, and torch, whose annotations mypy reads; clang-tidy also needs the C++
compiler that builds the package. Every check is run; the exit status is 1 if any of them found something.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "lint"
LARGEST_FILE_KB = 1024


def _passes(*command: str | Path) -> bool:
    """Whether a program of this environment is content; if not, what it found is printed."""
    program = Path(sysconfig.get_path("scripts")) / command[0]
    if not program.exists():
        raise SystemExit(f'{command[0]} is not installed in this environment: pip install ".[lint]"')
    result = subprocess.run(
        [program, *command[1:]], cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        print(result.stdout, end="", flush=True)
    return result.returncode == 0


def _tracked(*patterns: str) -> list[str]:
    """Files that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *patterns],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


def files() -> bool:
    """White space at the ends, conflicts that were not resolved, YAML that is none, files that are too large."""
    names = _tracked()
    checks: list[Sequence[str]] = [
        ["trailing-whitespace-fixer"],
        ["end-of-file-fixer"],
        ["check-merge-conflict", "--assume-in-merge"],
    ]
    text = [name for name in names if Path(name).suffix not in (".png", ".json")]
    yaml = [name for name in names if Path(name).suffix in (".yaml", ".yml")]
    return all([
        *(_passes(*check, *text) for check in checks),
        _passes("check-added-large-files", "--enforce-all", f"--maxkb={LARGEST_FILE_KB}", *names),
        _passes("check-yaml", "--unsafe", *yaml),  # of mkdocs.yml, tags are not looked up
    ])  # fmt: skip


def ruff() -> bool:
    """Errors and habits of the Python code, see pyproject.toml."""
    return _passes("ruff", "check", ".")


def mypy() -> bool:
    """The types of the package."""
    return _passes("mypy")


def clang_format() -> bool:
    """The layout of the C++ and CUDA code."""
    return _passes("clang-format", "--dry-run", "--Werror", *_tracked("*.h", "*.cpp", "*.cu"))


def clang_tidy() -> bool:
    """Errors and habits of the C++ code, once per instruction set, and of the GPU kernels, compiled for the CPU."""
    import pybind11

    configured = _passes(
        "cmake", "-G", "Ninja", "-S", ROOT, "-B", BUILD, "--log-level=WARNING", "-DADT_FAST_CUDA=off",
        "-DADT_FAST_CUDA_EMULATION=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )  # fmt: skip
    if not configured:
        return False
    sources = [*ROOT.glob("csrc/**/*.cpp"), *BUILD.glob("emulated/*.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda source: _passes("clang-tidy", "--quiet", "-p", BUILD, source), sources))
    return all(found)


CHECKS: dict[str, Callable[[], bool]] = {
    "files": files,
    "ruff": ruff,
    "clang-format": clang_format,
    "mypy": mypy,
    "clang-tidy": clang_tidy,
}


def main(names: Sequence[str]) -> int:
    """Runs the checks of these names, or all of them; the exit status."""
    if unknown := [name for name in names if name not in CHECKS]:
        print(f"unknown check {unknown[0]!r}: there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or CHECKS:
        print(f"---- {name}", flush=True)
        start = time.monotonic()
        if not CHECKS[name]():
            failed.append(name)
        print(f"     {time.monotonic() - start:.0f} s", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
