"""The folder of a run: its settings, its metrics and its checkpoint."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from .._support.atomic_file import atomic_file, names_file
from .._support.utc import utc_now
from .command_line import running_command
from .folder_lock import LOCK_NAME, FolderLock
from .machine import versions

if TYPE_CHECKING:
    from ..loggers import Logger

CHECKPOINT_NAME = "model.safetensors"
BEST_NAME = "best.safetensors"
_CONFIG_NAME = "config.yaml"
_METRICS_NAME = "metrics.jsonl"
_MAXIMIZER_NAME = "maximizer.safetensors"


class RunFolder:
    """A run's folder, which no other process can have at the same time: see :class:`FolderLock`.

    Args:
        path: must not exist yet, or be empty; missing parents are made.
        resume: the folder of a run is wanted instead, which has its settings in it.

    Raises:
        ValueError: if another process has it; if the path is a file, or a folder with something in it; with ``resume``,
            if it is no run's folder.
        OSError: if it cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        self.loggers: list[Logger] = []
        """What else is called with each line of metrics.jsonl: see :mod:`adt_fast.loggers`."""
        lock = FolderLock.again(self.path)  # first: of a folder in use, all else may change at any moment
        if resume:
            recorded_config(self.path)
            self._lock = lock or FolderLock(self.path)
        else:
            check_new(self.path)
            self._lock = lock or FolderLock(self.path)
            check_new(self.path)  # nobody else writes to it from here on

    @classmethod
    def named_by_time(cls, prefix: str) -> RunFolder:
        """A new folder, see :func:`name_by_time`."""
        path = None
        while path is None:
            name = name_by_time(prefix)
            with suppress(FileExistsError):  # another process has been faster
                name.mkdir(parents=True)
                path = name
        return cls(path)

    @property
    def checkpoint(self) -> Path:
        """Where the trained model goes."""
        return self.path / CHECKPOINT_NAME

    @property
    def best(self) -> Path:
        """Where the model goes that was best in validation."""
        return self.path / BEST_NAME

    @property
    def maximizer(self) -> Path:
        """Where the networks go that were trained against the model, with their optimizers."""
        return self.path / _MAXIMIZER_NAME

    @property
    def metrics(self) -> Path:
        """Where they are logged, a JSON object a line."""
        return self.path / _METRICS_NAME

    def close(self) -> None:
        """The loggers write what they still have, and other processes may have the folder; to be called last."""
        for logger in self.loggers:
            logger.close()
        self._lock.release()

    def write_config(self, config: dict[str, Any], processes: int = 1) -> None:
        """config.yaml: the settings, what ran them, in how many processes, by which command, and when. Values are
        plain.

        Args:
            config: resolved; has a ``device``.
            processes: those that share every minibatch, >= 1.
        """
        document = {
            "config": config,
            "versions": versions(torch.device(config["device"])),
            "processes": processes,
            "command": running_command(),
            "started": utc_now(),
        }
        text = yaml.safe_dump(document, sort_keys=False, width=float("inf"))  # the command in one line
        with atomic_file(self.path / _CONFIG_NAME) as file:
            file.write(text.encode())

    def log(self, **metrics: Any) -> None:
        """Adds a line to metrics.jsonl, a JSON object with the time (UTC, ISO 8601) and the metrics; for the loggers
        too."""
        event = {"time": utc_now(), **metrics}
        with names_file(self.metrics), open(self.metrics, "a") as file:
            file.write(json.dumps(event) + "\n")
        for logger in self.loggers:
            logger(event)

    def events(self, name: str) -> list[dict[str, Any]]:
        """See :func:`logged_events`."""
        return logged_events(self.path, name)

    def sync_metrics(self) -> int:
        """The length of metrics.jsonl in bytes, all of which are on the disk now."""
        with names_file(self.metrics), open(self.metrics, "a") as file:
            os.fsync(file.fileno())
            return os.path.getsize(self.metrics)

    def cut_metrics(self, length: int | None = None) -> None:
        """Drops what came after so many bytes of metrics.jsonl; by default, a last line that a kill cut short.

        Raises:
            ValueError: if it has fewer, or no line ends there.
        """
        content = self.metrics.read_bytes() if self.metrics.exists() else b""
        length = content.rfind(b"\n") + 1 if length is None else length
        if len(content) < length:
            raise ValueError(f"{self.metrics} must have at least the {length} bytes that it had when the run was "
                             f"saved, it has {len(content)}")
        if length and content[length - 1 : length] != b"\n":
            raise ValueError(f"{self.metrics} must have the end of a line at byte {length}, where it ended when the "
                             "run was saved")
        if len(content) > length:
            os.truncate(self.metrics, length)


def checkpoint_of(run: Path) -> Path:
    """The checkpoint that a path means: a run folder's own, or the file itself."""
    return run / CHECKPOINT_NAME if run.is_dir() else run


def maximizer_of(run: Path) -> Path | None:
    """The networks that were trained against the model of a path, see :func:`checkpoint_of`; None where there are none.

    They are those of the end of the training: a run's best.safetensors, of an earlier epoch, has none.
    """
    checkpoint = checkpoint_of(run)
    path = checkpoint.with_name(_MAXIMIZER_NAME)
    return path if checkpoint.name == CHECKPOINT_NAME and path.is_file() else None


def recorded_config(run: Path) -> Path:
    """The file with a run's settings.

    Raises:
        ValueError: if the path is no folder of a run.
    """
    if not (path := run / _CONFIG_NAME).is_file():
        raise ValueError(f"output must be the folder of a run to resume it, but {run} has no {_CONFIG_NAME}; without "
                         "--resume a new run begins")
    return path


def logged_events(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl with ``event=name``; one that a kill cut short is none.

    Raises:
        ValueError: if a line is not of :meth:`RunFolder.log`; the message names file and line.
    """
    metrics = run / _METRICS_NAME
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
    events = (_event(metrics, number, line) for number, line in enumerate(lines, 1))
    return [event for event in events if event["event"] == name]


def name_by_time(prefix: str) -> Path:
    """``PREFIX-YYYYMMDD-HHMMSS``, with a number after it where that exists."""
    stem = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (Path(stem if attempt == 1 else f"{stem}-{attempt}") for attempt in range(1, 1000))
    return next(name for name in names if not name.exists())


def check_new(path: Path) -> None:
    """Raises ValueError where the path is a file, or a folder with something in it other than a lock."""
    if path.exists() and (not path.is_dir() or any(entry.name != LOCK_NAME for entry in path.iterdir())):
        raise ValueError(f"output must be a new or an empty folder, but {path} holds something already; "
                         "give another name")


def _event(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or a number too long
        raise ValueError(f"{path} is damaged: its line {number} is no JSON ({error})") from error
    if not isinstance(event, dict) or "event" not in event:
        raise ValueError(f"{path} is damaged: its line {number} is no JSON object with an event")
    return event
