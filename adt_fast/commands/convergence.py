"""``adt-fast convergence``"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .._settings.arguments import Integer, Number, argument
from ..analysis import exp_convergence
from ..config import TrainedModelsConfig
from ..evaluation.table import aligned
from ._analysis import Output, headline, trained_models
from .command import begun

_PRINTED_STEPS = (0, 1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Convergence(Output, TrainedModelsConfig):
    """Plot loss and accuracy under EXP after each of its steps (the paper's Figure 5)."""

    steps: Annotated[int, Integer] = 100
    """Steps of the attack, T; each from 0 to it gets its numbers."""

    samples: Annotated[int, Integer] = 10
    """k, Monte Carlo samples for each gradient, and for each number."""

    step_size: Annotated[float, Number] = 0.3
    """Size of a step on (mu, rho)."""

    entropy_weight: Annotated[float, Number] = 0.01
    """Lambda, the weight of the distribution's entropy, in nats, beside the loss."""

    recipe: Annotated[str, argument(str, "published|paper")] = "published"
    """Where the paper and its published code disagree, whom to follow; see adt-fast train."""

    def __call__(self) -> None:
        self.check_output()
        models = trained_models(self)
        first = next(iter(models.values()))
        print(headline(models), flush=True)
        with begun():
            result = exp_convergence(
                {name: trained.model for name, trained in models.items()}, first.loader, epsilon=first.epsilon,
                steps=self.steps, samples=self.samples, step_size=self.step_size, entropy_weight=self.entropy_weight,
                recipe=self.recipe, seed=self.seed,
            )  # fmt: skip
            printed = [step for step in _PRINTED_STEPS if step < self.steps] + [self.steps]
            rows = [("steps", *map(str, printed))]
            for name, losses, accuracies in zip(result.models, result.losses, result.accuracies):
                rows.append((f"{name}, loss", *(f"{losses[step]:.4g}" for step in printed)))
                rows.append((f"{name}, accuracy", *(f"{accuracies[step]:.2%}" for step in printed)))
            print("\n" + aligned(rows))
            self.save(result, "convergence")
