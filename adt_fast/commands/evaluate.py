"""``adt-fast evaluate``"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import TrainedModelConfig
from ..evaluation import accuracy_table
from ..experiment import evaluate_natural_and_pgd, pgd_20
from ..trained_model import TrainedModel
from .command import begun


@dataclass(frozen=True)
class Evaluate(TrainedModelConfig):
    """Report a trained classifier's natural and PGD-20 accuracy."""

    def __call__(self) -> None:
        trained = TrainedModel(self)
        print(trained.headline, flush=True)
        with begun():
            attack = pgd_20(trained.model, trained.epsilon, trained.norm, self.seed)
            results = evaluate_natural_and_pgd(trained.model, trained.loader, attack)
        print(f"\n{accuracy_table(results)}")
