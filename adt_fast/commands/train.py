"""``adt-fast train``"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields
from typing import Annotated

import tyro
import yaml

from .._arguments import Number, argument, default_is
from ..config import TrainConfig
from ..evaluation import accuracy_table
from ..experiment import DEFAULT_SAVE_EVERY, TrainingRun
from ..trainer import EpochResult
from .command import begun


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a classifier, and report its natural and PGD-20 accuracy."""

    config: Annotated[str | None, argument(str, "NAME|FILE"), default_is("none")] = None
    """Settings to start from, which other flags change: one of those that `adt-fast configs` lists, or a YAML file, the
    config.yaml of a run among them."""

    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print all settings as YAML, and train nothing."""

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run whose folder --output is, from where it was saved last. Its settings are taken from there, and
    may be given again but not changed; only --data-dir and --download may."""

    save_every: Annotated[float, Number] = DEFAULT_SAVE_EVERY
    """Seconds after which the state of the run is saved within an epoch, for --resume; it is after every epoch, too,
    and after Ctrl-C."""

    def __call__(self) -> None:
        config = TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})
        if self.print_config:
            print(yaml.safe_dump(config.resolved().as_dict(), sort_keys=False), end="")
            return
        run = TrainingRun(config, resume=self.resume, save_every=self.save_every)
        for warning in run.warnings:
            print(f"adt-fast: warning: {warning}", file=sys.stderr)
        print(_headline(run), flush=True)
        if self.resume:
            print(f"going on at {run.stands_at}", flush=True)
        with begun(_how_to_go_on(run)):
            run.train(report=None if sys.stderr.isatty() else lambda result: _print_epoch(result, run.config.epochs))
            results = run.results or run.evaluate()
        print(f"\n{accuracy_table(results)}\n\nsaved to {run.folder.path}")


def _headline(run: TrainingRun) -> str:
    config = run.config
    images = len(run.train_loader.data)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return (f"{config.method} on {config.dataset}: {images:,} training images, {config.epochs} epochs, "
            f"epsilon {config.epsilon:.4g}, {config.model} ({parameters:,} parameters), on {config.device}")


def _how_to_go_on(run: TrainingRun) -> str:
    folder = run.folder.path
    command = f"adt-fast train --output {shlex.quote(str(folder))} --resume"
    return f"interrupted; the metrics so far are in {folder}. To go on: {command}"


def _print_epoch(result: EpochResult, epochs: int) -> None:
    print(f"epoch {result.epoch:>{len(str(epochs))}}/{epochs}  loss {result.loss:.4f}  "
          f"accuracy while training {result.accuracy:6.2%}  {result.seconds:.1f} s", flush=True)
