"""A folder that one process at a time writes to: a lock of the kernel's, which goes with the process that holds it."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
import warnings
import weakref
from pathlib import Path
from types import ModuleType

from .._support.utc import utc_now

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".lock"

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_SECONDS_TO_WRITE = 1.0


class FolderLock:
    """Keeps other processes out of a folder until it is released, or its object is gone, or its process, however ended.

    Locks of one folder in one process are one lock: none of them excludes another, and the last one gone frees it. A
    forked child has none of its parent's. The file ``.lock`` tells other processes who holds it; it stays when it is
    free. Where the file system has no locks, that is a RuntimeWarning.

    Args:
        folder: made if missing, with its parents.

    Raises:
        ValueError: if another process holds it.
        OSError: if the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._held: _Held | None = _hold(os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666), folder)

    @classmethod
    def again(cls, folder: Path) -> FolderLock | None:
        """The lock of a folder that has been locked before, in which nothing new appears; None of any other path."""
        try:
            descriptor = os.open(folder / LOCK_NAME, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return None
        lock = cls.__new__(cls)
        lock._held = _hold(descriptor, folder)
        return lock

    def release(self) -> None:
        """Lets others in."""
        self._held = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class _Held:
    """An open file that is locked; closed when it is gone."""

    def __init__(self, descriptor: int) -> None:
        # Closed, not unlocked: a child's copy of the descriptor would unlock that of its parent.
        self.close = weakref.finalize(self, os.close, descriptor)


_held_here: weakref.WeakValueDictionary[tuple[int, int], _Held] = weakref.WeakValueDictionary()
"""What this process holds, by device and inode: a folder that was removed and made again is another one."""


def _leave_to_parent() -> None:
    """Forked: the lock must not outlive the parent in a child that it has left behind."""
    for held in list(_held_here.values()):
        held.close()
    _held_here.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _hold(descriptor: int, folder: Path) -> _Held:
    """Locks an open file, which is closed if that fails."""
    status = os.fstat(descriptor)
    file = status.st_dev, status.st_ino
    if (held := _held_here.get(file)) is not None:
        os.close(descriptor)
        return held
    held = _Held(descriptor)
    try:
        _lock(descriptor, folder)
        _introduce(descriptor, folder)
    except BaseException:
        held.close()
        raise
    _held_here[file] = held
    return held


def _lock(descriptor: int, folder: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no flock")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"output {folder} is in use by {_holder(descriptor)}; wait until that has ended, or give "
                         "another folder") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(folder / LOCK_NAME)) from None
        warnings.warn(f"{folder} is on a file system without locks ({error.strerror}): see to it that no other process "
                      "writes there", RuntimeWarning, stacklevel=5)  # fmt: skip


def _introduce(descriptor: int, folder: Path) -> None:
    """Writes who holds the lock, as a line of JSON."""
    line = json.dumps({"pid": os.getpid(), "host": platform.node(), "time": utc_now()}) + "\n"
    try:
        os.pwrite(descriptor, line.encode(), 0)  # at once, so that nobody reads half of it
        os.ftruncate(descriptor, len(line))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder / LOCK_NAME)) from None


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words."""
    deadline = time.monotonic() + _SECONDS_TO_WRITE
    while time.monotonic() < deadline:
        line, is_whole, _ = os.pread(descriptor, 4096, 0).partition(b"\n")
        if is_whole:
            holder = json.loads(line)
            return f"process {holder['pid']} on {holder['host']} since {holder['time']}"
        time.sleep(0.01)  # it has only just taken the lock
    return "another process"
