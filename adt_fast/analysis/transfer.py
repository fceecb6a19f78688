"""Adversarial examples made on one model and tried on others (paper, Section 5.3 and Figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._support.arithmetic import float32_arithmetic
from .._support.checks import check_ball, check_int
from .._support.model_state import check_model, model_mode
from ..attacks import MIM, PGD, Attack
from ..evaluation.accuracy import is_right
from ..evaluation.batches import Batches
from ..noise import NoiseStream
from . import _figures
from ._batches import shown_batches
from .result import AnalysisResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AttackFactory = Callable[[nn.Module], Attack]
"""A model -> the attack on it."""


@dataclass(frozen=True, eq=False)
class TransferMatrix(AnalysisResult):
    """How many images each target model gets right, of those perturbed against each source model."""

    attacks: tuple[str, ...]
    """Their names."""
    sources: tuple[str, ...]
    """Names of the models that the images were perturbed against."""
    targets: tuple[str, ...]
    """Names of the models that they were tried on."""
    correct: Tensor
    """``[attacks, sources, targets]``, int64."""
    natural: Tensor
    """``[targets]``, int64: of the images as they are."""
    images: int
    """How many."""

    @property
    def accuracies(self) -> Tensor:
        """``[attacks, sources, targets]``, float64, from 0 to 1."""
        return self.correct.double() / self.images

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the accuracies."""
        return {**super().to_dict(), "accuracies": self.accuracies.tolist()}

    def table(self) -> list[tuple[Any, ...]]:
        """attack, source, target, correct, images, accuracy; natural images have neither attack nor source."""
        rows: list[tuple[Any, ...]] = [("attack", "source", "target", "correct", "images", "accuracy")]
        for target, correct in zip(self.targets, self.natural.tolist()):
            rows.append(("", "", target, correct, self.images, correct / self.images))
        for attack, by_source in zip(self.attacks, self.correct.tolist()):
            for source, by_target in zip(self.sources, by_source):
                for target, correct in zip(self.targets, by_target):
                    rows.append((attack, source, target, correct, self.images, correct / self.images))
        return rows

    def draw(self, figure: Figure) -> None:
        """A heat map for each attack, in one scale."""
        rows, columns = len(self.sources) + 1, len(self.targets)
        width = 0.62 * columns * len(self.attacks) + 1.9
        figure.set_size_inches(width, max(1.5, 0.36 * rows + 1.25))
        axes = figure.subplots(1, len(self.attacks), squeeze=False, sharey=True)[0]
        natural = (self.natural.double() / self.images)[None]
        for axis, name, accuracies in zip(axes, self.attacks, self.accuracies):
            percent = 100 * torch.cat([natural, accuracies])
            image = axis.imshow(percent.numpy(), vmin=0, vmax=100, cmap=_figures.SEQUENTIAL, aspect="auto")
            for row, line in enumerate(percent.tolist()):
                for column, value in enumerate(line):
                    color = "black" if value > 55 else "white"
                    axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=7)
            axis.axhline(0.5, color="white", linewidth=2.0)
            axis.set_xticks(range(columns), self.targets, rotation=30, ha="right", rotation_mode="anchor")
            axis.set_yticks(range(rows), ["(natural)", *self.sources])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set(title=name, xlabel="target model")
        axes[0].set_ylabel("source model")
        figure.colorbar(image, ax=list(axes), label="accuracy (%)", shrink=0.9)


def transfer_attacks(epsilon: float = 8 / 255, seed: int = 0) -> dict[str, AttackFactory]:
    """The paper's: PGD and MIM, of 20 steps of size epsilon / 4.

    Args:
        epsilon: radius of the L-infinity ball, > 0, in the images' units.
        seed: of PGD's random start, in [0, 2**63).

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """
    check_ball(epsilon, 0.0, 1.0)
    check_int("seed", seed, 0, 2**63)
    return {
        "PGD-20": lambda model: PGD(model, epsilon, steps=20, noise=NoiseStream(seed)),
        "MIM-20": lambda model: MIM(model, epsilon, steps=20),
    }


def transfer_accuracy(
    sources: Mapping[str, nn.Module],
    targets: Mapping[str, nn.Module],
    data: Batches,
    *,
    attacks: Mapping[str, AttackFactory] | None = None,
) -> TransferMatrix:
    """The accuracy of target models on adversarial examples of source models.

    Each source's examples are made once, and tried on all targets. Where a source is a target too, that is the
    white-box accuracy. All images count, those that are misclassified as they are among them.

    Args:
        sources, targets: by name, all on one device; each takes images ``[B, C, H, W]`` in [0, 1] and gives logits.
            They run in eval mode, in float32, and are left as they were.
        data: an :class:`adt_fast.data.ImageData`, or batches (images, labels); gone through once.
        attacks: by name, see :data:`AttackFactory`. Default: :func:`transfer_attacks`.

    Raises:
        TypeError, ValueError: for a bad argument, by name, or if there are no data.
        FloatingPointError: if a gradient is not finite.
    """
    attacks = transfer_attacks() if attacks is None else attacks
    for name, given in (("sources", sources), ("targets", targets), ("attacks", attacks)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} must be a dict, got {type(given).__name__}")
        if not given:
            raise ValueError(f"{name} must have at least one, it is empty")
        if name == "attacks" and not all(map(callable, given.values())):
            raise TypeError("attacks must be callable, model -> attack")
    for model in (*sources.values(), *targets.values()):
        check_model(model)
    made = [[factory(model) for model in sources.values()] for factory in attacks.values()]
    correct = torch.zeros(len(attacks), len(sources), len(targets), dtype=torch.int64)
    natural = torch.zeros(len(targets), dtype=torch.int64)
    images = 0
    for x, y in shown_batches(next(iter(targets.values())), data, "transfer"):
        natural += _correct(targets, x, y)
        for of_attack, row in zip(made, correct):
            for attack, counts in zip(of_attack, row):
                counts += _correct(targets, attack(x, y), y)
        images += len(x)
    return TransferMatrix(tuple(attacks), tuple(sources), tuple(targets), correct, natural, images)


@torch.no_grad()
def _correct(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """How many images each model gets right, ``[models]``, int64, on the CPU."""
    counts = []
    for model in models.values():
        with model_mode(model, "eval"), float32_arithmetic(images.device):
            counts.append(int(is_right(model(images), labels).sum()))
    return torch.tensor(counts)
