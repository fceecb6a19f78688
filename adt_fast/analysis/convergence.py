"""How fast EXP finds its distribution: loss and accuracy under it, step by step (paper, Section D.1 and Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._support.checks import check_int
from ..attacks import EXP, ExpRecipe, exp_recipe
from ..attacks.recipes import RecipeName
from ..evaluation.batches import Batches
from ..input_gradient import EngineOptions
from ..losses import cross_entropy
from ..noise import NoiseStream
from . import _figures
from ._batches import shown_batches
from .result import AnalysisResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Convergence(AnalysisResult):
    """What M models do under the distributions that EXP has found after 0 to T steps."""

    models: tuple[str, ...]
    """Their names."""
    losses: Tensor
    """``[M, T + 1]``, float64: the mean cross entropy, over images and k samples of each image's distribution."""
    accuracies: Tensor
    """``[M, T + 1]``, float64, from 0 to 1: the share of those samples that are classified right."""
    images: int
    """How many."""
    samples: int
    """k."""
    step_size: float
    """Of EXP, on (mu, rho)."""
    epsilon: float
    """Radius of the L-infinity ball, in the images' units."""

    def table(self) -> list[tuple[Any, ...]]:
        """model, steps, loss, accuracy."""
        rows: list[tuple[Any, ...]] = [("model", "steps", "loss", "accuracy")]
        for name, losses, accuracies in zip(self.models, self.losses.tolist(), self.accuracies.tolist()):
            rows += [(name, step, loss, accuracy) for step, (loss, accuracy) in enumerate(zip(losses, accuracies))]
        return rows

    def draw(self, figure: Figure) -> None:
        """Loss and accuracy side by side, a line for each model."""
        figure.set_size_inches(_figures.PAGE_WIDTH, 2.4)
        loss, accuracy = figure.subplots(1, 2)
        for index, name in enumerate(self.models):
            style = {
                "color": _figures.COLORS[index % len(_figures.COLORS)],
                "marker": _figures.MARKERS[index % len(_figures.MARKERS)],
                "markevery": max(1, (self.losses.shape[1] - 1) // 10),
                "label": name,
            }
            loss.plot(self.losses[index].numpy(), **style)
            accuracy.plot(100 * self.accuracies[index].numpy(), **style)
        loss.set(xlabel="attack steps", ylabel="cross entropy (nats)")
        accuracy.set(xlabel="attack steps", ylabel="accuracy (%)")
        accuracy.legend()


class _RecordedLoss:
    """Cross entropy that keeps the losses and the verdicts of every call: those of an attack's gradient steps."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = cross_entropy(logits, labels)
        self._losses.append(losses.detach())
        self._correct.append(logits.detach().argmax(1) == labels)
        return losses

    def take(self, steps: int) -> tuple[Tensor, Tensor]:
        """Sums of losses and of right answers at each step ``[steps]``, float64, on the CPU; empties the records."""
        losses, correct = (torch.cat(kept).view(steps, -1).double() for kept in (self._losses, self._correct))
        self._losses, self._correct = [], []
        return losses.sum(1).cpu(), correct.sum(1).cpu()


def exp_convergence(
    models: Mapping[str, nn.Module],
    data: Batches,
    *,
    epsilon: float = 8 / 255,
    steps: int = 100,
    samples: int = 10,
    step_size: float = 0.3,
    entropy_weight: float = 0.01,
    recipe: RecipeName | ExpRecipe = "published",
    seed: int = 0,
) -> Convergence:
    """Loss and accuracy of models under EXP, after each of its steps.

    One run of the attack tells them all: a run of T steps is the beginning of any longer one with the same noise, and
    the samples from which a step estimates its gradient are samples of the distribution so far. So each number is the
    mean over k samples of an image, in place of the one sample that EXP as an attack ends with.

    Args:
        models: by name; each takes images ``[B, C, H, W]`` in [0, 1] and gives logits. They run in eval mode, in
            float32, and are left as they were.
        data: an :class:`adt_fast.data.ImageData`, or batches (images, labels), the same at every iteration; each model
            goes through them once.
        epsilon: radius of the L-infinity ball, > 0, in the images' units.
        steps: T, the most steps, >= 0; the paper's are 100.
        samples, step_size, entropy_weight, recipe: see :class:`adt_fast.attacks.EXP`. The paper has k = 10 here, 0.3
            and 0.01. A recipe that does not clamp evaluates x + delta as it is.
        seed: of the noise, in [0, 2**63), the same for every model.

    Raises:
        TypeError, ValueError: for a bad argument, by name, or if there are no data.
        FloatingPointError: if a gradient is not finite.
    """
    check_int("steps", steps, 0, 2**31 - 1)
    check_int("seed", seed, 0, 2**63)
    if not isinstance(models, Mapping):
        raise TypeError(f"models must be a dict of names and models, got {type(models).__name__}")
    if not models:
        raise ValueError("models must have at least one, it is empty")
    losses, accuracies, images = [], [], 0
    for name, model in models.items():
        recorded = _RecordedLoss()
        attack = EXP(
            model, epsilon, steps=steps + 1,  # for the samples after T steps are those of the next gradient
            samples=samples, step_size=step_size, entropy_weight=entropy_weight, loss=recorded,
            recipe=replace(exp_recipe(recipe), outer_samples=1), noise=NoiseStream(seed),
            engine=EngineOptions(precision="fp32", graph=False),  # the replay of a CUDA graph would call no loss
        )  # fmt: skip
        loss_sum, correct, images = torch.zeros(steps + 1), torch.zeros(steps + 1), 0
        for x, y in shown_batches(model, data, name):
            attack.maximize(x, y)
            of_batch = recorded.take(steps + 1)
            loss_sum, correct, images = loss_sum + of_batch[0], correct + of_batch[1], images + len(x)
        losses.append(loss_sum / (images * samples))
        accuracies.append(correct / (images * samples))
    return Convergence(
        models=tuple(models),
        losses=torch.stack(losses),
        accuracies=torch.stack(accuracies),
        images=images,
        samples=samples,
        step_size=float(step_size),
        epsilon=float(epsilon),
    )
