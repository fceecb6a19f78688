"""What is in a folder."""

from __future__ import annotations

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Its files by name, but for the lock, which tells when it was taken last."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
