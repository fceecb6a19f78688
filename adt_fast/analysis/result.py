"""AnalysisResult: what every analysis gives, as numbers, as a picture, and as files."""

from __future__ import annotations

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._support.atomic_file import atomic_file
from . import _figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DATA_NAMES = ("data.json", "data.csv")
_FIGURE_NAMES = tuple(f"figure.{kind}" for kind in _figures.KINDS)


@dataclass(frozen=True)
class SavedResult:
    """Where a result went."""

    files: tuple[Path, ...]
    """What was written."""
    note: str
    """Why there is no figure, and what to do about it; empty where there is one."""


class AnalysisResult(ABC):
    """The numbers of an analysis. A subclass is a frozen dataclass that defines :meth:`table` and :meth:`draw`."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, tensors as lists: what ``data.json`` holds."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]

    @abstractmethod
    def table(self) -> list[tuple[Any, ...]]:
        """The numbers as rows, one a measurement, under a row of column names: what ``data.csv`` holds."""

    @abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draws the numbers.

        Args:
            figure: an empty one, whose width is a column's of a paper unless this sets its size.
        """

    def plot(self) -> Figure:
        """The figure, in the house style. It is not registered with pyplot, and so needs no closing.

        Raises:
            ImportError: if matplotlib is missing.
        """
        return _figures.drawn(self.draw)

    def save(self, folder: str | os.PathLike[str]) -> SavedResult:
        """Writes data.json, data.csv, figure.png and figure.pdf, in place of what was there by these names.

        Each file appears whole or not at all. Without matplotlib the data are written alone, older figures are removed,
        for they would show something else, and the note says so.

        Args:
            folder: made if missing.

        Raises:
            OSError: if it cannot be written to.
        """
        folder = Path(folder)
        contents = dict(zip(_DATA_NAMES, (self._json(), self._csv())))
        note = ""
        try:
            contents |= dict(zip(_FIGURE_NAMES, _figures.rendered(self.draw)))
        except ImportError as error:
            note = str(error)
        for name, content in contents.items():
            with atomic_file(folder / name) as file:
                file.write(content)
        for name in _FIGURE_NAMES:
            if name not in contents:
                (folder / name).unlink(missing_ok=True)
        return SavedResult(tuple(folder / name for name in contents), note)

    def _json(self) -> bytes:
        return (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode()

    def _csv(self) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(self.table())
        return text.getvalue().encode()


def plain(value: Any) -> Any:
    """The value without tensors and tuples, for JSON."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value
