"""Validation: the accuracy on images that are not trained on, as training goes on, and the best model so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ._checks import check_int
from ._state_checks import check_keys
from .data import ImageData
from .evaluation import Accuracy, evaluate
from .processes import Processes


@dataclass(frozen=True)
class Validated:
    """What a validation found."""

    epoch: int
    """After which it was."""
    natural: Accuracy
    robust: Accuracy
    """Under the attack."""

    def is_better_than(self, other: Validated | None) -> bool:
        """More robust, or as robust and right more often on the images as they are."""
        return other is None or (self.robust.correct, self.natural.correct) > (
            other.robust.correct, other.natural.correct
        )  # fmt: skip


class Validation:
    """Tests a model on held-out images while it is trained, and remembers the best.

    Robust accuracy falls again long before adversarial training ends, while that on the training images still rises
    (Rice et al., 2020): the best model is an earlier one than the last.

    Args:
        data: images that are not trained on.
        attack: its name, see :func:`adt_fast.evaluation.create_attack`.
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
        norm: str,
        seed: int,
        processes: Processes,
    ) -> None:
        self.data = data
        self.attack = attack
        self.every = every
        self.epochs = epochs
        self._settings = {"epsilon": epsilon, "norm": norm, "seed": seed, "processes": processes}
        self.best: Validated | None = None
        """Of the most robust model so far."""

    def is_due(self, epoch: int) -> bool:
        """Whether there is one after an epoch, counted from 1."""
        return epoch % self.every == 0 or epoch == self.epochs

    def __call__(self, model: nn.Module, epoch: int) -> Validated:
        """Tests the model, in eval mode and float32; :attr:`best` is this result where it is better."""
        report = evaluate(model, self.data, self.attack, examples=0, **self._settings)
        natural, robust = report.accuracies().values()
        found = Validated(epoch, natural, robust)
        if found.is_better_than(self.best):
            self.best = found
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the best result so far."""
        return {"best": None if self.best is None else asdict(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Raises:
            TypeError, ValueError: if it is something else; nothing is changed then.
        """
        check_keys("state of the validation", state, ("best",))
        best = state["best"]
        if best is not None:
            check_keys("best of the validation", best, ("epoch", "natural", "robust"))
            check_int("epoch of the best", best["epoch"], 1, 2**31)
            accuracies = {}
            for name in ("natural", "robust"):
                check_keys(f"{name} of the best", best[name], ("correct", "total"))
                accuracies[name] = Accuracy(**best[name])
            best = Validated(best["epoch"], **accuracies)
        self.best = best
