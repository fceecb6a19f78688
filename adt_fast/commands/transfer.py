"""``adt-fast transfer``"""

from __future__ import annotations

from dataclasses import dataclass

from ..analysis import transfer_accuracy, transfer_attacks
from ..config import TrainedModelsConfig
from ..evaluation.table import aligned
from ._analysis import Output, headline, trained_models
from .command import begun


@dataclass(frozen=True, kw_only=True)
class Transfer(Output, TrainedModelsConfig):
    """Try each model's PGD-20 and MIM-20 examples on every model (the paper's Figure 2)."""

    def __call__(self) -> None:
        self.check_output()
        models = trained_models(self)
        first = next(iter(models.values()))
        print(headline(models), flush=True)
        with begun():
            networks = {name: trained.model for name, trained in models.items()}
            result = transfer_accuracy(
                networks, networks, first.loader, attacks=transfer_attacks(first.epsilon, self.seed)
            )
            rows = [("examples of", *(f"on {name}" for name in result.targets))]
            rows.append(("(natural)", *(f"{correct / result.images:.2%}" for correct in result.natural.tolist())))
            for attack, by_source in zip(result.attacks, result.accuracies.tolist()):
                for source, by_target in zip(result.sources, by_source):
                    rows.append((f"{source}, {attack}", *(f"{accuracy:.2%}" for accuracy in by_target)))
            print("\n" + aligned(rows))
            self.save(result, "transfer")
