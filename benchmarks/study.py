"""The file of a study: its runs, and the machine they ran on; a run that is there is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from adt_fast._support.atomic_file import atomic_file

from . import machine


def load_study(path: Path | None) -> dict[str, Any]:
    """What the file holds; an empty study where there is none."""
    return json.loads(path.read_text()) if path is not None and path.exists() else {"machine": None, "runs": []}


def add_run(document: dict[str, Any], run: dict[str, Any], device: str, path: Path | None) -> None:
    """Adds a run to the study, and to its file, if it has one."""
    document["runs"].append(run)
    document["machine"] = machine.describe(torch.device(device))
    if path is not None:
        with atomic_file(path) as file:
            file.write((json.dumps(document, indent=1) + "\n").encode())
