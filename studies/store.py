"""Where a study keeps what it has done: a folder a model, a file a measurement, named by the hash of their settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from adt_fast._support.atomic_file import atomic_file
from adt_fast.config import PLACES

from .plan import Measurement, Run


class ModelFolder:
    """The folder of a model: its run, and what was measured of it.

    Args:
        work: the folder of all studies.
        run: the model.
    """

    def __init__(self, work: Path, run: Run) -> None:
        settings = without_places(run.config(None, work).resolved().as_dict())
        method = run.changes["method"]
        self.path = work / f"{method}-{run.seed}-{_digest(settings)}"
        self.run = self.path / "run"

    def file(self, measurement: Measurement, ending: str = "json") -> Path:
        """Where the result of a measurement is, or belongs; with other endings, what it needs to go on."""
        return self.path / f"{measurement.kind}-{_digest(measurement.settings)}.{ending}"

    def result(self, measurement: Measurement) -> dict[str, Any] | None:
        """What was measured; None if it was not yet."""
        path = self.file(measurement)
        return json.loads(path.read_text()) if path.exists() else None

    def keep(self, measurement: Measurement, result: dict[str, Any]) -> None:
        """Writes what was measured."""
        write_json(self.file(measurement), result)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """The document, a line for each innermost list, or the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())


def without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run without those that say where files are."""
    return {name: value for name, value in settings.items() if name not in PLACES}


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
