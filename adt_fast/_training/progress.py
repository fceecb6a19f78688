"""How far a training loop has come, and what its epochs' results are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from .._support.checks import check_int, shown
from .._support.state_checks import check_keys, is_number


@dataclass(frozen=True)
class StepResult:
    """What a training step on one minibatch saw."""

    loss: float
    """The training loss, before the step."""
    penalty: float
    """What jointly trained networks lower besides, before the step; 0 where there are none."""
    accuracy: float
    """Share of the images trained on, the adversarial ones, that were classified right, before the step."""
    clean_accuracy: float | None
    """That of the images as they are, of a model in eval mode, before the step; None where it was not measured. Without
    an adversary, :attr:`accuracy`."""
    images: int
    """Images in the minibatch, those of all processes."""


@dataclass(frozen=True)
class EpochResult:
    """Means over an epoch, weighted by the images of each minibatch."""

    epoch: int
    """Counted from 1."""
    loss: float
    """As in :class:`StepResult`, and so are ``penalty`` and ``accuracy``."""
    penalty: float
    accuracy: float
    clean_accuracy: float | None
    """Of the minibatches in which it was measured; None where it was in none."""
    images: int
    """Images in the epoch."""
    seconds: float
    """Of its minibatches; those of an epoch that was stopped and resumed add up."""
    learning_rate: float
    """Of the optimizer's first parameter group, at the end of the epoch."""


@dataclass(frozen=True)
class FitSettings:
    """What a fit that is resumed has to be called with again."""

    epochs: int
    schedule_every: str
    scheduler: str | None
    """The name of its class."""
    loader: str
    """The name of its class."""
    batches: int | None
    """The loader's length; None for one that has none."""

    @classmethod
    def of(
        cls, loader: Iterable[Any], *, epochs: int, scheduler: LRScheduler | None, schedule_every: str
    ) -> FitSettings:
        """Those of a fit that is called with these."""
        kind = None if scheduler is None else type(scheduler).__name__
        batches = len(loader) if isinstance(loader, Sized) else None
        return cls(epochs, schedule_every, kind, type(loader).__name__, batches)

    def check_same(self, others: FitSettings) -> None:
        """Raises ValueError that names the first setting which the others have otherwise."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(others, one.name)
            if mine != theirs:
                raise ValueError(f"{one.name} must be {mine!r}, as in the fit that is to go on, got {theirs!r}. For a "
                                 "new fit, load the state with its 'fit' set to None")


@dataclass
class EpochSums:
    """Of the minibatches of an epoch so far, each weighted by its images."""

    batches: int = 0
    images: int = 0
    loss: float = 0.0
    penalty: float = 0.0
    accuracy: float = 0.0
    clean_accuracy: float = 0.0
    clean_images: int = 0
    """Of the minibatches in which it was measured."""
    seconds: float = 0.0

    def add(self, result: StepResult) -> None:
        self.batches += 1
        self.images += result.images
        self.loss += result.loss * result.images
        self.penalty += result.penalty * result.images
        self.accuracy += result.accuracy * result.images
        if result.clean_accuracy is not None:
            self.clean_accuracy += result.clean_accuracy * result.images
            self.clean_images += result.images

    def result(self, epoch: int, learning_rate: float) -> EpochResult:
        count = self.images
        means = self.loss / count, self.penalty / count, self.accuracy / count
        return EpochResult(epoch, *means, self.mean_clean_accuracy, count, self.seconds, learning_rate)

    @property
    def mean_clean_accuracy(self) -> float | None:
        return self.clean_accuracy / self.clean_images if self.clean_images else None

    def described(self, is_adversarial: bool) -> str:
        """For a progress bar; whether the images trained on were perturbed."""
        robust = f", robust {self.accuracy / self.images:.1%}" if is_adversarial else ""
        clean = f", clean {self.mean_clean_accuracy:.1%}" if self.clean_images else ""
        speed = f", {self.images / self.seconds:.0f} images/s" if self.seconds else ""
        return f"loss {self.loss / self.images:.3f}{robust}{clean}{speed}"


@dataclass
class FitProgress:
    """Where a fit stands, between two minibatches or two epochs."""

    settings: FitSettings
    results: list[EpochResult] = field(default_factory=list)
    """Of the epochs that are done."""
    sums: EpochSums = field(default_factory=EpochSums)
    """Of the epoch under way."""
    loader_epoch: int | None = None
    """What a BatchLoader draws in it."""

    @property
    def epoch(self) -> int:
        """The one under way, from 1."""
        return len(self.results) + 1

    @property
    def batches_done(self) -> int | None:
        """Minibatches of all epochs; None where the loader does not tell its length."""
        batches = self.settings.batches
        return None if batches is None else len(self.results) * batches + self.sums.batches

    def end_epoch(self, result: EpochResult, loader_epoch: int | None) -> None:
        """From here on the next epoch is under way."""
        self.results.append(result)
        self.sums, self.loader_epoch = EpochSums(), loader_epoch

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "settings": asdict(self.settings),
            "results": [asdict(result) for result in self.results],
            "sums": asdict(self.sums),
            "loader_epoch": self.loader_epoch,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FitProgress:
        """What :meth:`state_dict` gave.

        Raises:
            ValueError, TypeError: if it is something else.
        """
        check_keys("state of the fit", state, [one.name for one in fields(cls)])
        _check_plain("settings of the fit", state["settings"], FitSettings)
        _check_plain("sums of the fit", state["sums"], EpochSums)
        if not isinstance(state["results"], (list, tuple)):
            raise ValueError(f"results of the fit must be a list, got {type(state['results']).__name__}")
        for result in state["results"]:
            _check_plain("a result of the fit", result, EpochResult)
        if state["loader_epoch"] is not None:
            check_int("loader_epoch of the fit", state["loader_epoch"], 0, 2**63)
        settings, sums = FitSettings(**state["settings"]), EpochSums(**state["sums"])
        results = [EpochResult(**result) for result in state["results"]]
        if len(results) > settings.epochs or (settings.batches is not None and sums.batches >= settings.batches):
            raise ValueError(f"state of the fit must be of {settings.epochs} epochs of {settings.batches} batches, got "
                             f"{len(results)} epochs and {sums.batches} batches that are done")
        return cls(settings, results, sums, state["loader_epoch"])


def _check_plain(what: str, state: Any, kind: type) -> None:
    """Raises ValueError where a state is not of a dataclass of plain values: texts, whole numbers >= 0, and numbers."""
    check_keys(what, state, [one.name for one in fields(kind)])
    for one in fields(kind):
        value, wanted = state[one.name], str(one.type)
        is_whole = type(value) is int and 0 <= value < 2**63
        kinds = {"None": value is None, "str": isinstance(value, str), "int": is_whole, "float": is_number(value)}
        if not any(kinds[option] for option in wanted.split(" | ")):
            raise ValueError(f"{one.name} of {what} must be {wanted}, numbers finite, int >= 0, got {shown(value)}")
