"""``adt-fast train``"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro
import yaml
from tqdm import tqdm

from .._settings.arguments import Number, argument, default_is
from .._support.devices import resolve_device
from ..config import TrainConfig
from ..evaluation import accuracy_table
from ..experiment import DEFAULT_SAVE_EVERY, TrainingRun
from ..processes import Processes, local_device
from ..trainer import EpochResult
from ..validation import Validated
from .command import INTERRUPTED, CommandFailed, begun, train_config


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
        config = train_config(self)
        if self.print_config:
            print(yaml.safe_dump(config.resolved().as_dict(), sort_keys=False), end="")
            return
        with Processes.from_torchrun(local_device(resolve_device(config.device))) as processes:
            run = self._run(config, processes)
            try:
                _train(run)
            except CommandFailed as failure:
                if processes.is_first:
                    raise
                raise self._of_one_process(failure, processes) from None
            finally:
                run.close()

    def _run(self, config: TrainConfig, processes: Processes) -> TrainingRun:
        try:
            return TrainingRun(config, resume=self.resume, save_every=self.save_every, processes=processes)
        except (ValueError, OSError, ImportError):
            if processes.is_first:
                raise
            raise SystemExit(2) from None  # the first one has the same error, and says it

    @staticmethod
    def _of_one_process(failure: CommandFailed, processes: Processes) -> BaseException:
        """What another process than the first ends with: it says what has failed in it, and where."""
        if failure.status == INTERRUPTED:
            return SystemExit(INTERRUPTED)  # all are, and the first one says so
        return CommandFailed(f"process {processes.rank} of {processes.size}: {failure}", failure.status)


def _train(run: TrainingRun) -> None:
    say = partial(print, flush=True) if run.processes.is_first else _silent
    for warning in run.warnings if run.processes.is_first else ():
        print(f"adt-fast: warning: {warning}", file=sys.stderr)
    say(_headline(run))
    if run.stands_at != "the beginning":
        say(f"going on at {run.stands_at}")
    with begun(_how_to_go_on(run)):
        run.train(report=lambda result, found: _say_above_bar(say, _epoch_line(result, found, run.config.epochs)))
        results = run.evaluate()
    say(f"\n{accuracy_table(results)}")
    if run.best_results is not None:
        best = None if run.validation is None else run.validation.best
        say(f"\nof the best model in validation{f', that after epoch {best.epoch}' if best else ''}\n\n"
            f"{accuracy_table(run.best_results)}")
    say(f"\nsaved to {run.path}")


def _silent(text: str) -> None:
    """Of several processes, only the first one speaks."""


def _say_above_bar(say: Callable[[str], None], line: str) -> None:
    with tqdm.external_write_mode(sys.stdout):
        say(line)


def _headline(run: TrainingRun) -> str:
    config = run.config
    images = len(run.train_loader.data)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    where = config.device if run.processes.size == 1 else f"{run.processes.size} processes, {config.device}"
    return (f"{config.method} on {config.dataset}: {images:,} training images, {config.epochs} epochs, "
            f"epsilon {config.epsilon:.4g}, {config.model} ({parameters:,} parameters), on {where}")


def _how_to_go_on(run: TrainingRun) -> str:
    command = f"adt-fast train --output {shlex.quote(str(run.path))} --resume"
    if run.processes.size > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", run.processes.size))
        nodes = "" if here == run.processes.size else f"--nnodes {run.processes.size // here} "
        command = f"torchrun {nodes}--nproc-per-node {here} -m adt_fast.cli{command.removeprefix('adt-fast')}"
    return f"interrupted; the metrics so far are in {run.path}. To go on: {command}"


def _epoch_line(result: EpochResult, validated: Validated | None, epochs: int) -> str:
    clean = "" if result.clean_accuracy is None else f", clean {result.clean_accuracy:6.2%}"
    validation = "" if validated is None else f"  validation {validated.robust}, clean {validated.natural}"
    return (f"epoch {result.epoch:>{len(str(epochs))}}/{epochs}  loss {result.loss:.4f}  accuracy while training "
            f"{result.accuracy:6.2%}{clean}{validation}  {result.images / result.seconds:,.0f} images/s  "
            f"{result.seconds:.1f} s")
