"""``adt-fast epoch-time``"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from .._runs.machine import device_name
from .._settings.arguments import Folder, Integer, argument, default_is
from ..analysis import epoch_times
from ..analysis.epoch_time import FIGURE_6_METHODS
from ..config import TrainConfig
from ..evaluation.table import aligned
from ._analysis import Output
from .command import begun, train_config


@dataclass(frozen=True)
class EpochTime(TrainConfig):
    """Time an epoch of training with several methods, by a few minibatches of each (the paper's Figure 6)."""

    method: tyro.conf.Suppress[str] = "standard"
    epochs: tyro.conf.Suppress[int | None] = None
    test_limit: tyro.conf.Suppress[int | None] = None
    tensorboard: tyro.conf.Suppress[bool] = False
    wandb: tyro.conf.Suppress[str | None] = None

    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD ...")] = FIGURE_6_METHODS
    """Training methods to time, which take turns."""

    minibatches: Annotated[int, Integer] = 10
    """Minibatches of each method that are timed."""

    warmup: Annotated[int, Integer] = 3
    """Minibatches of each method before those, which are not timed."""

    config: Annotated[str | None, argument(str, "NAME|FILE"), default_is("none")] = None
    """Settings to start from, see adt-fast train."""

    output: Annotated[Path | None, Folder, default_is("runs/epoch-time-TIME")] = None
    """A new or empty folder, for data.json, data.csv, figure.png and figure.pdf."""

    def __call__(self) -> None:
        config = train_config(self)
        output = Output(output=self.output)
        output.check_output()
        with begun():
            result = epoch_times(config, self.methods, minibatches=self.minibatches, warmup=self.warmup)
            images = result.batches * result.settings["batch_size"]
            device = device_name(torch.device(result.settings["device"]))
            print(f"{result.settings['model']} on {config.dataset}, {images:,.0f} images an epoch, on {device}\n")
            rows = [("method", "seconds an epoch", "over at-pgd")]
            for method, seconds, over in zip(result.methods, result.epoch_seconds, result.relative):
                rows.append((method, f"{seconds:.3g}", "-" if over is None else f"{over:.2f}"))
            print(aligned(rows))
            output.save(result, "epoch-time")
