"""The folder of a run: its settings, its metrics and its checkpoint."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from . import __version__
from ._atomic_file import atomic_file

CHECKPOINT_NAME = "model.safetensors"
_CONFIG_NAME = "config.yaml"
_MAXIMIZER_NAME = "maximizer.safetensors"


class RunFolder:
    """A run's folder.

    Args:
        path: must not exist yet, or be empty; missing parents are made.
        resume: the folder of a run is wanted instead, which has its settings in it.

    Raises:
        ValueError: if the path is a file, or a folder with something in it; with ``resume``, if it is no run's folder.
        OSError: if it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        if resume:
            recorded_config(self.path)
        else:
            check_new(self.path)
            self.path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def named_by_time(cls, prefix: str) -> RunFolder:
        """A new folder, see :func:`name_by_time`."""
        return cls(name_by_time(prefix))

    @property
    def checkpoint(self) -> Path:
        """Where the trained model goes."""
        return self.path / CHECKPOINT_NAME

    @property
    def maximizer(self) -> Path:
        """Where the networks go that were trained against the model, with their optimizers."""
        return self.path / _MAXIMIZER_NAME

    def write_config(self, config: dict[str, Any]) -> None:
        """config.yaml: the settings, and the versions that ran them. Values are plain."""
        text = yaml.safe_dump({"config": config, "versions": versions(), "started": _now()}, sort_keys=False)
        with atomic_file(self.path / _CONFIG_NAME) as file:
            file.write(text.encode())

    def log(self, **metrics: Any) -> None:
        """Adds a line to metrics.jsonl: a JSON object with the time (UTC, ISO 8601) and the metrics."""
        with open(self._metrics, "a") as file:
            file.write(json.dumps({"time": _now(), **metrics}) + "\n")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl with ``event=name``; one that a kill cut short is none.

        Raises:
            ValueError: if a line is not of :meth:`log`; the message names file and line.
        """
        lines = self._metrics.read_bytes().split(b"\n")[:-1] if self._metrics.exists() else []
        events = (_event(self._metrics, number, line) for number, line in enumerate(lines, 1))
        return [event for event in events if event["event"] == name]

    def sync_metrics(self) -> int:
        """The length of metrics.jsonl in bytes, all of which are on the disk now."""
        with open(self._metrics, "a") as file:
            os.fsync(file.fileno())
            return os.path.getsize(self._metrics)

    def cut_metrics(self, length: int | None = None) -> None:
        """Drops what came after so many bytes of metrics.jsonl; by default, a last line that a kill cut short.

        Raises:
            ValueError: if it has fewer.
        """
        content = self._metrics.read_bytes() if self._metrics.exists() else b""
        length = content.rfind(b"\n") + 1 if length is None else length
        if len(content) < length:
            raise ValueError(f"{self._metrics} must have at least the {length} bytes that it had when the run was "
                             f"saved, it has {len(content)}")
        if len(content) > length:
            os.truncate(self._metrics, length)

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"


def checkpoint_of(run: Path) -> Path:
    """The checkpoint that a path means: a run folder's own, or the file itself."""
    return run / CHECKPOINT_NAME if run.is_dir() else run


def recorded_config(run: Path) -> Path:
    """The file with a run's settings.

    Raises:
        ValueError: if the path is no folder of a run.
    """
    if not (path := run / _CONFIG_NAME).is_file():
        raise ValueError(f"output must be the folder of a run to resume it, but {run} has no {_CONFIG_NAME}; without "
                         "--resume a new run begins")
    return path


def versions() -> dict[str, str]:
    """What runs here."""
    return {"adt_fast": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def name_by_time(prefix: str) -> Path:
    """``PREFIX-YYYYMMDD-HHMMSS``, with a number after it where that exists."""
    stem = f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (Path(stem if attempt == 1 else f"{stem}-{attempt}") for attempt in range(1, 1000))
    return next(name for name in names if not name.exists())


def check_new(path: Path) -> None:
    """Raises ValueError where the path is a file, or a folder with something in it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
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


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
