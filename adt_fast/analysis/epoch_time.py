"""What an epoch of each method takes (paper, Section D.2 and Figure 6)."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._runs.machine import describe_machine
from .._support.checks import check_int
from ..config import TrainConfig
from ..experiment import TrainingRun
from ..methods import method_spec
from . import _figures
from .result import AnalysisResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_6_METHODS = ("standard", "at-pgd", "adt-exp", "adt-exp-am", "adt-imp-am")
"""Those of the paper's figure."""
YARDSTICK = "at-pgd"
"""What the paper compares with."""


@dataclass(frozen=True)
class EpochTimes(AnalysisResult):
    """Seconds of minibatches, and what they make of an epoch."""

    methods: tuple[str, ...]
    """Their names, in the order in which they were given."""
    seconds: tuple[tuple[float, ...], ...]
    """Of each method, of each minibatch that was timed."""
    batches: float
    """Minibatches in an epoch; the last may be a part of one."""
    settings: dict[str, Any]
    """Of the runs, without what the methods do not share."""
    machine: dict[str, Any]
    """See :func:`adt_fast._runs.machine.describe_machine`."""

    @property
    def epoch_seconds(self) -> tuple[float, ...]:
        """Of each method: the median minibatch times the minibatches of an epoch."""
        return tuple(statistics.median(seconds) * self.batches for seconds in self.seconds)

    @property
    def spreads(self) -> tuple[tuple[float, float], ...]:
        """Of each method: an epoch of its fastest and of its slowest minibatch, in seconds."""
        return tuple((min(seconds) * self.batches, max(seconds) * self.batches) for seconds in self.seconds)

    @property
    def relative(self) -> tuple[float | None, ...]:
        """Of each method: its epoch over one of AT-PGD; None where that was not timed."""
        if YARDSTICK not in self.methods:
            return (None,) * len(self.methods)
        unit = self.epoch_seconds[self.methods.index(YARDSTICK)]
        return tuple(seconds / unit for seconds in self.epoch_seconds)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        return {
            **super().to_dict(),
            "epoch_seconds": list(self.epoch_seconds),
            "epoch_seconds_of_fastest_and_slowest": [list(spread) for spread in self.spreads],
            f"over_{YARDSTICK}": list(self.relative),
        }

    def table(self) -> list[tuple[Any, ...]]:
        """One row a method."""
        rows = zip(self.methods, self.epoch_seconds, self.spreads, self.relative)
        return [
            ("method", "epoch_seconds", "fastest", "slowest", f"over_{YARDSTICK}"),
            *((method, seconds, *spread, over) for method, seconds, spread, over in rows),
        ]

    def draw(self, figure: Figure) -> None:
        """A bar for each method."""
        figure.set_size_inches(_figures.COLUMN_WIDTH, 0.7 + 0.3 * len(self.methods))
        axes = figure.subplots()
        errors = list(zip(*((seconds - low, high - seconds)
                            for seconds, (low, high) in zip(self.epoch_seconds, self.spreads))))
        axes.barh(self.methods, self.epoch_seconds, xerr=errors, height=0.6, color=_figures.COLORS[0],
                  error_kw={"elinewidth": 0.8, "capsize": 2})  # fmt: skip
        for row, (seconds, (_, high), over) in enumerate(zip(self.epoch_seconds, self.spreads, self.relative)):
            ratio = "" if over is None else f" ({over:.2g}$\\times$)"
            axes.annotate(f"{seconds:.3g} s{ratio}", (high, row), xytext=(3, 0), textcoords="offset points",
                          va="center", fontsize=7)  # fmt: skip
        axes.set(xlabel="seconds per epoch", xlim=(0, 1.45 * max(high for _, high in self.spreads)))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)


