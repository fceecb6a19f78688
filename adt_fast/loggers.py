"""Writers of a run's metrics to other places than its metrics.jsonl: TensorBoard, and Weights & Biases.

A logger is called with each line of metrics.jsonl, a dict of plain values, and closed when there are no more::

    run.folder.loggers.append(TensorBoardLogger(run.folder.path))
"""

from __future__ import annotations

import importlib
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ._runs.folder import logged_events
from ._support.atomic_file import atomic_file

_WANDB_ID_NAME = "wandb_id"


class Logger(ABC):
    """What may fail without the training that it logs: its first failure is a RuntimeWarning, and others are silent."""

    name: str
    """In words."""
    module: str
    """What it writes with."""
    extra: str
    """Of adt_fast, which installs that."""

    def __init__(self) -> None:
        self._has_warned = False

    @classmethod
    def package(cls) -> ModuleType:
        """The module that it writes with.

        Raises:
            ImportError: if it is not installed; the message says how to.
        """
        try:
            return importlib.import_module(cls.module)
        except ImportError:
            raise ImportError(f'{cls.name} needs its own package: pip install "adt_fast[{cls.extra}]"') from None

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes an event: a dict of plain values, with its kind under ``event``."""
        try:
            self._write(event)
        except Exception as error:
            self._warn(error)

    def close(self) -> None:
        """Everything is written; to be called last."""
        try:
            self._close()
        except Exception as error:
            self._warn(error)

    @abstractmethod
    def _write(self, event: dict[str, Any]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"{self.name} is missing metrics, which metrics.jsonl has ({type(error).__name__}: {error}). "
                          "The run goes on", RuntimeWarning, stacklevel=3)  # fmt: skip


class TensorBoardLogger(Logger):
    """Numbers as scalars ``EVENT/NAME`` over epochs, in the folder ``tensorboard`` of the run.

    What a resumed run does again replaces what was there from its first epoch on.

    Args:
        folder: the run's.

    Raises:
        ImportError: if TensorBoard is not installed.
    """

    name, module, extra = "TensorBoard", "torch.utils.tensorboard", "tensorboard"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._make_writer = self.package().SummaryWriter
        self._writer: Any = None

    def _write(self, event: dict[str, Any]) -> None:
        step = _epoch_of(event, self._folder)
        if self._writer is None:
            # An epoch done again goes from its metrics on; all else follows the metrics of its epoch, which stay.
            first = step if event["event"] == "epoch" else step + 1
            self._writer = self._make_writer(str(self._folder / "tensorboard"), purge_step=first)
        for name, value in _numbers(event):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLogger(Logger):
    """Numbers as ``EVENT/NAME`` over epochs, in a run of Weights & Biases; what has no epoch is in its summary.

    The run's id is in the file ``wandb_id`` of the folder, so that a resumed run goes on in the same one. The
    environment variables of W&B count: with ``WANDB_MODE=offline`` nothing leaves the folder.

    Args:
        folder: the run's, which W&B's own files go to as well.
        project: of W&B, made if missing.
        name: what the run is called there. Default: as the folder.
        config: the settings, plain values.

    Raises:
        ImportError: if the package is not installed.
    """

    name, module, extra = "Weights & Biases", "wandb", "wandb"

    def __init__(self, folder: Path, project: str, name: str | None, config: dict[str, Any]) -> None:
        super().__init__()
        wandb = self.package()
        self._run: Any = None
        try:
            self._run = wandb.init(
                project=project,
                name=folder.resolve().name if name is None else name,
                id=_wandb_id(folder),
                resume="allow",
                config=config,
                dir=str(folder),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # no network, no key: the warning comes before the training
            self._warn(error)

    def _write(self, event: dict[str, Any]) -> None:
        if self._run is None:
            return
        if "epoch" in event:
            if event["epoch"] >= self._run.step:  # W&B takes nothing back: an epoch done again stays as it is there
                self._run.log(dict(_numbers(event)), step=event["epoch"])
        else:
            self._run.summary.update(dict(_numbers(event)) | dict(_texts(event)))

    def _close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _epoch_of(event: dict[str, Any], folder: Path) -> int:
    """The event's own, or the last one that the run has logged; 0 before the first."""
    if "epoch" in event:
        return event["epoch"]
    epochs = logged_events(folder, "epoch")
    return epochs[-1]["epoch"] if epochs else 0


def _numbers(event: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """``EVENT/NAME`` and the value of what is a number; of an accuracy, the share from 0 to 1."""
    for name, value in event.items():
        if isinstance(value, dict) and value.keys() == {"correct", "total"}:
            value = value["correct"] / value["total"]
        if name != "epoch" and isinstance(value, (bool, int, float)):
            yield f"{event['event']}/{name}", value


def _texts(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in event.items():
        if name not in ("event", "time") and isinstance(value, str):
            yield f"{event['event']}/{name}", value


def _wandb_id(folder: Path) -> str:
    """The id of the folder's run, made when there is none."""
    path = folder / _WANDB_ID_NAME
    if not path.exists():
        with atomic_file(path) as file:
            file.write(uuid.uuid4().hex[:16].encode())
    return path.read_text().strip()
