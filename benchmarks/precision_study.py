"""What 16 bits do to a trained classifier: ``python -m benchmarks.precision_study --data-dir DIR``.

Trains with ADT-EXP on CIFAR-10, once in each precision for each seed, everything else equal, and compares natural and
PGD-20 accuracy, both evaluated in float32. The difference between precisions is to be read beside the spread between
seeds. A run that the output file holds already, with the same settings, is not done again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adt_fast.config import TrainConfig
from adt_fast.experiment import TrainingRun

from .arguments import positive
from .report import aligned, spread
from .study import add_run, load_study

ACCURACIES = {"natural": "natural", "PGD-20": "pgd-20"}
"""As the table has them, and as a run does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study from the command line."""
    options = _parser().parse_args(arguments)
    document = load_study(options.output)
    for seed in options.seeds:
        for precision in options.precisions:
            settings = _settings(options, precision, seed)
            if any(run["settings"] == settings for run in document["runs"]):
                continue
            run = train(settings, options.data_dir)
            add_run(document, run, run["device"], options.output)
            print(f"{precision}, seed {seed}: " + ", ".join(f"{name} {run[name]:.2%}" for name in ACCURACIES)
                  + f", {run['seconds']:.0f} s", flush=True)
    print("\n" + table(document["runs"]))


def train(settings: dict[str, Any], data_dir: Path | None) -> dict[str, Any]:
    """One run: its settings, accuracies, seconds of training, and what the precision guard saw."""
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(TrainConfig(dataset="cifar10", data_dir=data_dir, output=Path(folder) / "run", **settings))
        start = time.perf_counter()
        run.train(progress=False)
        seconds = time.perf_counter() - start
        accuracies = run.evaluate()
    guard = run.trainer.method.maximizer.input_gradient.guard
    return {
        "settings": settings,
        "device": run.config.device,
        "seconds": seconds,
        "test_images": accuracies["natural"].total,
        "guard": [] if guard is None else [agreement._asdict() for agreement in guard.history],
        **{shown: float(accuracies[name]) for shown, name in ACCURACIES.items()},
    }


def table(runs: list[dict[str, Any]]) -> str:
    """One row a precision: mean and standard deviation over seeds, and the mean difference from float32."""
    by_precision: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_precision.setdefault(run["settings"]["precision"], {})[run["settings"]["seed"]] = run
    rows = [["precision", "seeds", *ACCURACIES, *(f"{name} - fp32's" for name in ACCURACIES), "s a run"]]
    for precision, by_seed in by_precision.items():
        cells = [spread([run[name] for run in by_seed.values()]) for name in ACCURACIES]
        differences = [
            [run[name] - reference[seed][name] for seed, run in by_seed.items() if seed in reference]
            for name in ACCURACIES
            for reference in (by_precision.get("fp32", {}),)
        ]
        rows.append([
            precision, str(len(by_seed)), *cells, *(spread(values) if values else "-" for values in differences),
            f"{statistics.median(run['seconds'] for run in by_seed.values()):.0f}",
        ])  # fmt: skip
    return aligned(rows)


def _settings(options: argparse.Namespace, precision: str, seed: int) -> dict[str, Any]:
    names = ("method", "model", "epochs", "batch_size", "train_limit", "test_limit", "device")
    return {name: getattr(options, name) for name in names} | {"precision": precision, "seed": seed}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision_study",
        description="Trains on CIFAR-10 in float32 and in 16 bits, and compares the accuracies.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with CIFAR-10 in its published files")
    add("--method", default="adt-exp", help="how to train")
    add("--model", default="wrn-10-2", help="the classifier")
    add("--epochs", type=positive, default=4, help="of each run")
    add("--batch-size", type=positive, default=64, help="images in a minibatch")
    add("--train-limit", type=positive, default=1000, help="training images")
    add("--test-limit", type=positive, default=1000, help="test images")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each precision for each seed")
    add("--precisions", nargs="+", default=["fp32", "bf16"], help="see adt-fast train --precision")
    add("--device", default="auto", help="auto, cpu, cuda")
    add("--output", type=Path, metavar="FILE.json", help="where runs are written, and looked for")
    return parser


if __name__ == "__main__":
    main()
