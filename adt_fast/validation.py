"""Validation: the accuracy on images that are not trained on, as training goes on, and the best model so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ._support.checks import check_int
from ._support.state_checks import check_keys
from .attacks import Norm
from .data import ImageData
from .evaluation import Accuracy, create_attack, evaluate, split_attack_names
from .evaluation.accuracy import accuracy_from_state
from .noise import NoiseStream
from .processes import Processes


@dataclass(frozen=True)
class Validated:
    """What a validation found."""

    epoch: int
    """After which it was."""
    natural: Accuracy
    """Of the natural images."""
    robust: Accuracy
    """Under the attack."""

    def is_better_than(self, other: Validated | None) -> bool:
        """Whether its model is more robust than the ``other``'s, or as robust and right more often on natural images;
        anything is better than None."""
        return other is None or (self.robust.correct, self.natural.correct) > (
            other.robust.correct, other.natural.correct
        )  # fmt: skip


class Validation:
    """Tests a model on held-out images while it is trained, and remembers the best.

    Robust accuracy falls again long before adversarial training ends, while that on the training images still rises
    (Rice et al., 2020): the best model is an earlier one than the last.

    Args:
        data: images that are not trained on.
        attack: its name, see :func:`adt_fast.evaluation.create_attack` and :meth:`check_attack`.
        every: epochs from one validation to the next, >= 1.
        epochs: of the training; the last one has a validation in any case.
        epsilon, norm, seed: see :func:`adt_fast.evaluate`.
        processes: those that share the images.
    """

    def __init__(
        self,
        data: ImageData,
        attack: str,
        *,
        every: int,
        epochs: int,
        epsilon: float,
        norm: Norm,
        seed: int,
        processes: Processes,
    ) -> None:
        self.data = data
        self.attack = attack
        self.every = every
        self.epochs = epochs
        self.epsilon = epsilon
        self.norm = norm
        self.seed = seed
        self.processes = processes
        self.best: Validated | None = None
        """Of the most robust model so far."""

    def check_attack(self, model: nn.Module) -> None:
        """Raises ValueError where the attack is none of that name, none for this ball, or more than one.

        Draws nothing from PyTorch's generator.
        """
        try:
            names = split_attack_names(self.attack)
            if len(names) > 1:
                raise ValueError(f"these are {len(names)}")
            create_attack(names[0], model, self.epsilon, norm=self.norm, noise=NoiseStream(0))
        except ValueError as error:
            raise ValueError(f"validation_attack must be one attack, got {self.attack!r}: {error}") from None

    def is_due(self, epoch: int) -> bool:
        """Whether there is one after an epoch, counted from 1."""
        return epoch % self.every == 0 or epoch == self.epochs

    def __call__(self, model: nn.Module, epoch: int) -> Validated:
        """Tests the model after an ``epoch``, in eval mode and float32; a better result becomes :attr:`best`."""
        report = evaluate(
            model, self.data, self.attack, epsilon=self.epsilon, norm=self.norm, seed=self.seed, examples=0,
            processes=self.processes,
        )  # fmt: skip
        natural, robust = report.accuracies().values()
        found = Validated(epoch, natural, robust)
        if found.is_better_than(self.best):
            self.best = found
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the best result so far."""
        return {"best": None if self.best is None else asdict(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the ``state`` that :meth:`state_dict` gave.

        Raises:
            TypeError, ValueError: if it is something else; nothing is changed then.
        """
        check_keys("state of the validation", state, ("best",))
        best = state["best"]
        if best is not None:
            check_keys("best of the validation", best, ("epoch", "natural", "robust"))
            check_int("epoch of the best", best["epoch"], 1, 2**31)
            natural, robust = (accuracy_from_state(f"{name} of the best", best[name]) for name in ("natural", "robust"))
            best = Validated(best["epoch"], natural, robust)
        self.best = best
