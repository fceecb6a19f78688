"""EXP as an attack beside PGD-20, as in the paper's Table 4: ``python -m benchmarks.exp_attack RUN ...``.

For each trained model: PGD-20; ``exp``, the attack of that name; and EXP as in training, but for T = 20 and k = 10. The
difference between attacks is to be read beside the spread between seeds. A run that the output file holds already, with
the same settings, is not done again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adt_fast._runs.trained_model import TrainedModel
from adt_fast.attacks import EXP
from adt_fast.config import TrainedModelConfig
from adt_fast.evaluation import evaluate

from .arguments import positive
from .report import aligned, spread
from .study import add_run, load_study

ATTACKS = ("pgd-20", "exp", "exp, as in training")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study from the command line."""
    options = _parser().parse_args(arguments)
    document = load_study(options.output)
    for name, run in zip(options.names or [run.name for run in options.runs], options.runs, strict=True):
        for seed in options.seeds:
            settings = {"model": name, "seed": seed, "images": options.images}
            if all(found["settings"] != settings for found in document["runs"]):
                config = TrainedModelConfig(run, data_dir=options.data_dir, test_limit=options.images, seed=seed)
                add_run(document, measure(settings, TrainedModel(config)), "cpu", options.output)
    print(table(document["runs"]))


def measure(settings: dict[str, Any], trained: TrainedModel) -> dict[str, Any]:
    """The accuracies of a model under each attack, and A_rob."""
    model, epsilon = trained.model, trained.epsilon
    attacks = {"pgd-20": "pgd-20", "exp": "exp", ATTACKS[2]: EXP(model, epsilon, steps=20, samples=10)}
    start = time.perf_counter()
    report = evaluate(model, trained.data, attacks, epsilon=epsilon, seed=settings["seed"], examples=0)
    accuracies = {name: float(value) for name, value in report.accuracies().items()}
    return {"settings": settings, "epsilon": epsilon, "seconds": time.perf_counter() - start, **accuracies}


def table(runs: list[dict[str, Any]]) -> str:
    """For each model: accuracies in percent, mean and standard deviation over seeds, and EXP less PGD-20."""
    rows = [["model", "seeds", "natural", *ATTACKS, "exp - pgd-20"]]
    for name in dict.fromkeys(run["settings"]["model"] for run in runs):
        mine = [run for run in runs if run["settings"]["model"] == name]
        cells = [spread([run[attack] for run in mine]) for attack in ("natural", *ATTACKS)]
        difference = 100 * statistics.mean(run["exp"] - run["pgd-20"] for run in mine)
        rows.append([name, str(len(mine)), *cells, f"{difference:+.2f}"])
    return aligned(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exp_attack", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("--names", nargs="+", help="what to call them; default: the folders' names")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--images", type=positive, default=500, help="test images of each model, the first ones")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    main()
