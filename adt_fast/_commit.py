"""The commit of the adt_fast that runs, or is being built. setup.py runs this file by itself: no import of others."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

BAKED_NAME = "_commit.txt"
"""What a build or an sdist has in the package, beside this file."""


@cache
def commit() -> str:
    """40 hexadecimal digits, with ``-dirty`` behind them where files that git keeps were changed; ``""`` if unknown.

    In a checkout it is what git says, when it is asked first; elsewhere what was noted when the package was built.
    """
    package = Path(__file__).resolve().parent
    if (package.parent / ".git").exists():
        return _by_git(package.parent)
    baked = package / BAKED_NAME
    return baked.read_text().strip() if baked.exists() else ""


def _by_git(root: Path) -> str:
    if shutil.which("git") is None:
        return ""
    # Told where the repository is: one named by GIT_DIR is another, and one of another user is none to it otherwise.
    # Without optional locks it writes nothing, so the checkout may be read-only.
    command = ["git", "--no-optional-locks", f"--git-dir={root / '.git'}", f"--work-tree={root}", "-C", str(root),
               "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]  # fmt: skip
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip() if described.returncode == 0 else ""
