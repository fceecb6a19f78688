"""The command line: ``adt-fast train``, ``evaluate``, ``methods``, ``configs`` and ``info``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
import tyro
import yaml

from . import build_info
from ._arguments import argument, default_is
from .config import EvaluateConfig, TrainConfig
from .config_files import ConfigFile, config_names, config_summary, load_config_file
from .evaluation import accuracy_table
from .experiment import EvaluationRun, TrainingRun
from .methods import describe_method, method_names
from .trainer import EpochResult


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a classifier, and report its natural and PGD-20 accuracy."""

    config: Annotated[str | None, argument(str, "NAME|FILE"), default_is("none")] = None
    """Settings to start from, which other flags change: one of those that `adt-fast configs` lists, or a YAML file, the
    config.yaml of a run among them."""

    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print all settings as YAML, and train nothing."""


@dataclass(frozen=True)
class MethodsCommand:
    """List the training methods: maximizer, outer loss, and options with their defaults."""


@dataclass(frozen=True)
class ConfigsCommand:
    """List the settings that come with adt_fast, for `adt-fast train --config NAME`."""


@dataclass(frozen=True)
class InfoConfig:
    """Say what was built, what is in use on this machine, and why any fast path is off."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 1 if a run failed, 2 for a bad setting, 130 after Ctrl-C.

    Args:
        arguments: the words of the command line; default: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command = _parse(arguments, _config_file(arguments))
    except SystemExit as leaving:  # --help, or words that do not parse; tyro has said what there is to say
        return int(leaving.code or 0)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    try:
        if isinstance(command, TrainCommand):
            return _train(command)
        if isinstance(command, EvaluateConfig):
            return _evaluate(command)
        if isinstance(command, MethodsCommand):
            return _print_methods()
        return _print_configs() if isinstance(command, ConfigsCommand) else _info()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _config_file(arguments: Sequence[str]) -> ConfigFile | None:
    """The file of ``--config``, which gives the other flags their defaults and so is read before them."""
    following = [*arguments[1:], ""]
    for word, next_word in zip(arguments, following):
        if word == "--config" and next_word:
            return load_config_file(next_word)
        if word.startswith("--config="):
            return load_config_file(word.removeprefix("--config="))
    return None


def _parse(arguments: Sequence[str], file: ConfigFile | None) -> Any:
    if file is None:
        return _parse_with({}, arguments)
    command = _parse_with(file.settings, arguments)
    # Once more, for it is the command that says whose options of the file are meant.
    is_training = isinstance(command, TrainCommand) and command.method in method_names()
    return _parse_with(file.settings_for(command.method), arguments) if is_training else command


def _parse_with(settings: dict[str, Any], arguments: Sequence[str]) -> Any:
    """What the arguments say, with these settings as the defaults of training."""
    train = tyro.conf.subcommand("train", default=TrainCommand(**settings))
    command = (
        Annotated[TrainCommand, train]
        | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
        | Annotated[MethodsCommand, tyro.conf.subcommand("methods")]
        | Annotated[ConfigsCommand, tyro.conf.subcommand("configs")]
        | Annotated[InfoConfig, tyro.conf.subcommand("info")]
    )
    return tyro.cli(command, prog="adt-fast", description="Adversarial distributional training.", args=arguments)


def _train(command: TrainCommand) -> int:
    try:
        config = TrainConfig(**{field.name: getattr(command, field.name) for field in fields(TrainConfig)})
        if command.print_config:
            print(yaml.safe_dump(config.resolved().as_dict(), sort_keys=False), end="")
            return 0
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


def _print_methods() -> int:
    for name in method_names():
        print(describe_method(name) + "\n")
    return 0


def _print_configs() -> int:
    width = max(map(len, config_names()))
    for name in config_names():
        print(f"{name:<{width}}  {config_summary(name)}")
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
