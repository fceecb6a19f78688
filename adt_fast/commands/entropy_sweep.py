"""``adt-fast entropy-sweep``"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .._runs.folder import name_by_time
from .._settings.arguments import Folder, Integer, Number, argument, default_is
from ..analysis import EntropyPoint, entropy_sweep, sweep_methods
from ..analysis.sweep import ENTROPY_WEIGHTS
from ..config import TrainConfig
from ._analysis import print_saved
from .command import begun, train_config


@dataclass(frozen=True)
class EntropySweep(TrainConfig):
    """Train with several weights of the entropy, and plot accuracies and entropies (the paper's Figure 3)."""

    method: Annotated[str, tyro.conf.arg(metavar="|".join(sweep_methods()))] = "adt-exp-am"
    """Training method, one whose distributions are explicit."""

    entropy_weights: tuple[Annotated[float, Number], ...] = ENTROPY_WEIGHTS
    """The lambdas, weights of the entropy, to train with; all different."""

    entropy_samples: Annotated[int, Integer] = 100
    """Monte Carlo samples for the entropy of each image's distribution."""

    config: Annotated[str | None, argument(str, "NAME|FILE"), default_is("none")] = None
    """Settings to start from, see adt-fast train."""

    output: Annotated[Path | None, Folder, default_is("runs/entropy-sweep-TIME")] = None
    """Folder of the sweep; one that was interrupted continues where it is given again."""

    def __call__(self) -> None:
        config = train_config(self)
        folder = self.output or name_by_time("runs/entropy-sweep")
        print(f"{config.method} on {config.dataset}, in {folder}\n")
        print("  lambda  natural   PGD-20  nats per element", flush=True)
        with begun(f"interrupted; give --output {folder} again to continue"):
            result = entropy_sweep(
                config, folder, entropy_weights=self.entropy_weights, samples=self.entropy_samples, report=_print_point
            )
            print_saved(result, folder)


def _print_point(point: EntropyPoint) -> None:
    print(f"{point.entropy_weight:>8g}  {point.natural:>7.2%}  {point.robust:>7.2%}  "
          f"{point.entropy_per_element:.4f} +- {point.standard_error:.4f}", flush=True)
