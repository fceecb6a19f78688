"""What there is in the folder of a run that is to be gone on with, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .._support.checks import check_int, shown
from .._support.state_checks import check_keys, check_network_state
from ..checkpoint import CheckpointError, load_model
from ..config import ResolvedConfig, TrainConfig
from ..config_files import check_same_settings, load_config_file
from ..evaluation import Accuracy
from ..evaluation.accuracy import accuracy_from_state
from ..trainer import Trainer
from ..validation import Validation
from .checkpoint import RunCheckpoint
from .folder import RunFolder, recorded_config

_STATE_KEYS = ("config", "trainer", "validation", "agreements_logged", "extra_checksum", "metrics_length")


def resumed_settings(config: TrainConfig) -> ResolvedConfig:
    """The settings of the run to be resumed, which those given must not differ from."""
    if config.output is None:
        raise ValueError("output must be given to resume a run: its folder")
    path = str(recorded_config(config.output))
    recorded = load_config_file(path).config().resolved().as_dict()
    for name in ("dataset", "method"):  # first: the defaults and options of others depend on them
        check_same_settings(config, {name: recorded[name]}, path)
    resolved = config.resolved()
    check_same_settings(resolved, recorded, path)
    return resolved


def found_in(
    folder: RunFolder, checkpoint: RunCheckpoint, config: TrainConfig, trainer: Trainer, validation: Validation | None
) -> dict[str, Any]:
    """What a run can go on from, as a dict that processes can send to each other.

    Of a run under way ``state`` and the ``path`` that it is from; of one whose training is done ``model``, ``joint``,
    ``validation`` (their states) and ``tests``, the logged ones of the model and of the best, each None where there is
    none. In any case ``metrics_length``, see :meth:`RunFolder.cut_metrics`.

    Raises:
        ValueError: where it is of another run, or no run can go on from it; CheckpointError where a file is damaged.
    """
    state = checkpoint.load()
    found: dict[str, Any] = {"state": state, "path": str(checkpoint.loaded_from), "model": None, "metrics_length": 0}
    if state is not None:
        _check_state(state, config, found["path"])
        found["metrics_length"] = state["metrics_length"]
    elif folder.checkpoint.exists():
        found |= _found_results(folder, config, trainer, validation)
    elif len(folder.events("epoch")) > 1:
        raise CheckpointError(f"{folder.path} has the metrics of a run, but neither its state, {checkpoint.path.name}, "
                              "nor its model. Begin again, in another folder")
    # Otherwise it was killed before its first save, which follows the log of the first epoch.
    return found


def _check_state(state: dict[str, Any], config: TrainConfig, path: str) -> None:
    """As far as that needs no trainer."""
    with told_of(path):
        check_keys("state of the run", state, _STATE_KEYS)
        settings = state["config"]
        if not isinstance(settings, dict) or any(isinstance(value, Tensor) for value in settings.values()):
            raise ValueError(f"config of the state must be a dict of plain values, got {shown(settings)}")
        check_int("metrics_length", state["metrics_length"], 0, 2**63)
    check_same_settings(config, settings, path)


def _found_results(
    folder: RunFolder, config: TrainConfig, trainer: Trainer, validation: Validation | None
) -> dict[str, Any]:
    model, _ = load_model(folder.checkpoint, model_name=config.model)
    with told_of(folder.checkpoint):
        check_network_state("model", trainer.trained_model.state_dict(), model.state_dict())
    found: dict[str, Any] = {"model": model.state_dict(), "joint": None, "metrics_length": None}
    joint = trainer.method.joint
    if joint is not None:
        joint.load(folder.maximizer)
        found["joint"] = joint.state_dict()
    if validation is not None:
        found["validation"] = {"best": _validation_of(folder.best)}
        with told_of(folder.best):
            validation.load_state_dict(found["validation"])
    tests = {str(event.get("checkpoint")): event for event in folder.events("test")}
    found["tests"] = [tests.get(path.name) for path in (folder.checkpoint, folder.best)]
    with told_of(folder.metrics):
        list(map(accuracies_of, found["tests"]))
    return found


def accuracies_of(test: dict[str, Any] | None) -> dict[str, Accuracy] | None:
    """Those in a logged test. Raises TypeError or ValueError where it is none."""
    if test is None:
        return None
    accuracies = {name: accuracy_from_state(f"{shown(name)} of a test", value) for name, value in test.items()
                  if isinstance(value, dict)}  # fmt: skip
    if not accuracies:
        raise ValueError("a test must have accuracies, it has none")
    return accuracies


def _validation_of(path: Path) -> dict[str, Any]:
    """What was found of the model that was saved as the best."""
    extra = load_model(path)[1]["extra"]
    if not isinstance(extra, dict) or not isinstance(extra.get("validation"), dict):
        raise CheckpointError(f"{path} is a model, but not with what its validation found")
    return extra["validation"]


@contextmanager
def told_of(path: str | Path) -> Iterator[None]:
    """What is found wrong with the contents of a file is told with its name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not what this run can go on from: {error}") from error
