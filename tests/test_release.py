"""What a release is made of: one version everywhere, requirements that an index takes, and a source distribution."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from email import message_from_string
from pathlib import Path

import pytest
import yaml

import adt_fast

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a checkout and git"
)


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def setup(*words: str, folder: Path, **environment: str) -> str:
    command, environment = [sys.executable, "setup.py", *words], os.environ | environment
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A source distribution, packed where files lie about that do not belong in it."""
    folder = tmp_path_factory.mktemp("release")
    sources = folder / "sources"
    for name in tracked():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, sources / name)
    for name in ("adt_fast/_C.so", "docs/data.npz", "tests/__pycache__/conftest.pyc", "runs/digits/config.yaml"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text("")
    setup("-q", "sdist", "--formats", "tar", "--dist-dir", str(folder), folder=sources)
    (archive,) = folder.glob("adt_fast-*.tar")
    shutil.unpack_archive(archive, folder / "unpacked")
    (root,) = (folder / "unpacked").iterdir()
    return root


def test_the_source_distribution_is_what_git_keeps(unpacked):
    """But for what only the repository's own machinery reads."""
    packed = {str(file.relative_to(unpacked)) for file in unpacked.rglob("*") if file.is_file()}
    made = {"PKG-INFO", "setup.cfg", "adt_fast/_commit.txt"}
    packed = {name for name in packed - made if not name.startswith("adt_fast.egg-info/")}
    assert packed == {name for name in tracked() if not name.startswith((".ci/", ".git"))}


def test_the_version_is_one_everywhere(unpacked):
    packed = message_from_string((unpacked / "PKG-INFO").read_text())["Version"]
    newest, state = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert adt_fast.__version__ == packed == newest == citation["version"]
    assert state == str(citation.get("date-released", "Unreleased")), "CHANGELOG.md and CITATION.cff tell two dates"


def test_a_label_tells_wheels_of_one_version_apart():
    assert setup("--version", folder=ROOT, ADT_FAST_VERSION_LABEL="cpu").split() == [f"{adt_fast.__version__}+cpu"]
    with pytest.raises(subprocess.CalledProcessError):
        setup("--version", folder=ROOT, ADT_FAST_VERSION_LABEL="no label")


def test_no_requirement_is_an_address(unpacked):
    """An index refuses the whole upload otherwise, also where it is in an extra."""
    requirements = message_from_string((unpacked / "PKG-INFO").read_text()).get_all("Requires-Dist")
    assert requirements and [line for line in requirements if "@" in line] == []


def test_the_repository_is_the_same_everywhere():
    """Where it has an address at all."""
    address = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text()).get("repository-code") == (address and address[1])
