"""The command line: ``adt-fast train``, ``adt-fast evaluate``, ``adt-fast info``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from . import build_info
from .config import EvaluateConfig, TrainConfig
from .evaluation import accuracy_table
from .experiment import EvaluationRun, TrainingRun
from .trainer import EpochResult


@dataclass(frozen=True)
class InfoConfig:
    """Say what was built, what is in use on this machine, and why any fast path is off."""


Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[InfoConfig, tyro.conf.subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 1 if a run failed, 2 for a bad setting, 130 after Ctrl-C.

    Args:
        arguments: the words of the command line; default: those of the process.
    """
    try:
        command = tyro.cli(Command, prog="adt-fast", description="Adversarial distributional training.", args=arguments)
    except SystemExit as leaving:  # --help, or words that do not parse; tyro has said what there is to say
        return int(leaving.code or 0)
    try:
        if isinstance(command, TrainConfig):
            return _train(command)
        if isinstance(command, EvaluateConfig):
            return _evaluate(command)
        return _info()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _train(config: TrainConfig) -> int:
    try:
        run = TrainingRun(config)
    except (ValueError, OSError, ImportError) as error:
        return _fail(error, 2)
    print(_headline(run), flush=True)
    try:
        run.train(report=None if sys.stderr.isatty() else lambda result: _print_epoch(result, run.config.epochs))
        results = run.evaluate()
    except (FloatingPointError, torch.OutOfMemoryError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail(f"interrupted; the metrics so far are in {run.folder.path}", 130)
    print(f"\n{accuracy_table(results)}\n\nsaved to {run.folder.path}")
    return 0


def _evaluate(config: EvaluateConfig) -> int:
    try:
        run = EvaluationRun(config)
    except (ValueError, OSError, ImportError) as error:
        return _fail(error, 2)
    print(f"{config.run} on {len(run.loader.data)} test images of {run.dataset}, epsilon {run.epsilon:.4g}", flush=True)
    try:
        results = run.evaluate()
    except torch.OutOfMemoryError as error:
        return _fail(error, 1)
    print(f"\n{accuracy_table(results)}")
    return 0


def _info() -> int:
    info = build_info()
    width = max(map(len, info))
    for name, value in info.items():
        print(f"{name.replace('_', ' '):<{width}}  {_readable(value)}")
    return 0


def _readable(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value) or "-"


def _headline(run: TrainingRun) -> str:
    config = run.config
    images = len(run.train_loader.data)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return (f"{config.method} on {config.dataset}: {images:,} training images, {config.epochs} epochs, "
            f"epsilon {config.epsilon:.4g}, {config.model} ({parameters:,} parameters), on {config.device}")


def _print_epoch(result: EpochResult, epochs: int) -> None:
    print(f"epoch {result.epoch:>{len(str(epochs))}}/{epochs}  loss {result.loss:.4f}  "
          f"accuracy while training {result.accuracy:6.2%}  {result.seconds:.1f} s", flush=True)


def _fail(error: Exception | str, status: int) -> int:
    print(f"adt-fast: error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
