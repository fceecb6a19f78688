"""Drives CMakeLists.txt, the one description of the native build, and notes the commit that is built."""

import os
import re
import runpy
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
COMMIT = runpy.run_path(str(ROOT / "adt_fast" / "_commit.py"))


def version() -> str:
    """That of the package; with ADT_FAST_VERSION_LABEL=cpu, as in 0.1.0+cpu, to tell wheels of one version apart."""
    written = (ROOT / "adt_fast" / "__init__.py").read_text()
    (number,) = re.findall(r'^__version__ = "(.+)"$', written, re.MULTILINE)
    label = os.environ.get("ADT_FAST_VERSION_LABEL", "")
    return f"{number}+{label}" if label else number


def note_commit(root: str) -> None:
    """In a tree of files that is to be packed, never in the sources: those of a checkout ask git."""
    (Path(root) / "adt_fast" / COMMIT["BAKED_NAME"]).write_text(COMMIT["commit"]() + "\n")


class BuildPython(build_py):
    """Adds the commit; an editable install has no files of its own to add it to."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            note_commit(self.build_lib)


class SourceDistribution(sdist):
    """Adds the commit, for wheels are built from here too, without git."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        note_commit(base_dir)


class CMakeExtension(Extension):
    """An extension whose sources are listed in CMakeLists.txt."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Configures and builds with CMake and ninja, in setuptools' own build folder."""

    def build_extension(self, extension: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # An earlier build's cache names tools of pip's isolated environment, which is gone. The objects are kept.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DADT_FAST_CUDA={os.environ.get('ADT_FAST_CUDA', 'auto')}",
        ]
        if architectures := os.environ.get("ADT_FAST_CUDA_ARCHITECTURES"):
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        # Of an environment that is not active, too: there pip's --no-build-isolation finds Python alone.
        os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")))
        self.spawn(configure)
        self.spawn(["cmake", "--build", str(build), "--target", "_C"])
        self._copy_beside_sources(extension)

    def _copy_beside_sources(self, extension: Extension) -> None:
        """In a checkout, Python started in its root finds `adt_fast/` there first: it needs the module too."""
        built = Path(self.get_ext_fullpath(extension.name)).resolve()
        beside = ROOT / "adt_fast" / built.name
        if (ROOT / ".git").exists() and built != beside:
            self.copy_file(str(built), str(beside))


setup(
    version=version(),
    ext_modules=[CMakeExtension("adt_fast._C")],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython, "sdist": SourceDistribution},
)