def epoch_times(
    config: TrainConfig,
    methods: Sequence[str] = FIGURE_6_METHODS,
    *,
    minibatches: int = 10,
    warmup: int = 3,
) -> EpochTimes:
    """The time of an epoch of training with each method: the median of a few minibatches, times those of an epoch.

    A minibatch is all that an epoch does for it: loading and augmentation, perturbation, the step of the optimizer.
    Full minibatches are timed. Methods take turns, so that whatever the machine does meanwhile hits all of them.

    Args:
        config: how to train; its method, output and loggers are not used. A method takes those of its options that it
            has.
        methods: names, see :func:`adt_fast.methods.method_names`; at least one, no two the same.
        minibatches: of each method that are timed, >= 1.
        warmup: minibatches before, not timed, >= 1: the engine measures and captures there.

    Raises:
        TypeError, ValueError, OSError, ImportError: for a bad argument, by name, an option that none of the methods has
            among them; see :class:`adt_fast.experiment.TrainingRun` too.
        FloatingPointError: if a step fails.
    """
    _check_counts(minibatches, warmup)
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"methods must be one or more different names, got {list(methods)}")
    known = {name for method in methods for name in method_spec(method).defaults()}
    if foreign := sorted(config.method_options().keys() - known):
        raise ValueError(f"{foreign[0]} is no option of any of the methods {', '.join(methods)}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_runs:
        runs = {}
        for method in methods:
            runs[method] = TrainingRun(_config_of(method, config, Path(folder) / method))
            open_runs.callback(runs[method].close)
        loader, device = runs[methods[0]].train_loader, torch.device(runs[methods[0]].config.device)
        if loader.batch_size > loader.images_per_epoch:
            raise ValueError(f"batch_size must be at most {loader.images_per_epoch}, the images of an epoch, for a "
                             f"minibatch to be full, got {loader.batch_size}")
        seconds = time_in_turns(
            {method: _minibatch_of(run) for method, run in runs.items()},
            minibatches=minibatches, warmup=warmup, clock=lambda: _now(device),
        )  # fmt: skip
        shared = [run.config.as_dict() for run in runs.values()]
    names = [name for name in shared[0] if name != "output" and all(one.get(name) == shared[0][name] for one in shared)]
    return EpochTimes(
        methods=tuple(methods),
        seconds=tuple(seconds.values()),
        batches=loader.images_per_epoch / loader.batch_size,
        settings={name: shared[0][name] for name in names},
        machine=describe_machine(device),
    )


def _config_of(method: str, config: TrainConfig, output: Path) -> TrainConfig:
    """The config for this method, without the options that it does not have, and without loggers."""
    foreign = config.method_options().keys() - method_spec(method).defaults()
    left_out: dict[str, Any] = dict.fromkeys(foreign)
    return replace(config, method=method, output=output, tensorboard=False, wandb=None, **left_out)


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    minibatches: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Seconds of each call, ``minibatches`` times, round after round; every other round goes backwards.

    Args:
        calls: by name.
        minibatches: rounds that are timed, >= 1.
        warmup: rounds before, >= 1.
        clock: seconds, from any origin.
    """
    _check_counts(minibatches, warmup)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(warmup + minibatches):
        for name in calls if repeat % 2 == 0 else reversed(list(calls)):  # nobody always follows the same neighbour
            start = clock()
            calls[name]()
            if repeat >= warmup:
                seconds[name].append(clock() - start)
    return {name: tuple(values) for name, values in seconds.items()}


def _check_counts(minibatches: int, warmup: int) -> None:
    check_int("minibatches", minibatches, 1, 2**31)
    check_int("warmup", warmup, 1, 2**31)


def _minibatch_of(run: TrainingRun) -> Callable[[], object]:
    """One full minibatch of the run: load it, and train on it."""
    batches = _full_batches(run)
    return lambda: run.trainer.step(*next(batches))


def _full_batches(run: TrainingRun) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, without end."""
    while True:
        yield from (batch for batch in run.train_loader if len(batch[0]) == run.train_loader.batch_size)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
