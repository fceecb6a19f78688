"""Files that appear whole or not at all, whatever kills the writer."""

from __future__ import annotations

import glob
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_ABANDONED_AFTER_SECONDS = 3600.0


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file open for writing, which takes the place of `path` when the block ends without an exception.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), and only then take the name by one
    os.replace; the folder is synced last, so the name too survives a power cut. A reader sees the old file or the new
    one, never a part. An exception inside the block removes the temporary file and leaves `path` as it was. Missing
    parent folders are made.

    A writer killed outright (SIGKILL, power) leaves its temporary file behind; the next write to the same path, an hour
    later or more, removes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    # Named by a fresh identifier, so that processes writing the same path do not write into one temporary file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with names_file(path):
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def names_file(path: Path) -> Iterator[None]:
    """An OSError inside names `path` where it names no file, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of `path` that no living writer can own: one that writes moves the modification time."""
    oldest_living = time.time() - _ABANDONED_AFTER_SECONDS
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if temporary.stat().st_mtime < oldest_living:
                temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Names that files of the folder have taken survive a power cut from here on."""
    if os.name != "posix":  # Windows cannot open a folder, and needs no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
