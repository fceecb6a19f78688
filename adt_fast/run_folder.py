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

CHECKPOINT_NAME = "model.safetensors"
_MAXIMIZER_NAME = "maximizer.safetensors"


class RunFolder:
    """A new run's folder.

    Args:
        path: must not exist yet, or be empty; missing parents are made.

    Raises:
        ValueError: if the path is a file, or a folder with something in it.
        OSError: if it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
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
        versions = {"adt_fast": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
        text = yaml.safe_dump({"config": config, "versions": versions, "started": _now()}, sort_keys=False)
        (self.path / "config.yaml").write_text(text)

    def log(self, **metrics: Any) -> None:
        """Adds a line to metrics.jsonl: a JSON object with the time (UTC, ISO 8601) and the metrics."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"time": _now(), **metrics}) + "\n")


def checkpoint_of(run: Path) -> Path:
    """The checkpoint that a path means: a run folder's own, or the file itself."""
    return run / CHECKPOINT_NAME if run.is_dir() else run


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


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
