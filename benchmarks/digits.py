"""What docs/ says of the handwritten digits: ``python -m benchmarks.digits --output FILE.json``.

Trains by the defaults of ``adt-fast train``, on one thread, and measures three things on the test images:

- ``adt-fast entropy-sweep``: accuracies and entropies for each lambda (the paper's Figure 3);
- ``adt-fast convergence``: loss and accuracy under EXP after each of its steps (Figure 5);
- FGSM and PGD-20 on a network that standard training has made sure of its images, with cross entropy in PyTorch's form
  and in that of :func:`adt_fast.losses.cross_entropy`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adt_fast.analysis import entropy_sweep, exp_convergence
from adt_fast.attacks import FGSM, PGD
from adt_fast.config import TrainConfig
from adt_fast.evaluation import evaluate
from adt_fast.experiment import TrainingRun
from adt_fast.losses import cross_entropy

from . import machine
from .report import markdown, spread

SEEDS = (0, 1, 2)
PRINTED_STEPS = (0, 2, 5, 10, 15, 20, 50, 100)
OURS, TORCHS = "adt_fast", "torch"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and measures, from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    document = measure()
    for table in (entropy_table, convergence_table, loss_table):
        print(table(document) + "\n")
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")


def measure(**settings: Any) -> dict[str, Any]:
    """Everything, as plain values.

    Args:
        settings: of :class:`adt_fast.config.TrainConfig`, in place of the defaults.
    """
    with tempfile.TemporaryDirectory() as folder:
        sweep = entropy_sweep(TrainConfig(method="adt-exp-am", device="cpu", **settings), Path(folder) / "sweep")
        runs = {name: _trained(name, Path(folder), settings) for name in ("at-pgd", "adt-exp", "standard")}
        robust = {name: runs[name].model for name in ("at-pgd", "adt-exp")}
        epsilon, data = runs["at-pgd"].config.epsilon, runs["at-pgd"].test_data
        convergence = exp_convergence(robust, data, epsilon=epsilon)
        losses = _loss_forms(runs["standard"])
        trained = runs["standard"].config.as_dict()
    return {
        "machine": machine.describe(torch.device("cpu")),
        "settings": {name: value for name, value in trained.items() if name not in ("method", "output")},
        "test_images": len(data),
        "entropy_sweep": sweep.to_dict(),
        "convergence": convergence.to_dict(),
        "loss_forms": losses,
    }


def entropy_table(document: dict[str, Any]) -> str:
    """A column for each lambda."""
    points = document["entropy_sweep"]["points"]
    return markdown([
        ["lambda", *(f"{point['entropy_weight']:g}" for point in points)],
        ["natural accuracy, %", *(f"{100 * point['natural']:.1f}" for point in points)],
        ["PGD-20 accuracy, %", *(f"{100 * point['robust']:.1f}" for point in points)],
        ["entropy, nats per element", *(f"{point['entropy_per_element']:.1f}" for point in points)],
    ])  # fmt: skip


def convergence_table(document: dict[str, Any]) -> str:
    """A row for each model: its loss under EXP after some numbers of steps."""
    found = document["convergence"]
    rows = [["steps", *map(str, PRINTED_STEPS)]]
    for name, losses in zip(found["models"], found["losses"], strict=True):
        rows.append([f"loss of {name}, nats", *(f"{losses[step]:.3f}" for step in PRINTED_STEPS)])
    return markdown(rows)


def loss_table(document: dict[str, Any]) -> str:
    """A row for each attack: accuracies in percent, mean and standard deviation over seeds of its noise."""
    rows = [["attack", "cross entropy of PyTorch", "of adt_fast"]]
    for attack, accuracies in document["loss_forms"].items():
        rows.append([attack, *(spread(accuracies[name]) for name in (TORCHS, OURS))])
    return markdown(rows)


def largest_after(document: dict[str, Any], step: int) -> float:
    """How far a loss under EXP, after this step or a later one, is from that after the last at most, relative to it."""
    return max(abs(loss / losses[-1] - 1) for losses in document["convergence"]["losses"] for loss in losses[step:])


def _trained(method: str, folder: Path, settings: dict[str, Any]) -> TrainingRun:
    run = TrainingRun(TrainConfig(method=method, device="cpu", output=folder / method, **settings))
    run.train(progress=False)
    return run


def _loss_forms(run: TrainingRun) -> dict[str, dict[str, list[float]]]:
    """attack -> form of the loss -> the accuracy under it for each seed."""
    found: dict[str, dict[str, list[float]]] = {"FGSM": {}, "PGD-20": {}}
    for form, loss in ((OURS, cross_entropy), (TORCHS, _torchs_cross_entropy)):
        attacks = {"FGSM": FGSM(run.model, run.config.epsilon, loss=loss),
                   "PGD-20": PGD(run.model, run.config.epsilon, steps=20, loss=loss)}  # fmt: skip
        for seed in SEEDS:
            report = evaluate(run.model, run.test_data, attacks, epsilon=run.config.epsilon, seed=seed, examples=0)
            for attack in attacks:
                found[attack].setdefault(form, []).append(float(report.accuracies()[attack]))
    return found


def _torchs_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


if __name__ == "__main__":
    main()
