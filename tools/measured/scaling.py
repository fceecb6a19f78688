"""Two processes on a CPU, with many inner passes and with one: python -m benchmarks.scaling.

And its ``--plan`` for images of ImageNet's size, which is computed from counts and rates, not measured.
"""

from __future__ import annotations

from benchmarks.report import markdown
from benchmarks.scaling import APART, ONE_THREAD, TOGETHER, TWO_THREADS
from benchmarks.scaling_plan import Rates, tables

from .results import Document, machine_words

FILES = ("scaling-cpu-zen4.json", "scaling-cpu-zen4-one-pass.json")

_TIMES = {
    TOGETHER: "2 processes of 1 thread",
    APART: "their shares of the work, without any exchange",
    ONE_THREAD: "1 process of 1 thread",
    TWO_THREADS: "1 process of 2 threads",
}

_PLAN = ("cost", "gradients", "memory", "days")


def blocks(*documents: Document) -> dict[str, str]:
    """The table, a column a file; what was measured, where; what an exchange of gradients takes by itself; the plan."""
    settings = [document["settings"] for document in documents]
    rows = [["", *(f"T = {one['steps']}, k = {one['samples']}" for one in settings)]]
    for name, title in _TIMES.items():
        rows.append([title, *(f"{document['steps'][name]['median_ms']:.0f}" for document in documents)])
    rows.append(["exchange, and waiting for each other", *map(_exchange, documents)])
    rows.append(["speed of 2 processes over 1 of 1 thread", *map(_speedup, documents)])
    machine = machine_words(documents[0], "1 and 2")
    plan = tables(64, 90, Rates())  # the command's defaults
    error = max(document["relative_error"] for document in documents)
    return {
        "table": markdown(rows),
        "machine": f"{settings[0]['model']}, {settings[0]['batch']} images in all, on {machine}",
        "error": f"{error:.0e}",
        "all_reduce": _all_reduce(documents),
        **dict(zip(_PLAN, map(markdown, plan.values()), strict=True)),
    }


def _exchange(document: Document) -> str:
    steps = document["steps"]
    return f"{steps[TOGETHER]['median_ms'] - steps[APART]['median_ms']:.0f} ({document['exchange_share']:.0%})"


def _speedup(document: Document) -> str:
    return f"{document['speedup']:.2f} ({document['efficiency']:.0%} each)"


def _all_reduce(documents: tuple[Document, ...]) -> str:
    """Medians of the files, from the lowest to the highest."""
    words = []
    for same in zip(*(document["all_reduce"] for document in documents), strict=True):
        medians = sorted(one["median_ms"] for one in same)
        size = f"the {same[0]['bytes'] / 1e6:.1f} MB of a {same[0]['model']}"
        words.append(f"{medians[0]:.0f} to {medians[-1]:.0f} ms for {size}")
    return ", ".join(words)
