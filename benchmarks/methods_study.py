"""What every method trains at one budget: ``python -m benchmarks.methods_study --data-dir DIR``.

Trains one network with each method on the same images of CIFAR-10, for as many epochs, with each seed, in float32, and
tests it on natural images and under FGSM, PGD-20 and C&W, as the paper's Table 1 does. The budget is a CPU's, that of
the settings ``cifar10-cpu``. A run that the output file holds already, with the same settings, is not done again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adt_fast import NoiseStream
from adt_fast.attacks import CW, FGSM, PGD, Attack
from adt_fast.config import TrainConfig
from adt_fast.config_files import load_config_file
from adt_fast.evaluation import evaluate_accuracy
from adt_fast.experiment import TrainingRun
from adt_fast.methods import method_names

from .arguments import positive
from .report import markdown, spread
from .study import add_run, load_study

ATTACKS: dict[str, Callable[[nn.Module, float, NoiseStream], Attack]] = {
    "FGSM": lambda model, epsilon, noise: FGSM(model, epsilon),
    "PGD-20": lambda model, epsilon, noise: PGD(model, epsilon, steps=20, noise=noise),
    "C&W": lambda model, epsilon, noise: CW(model, epsilon, noise=noise),
}
ACCURACIES = ("natural", *ATTACKS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study from the command line."""
    options = _parser().parse_args(arguments)
    document = load_study(options.output)
    wanted = [_settings(options, method, seed) for seed in options.seeds for method in options.methods]
    missing = [settings for settings in wanted if all(run["settings"] != settings for run in document["runs"])]
    threads = max(1, torch.get_num_threads() // options.jobs)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(train, settings, options.data_dir, threads) for settings in missing]
        for finished in as_completed(waiting):
            run = finished.result()
            add_run(document, run, run["resolved"]["device"], options.output)
            _report(run)
    runs = [run for run in document["runs"] if run["settings"] in wanted]
    print("\n" + table(runs))
    for line in differences(runs):
        print(line)


def train(settings: dict[str, Any], data_dir: Path | None, threads: int) -> dict[str, Any]:
    """One run: its settings, accuracies, seconds of training, and the loss of each epoch."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(_config(settings, data_dir, Path(folder) / "run"))
        losses: list[float] = []
        start = time.perf_counter()
        run.train(report=lambda epoch, _: losses.append(epoch.loss), progress=False)
        seconds = time.perf_counter() - start
    return {
        "settings": settings,
        "resolved": run.config.as_dict() | {"data_dir": None, "output": None},
        "threads": threads,
        "seconds": seconds,
        "losses": losses,
        "test_images": len(run.test_data),
        **accuracies(run),
    }


def accuracies(run: TrainingRun) -> dict[str, float]:
    """Natural and under each attack, from 0 to 1."""
    found = {"natural": float(evaluate_accuracy(run.model, run.test_data))}
    for name, attack in ATTACKS.items():
        noise = NoiseStream(run.config.seed, run.config.device)
        found[name] = float(evaluate_accuracy(run.model, run.test_data, attack(run.model, run.config.epsilon, noise)))
    return found


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One row a method and what is changed about it, in the order of the library: mean and standard deviation over
    seeds, in percent."""
    rows = [["method", *ACCURACIES, "seeds", "seconds a run"]]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: method_names().index(run["settings"]["method"])):
        by_name.setdefault(_row_name(run["settings"]), []).append(run)
    for name, mine in by_name.items():
        cells = [spread([run[accuracy] for run in mine]) for accuracy in ACCURACIES]
        seconds = sum(run["seconds"] for run in mine) / len(mine)
        rows.append([name, *cells, str(len(mine)), f"{seconds:.0f}"])
    return markdown(rows)


def differences(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What ADT-EXP adds under PGD-20 to the method without distributions, seed by seed, in points."""
    robust = {(run["settings"]["method"], run["settings"]["seed"]): run["PGD-20"] for run in runs}
    lines = []
    for method, other in (("adt-exp", "at-pgd"), ("adt-exp-trades", "trades")):
        found = [
            value - robust[other, seed] for (name, seed), value in robust.items()
            if name == method and (other, seed) in robust
        ]  # fmt: skip
        if found:
            lines.append(f"PGD-20 of {method} less that of {other}: {spread(found)}")
    return lines


def _row_name(settings: dict[str, Any]) -> str:
    changes = settings.get("changes", {})
    return settings["method"] + "".join(f", {name}={value}" for name, value in changes.items())


def _config(settings: dict[str, Any], data_dir: Path | None, output: Path) -> TrainConfig:
    own = {name: value for name, value in settings.items() if name not in ("config", "changes")}
    own |= settings.get("changes", {})
    return load_config_file(settings["config"]).config(**own, data_dir=data_dir, output=output)


def _settings(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    changed = {name: getattr(options, name) for name in ("model", "epochs", "train_limit", "test_limit")}
    changed = {name: value for name, value in changed.items() if value is not None}
    if options.change:
        changed["changes"] = dict(options.change)
    return {"config": options.config, "method": method, "seed": seed, "precision": options.precision, **changed}


def _change(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _report(run: dict[str, Any]) -> None:
    settings = run["settings"]
    print(f"{settings['method']}, seed {settings['seed']}: "
          + ", ".join(f"{name} {run[name]:.1%}" for name in ACCURACIES) + f", {run['seconds']:.0f} s", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods_study",
        description="Trains on CIFAR-10 with every method at one budget, and compares accuracies.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with CIFAR-10 in its published files")
    add("--config", default="cifar10-cpu", help="settings of all runs, see adt-fast configs")
    add("--methods", nargs="+", choices=method_names(), default=list(method_names()), metavar="METHOD", help="which")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each method for each seed")
    add("--precision", default="fp32", help="see adt-fast train --precision")
    add("--model", help="instead of the config's")
    add("--epochs", type=positive, help="instead of the config's")
    add("--train-limit", type=positive, help="instead of the config's")
    add("--test-limit", type=positive, help="instead of the config's")
    add("--change", type=_change, nargs="+", default=[], metavar="NAME=VALUE",
        help="options of the methods that are words, such as recipe=paper or gradient_scale=batch_mean")
    add("--jobs", type=positive, default=1, help="runs at a time, which share the threads")
    add("--output", type=Path, metavar="FILE.json", help="where runs are written, and looked for")
    return parser


if __name__ == "__main__":
    main()
