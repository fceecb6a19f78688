"""What 16 bits do to the trained classifier."""

from __future__ import annotations

import statistics

from benchmarks.report import markdown, spread

from .results import Document, machine_words

FILES = ("precision-study-cpu.json",)

_ACCURACIES = ("natural", "PGD-20")


def blocks(document: Document) -> dict[str, str]:
    """The table; what was trained, where; and the standard error of an accuracy of so few images."""
    runs = {(run["settings"]["precision"], run["settings"]["seed"]): run for run in document["runs"]}
    seeds = sorted({seed for _, seed in runs})
    rows = [["", *_ACCURACIES, *(f"{name} - fp32's" for name in _ACCURACIES), "seconds a run"]]
    for precision in ("fp32", "bf16"):
        mine = [runs[precision, seed] for seed in seeds]
        theirs = [runs["fp32", seed] for seed in seeds]
        differences = [spread([a[name] - b[name] for a, b in zip(mine, theirs)]) for name in _ACCURACIES]
        rows.append([
            precision, *(spread([run[name] for run in mine]) for name in _ACCURACIES),
            *(differences if precision != "fp32" else ("", "")),
            f"{statistics.median(run['seconds'] for run in mine):.0f}",
        ])  # fmt: skip
    images = document["runs"][0]["test_images"]
    share = statistics.mean(run["PGD-20"] for run in document["runs"])
    return {
        "table": markdown(rows),
        "settings": _settings(document, len(seeds)),
        "standard_error": f"{100 * (share * (1 - share) / images) ** 0.5:.1f}",
    }


def _settings(document: Document, seeds: int) -> str:
    one = document["runs"][0]
    settings, images = one["settings"], one["test_images"]
    training = f"the first {settings['train_limit']:,} images of CIFAR-10 for {settings['epochs']} epochs"
    return (
        f"{settings['model']} trained by {settings['method']} on {training}, tested in float32 on {images:,}, "
        f"{seeds} seeds, on {machine_words(document)}"
    )
