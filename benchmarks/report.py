"""Results as an aligned table and as a picture."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .operator_cases import CONTESTANTS, OURS

Result = dict[str, Any]  # of benchmarks.kernels


def results_table(results: Sequence[Result]) -> str:
    """One row a result: our time, its spread, the bandwidth, and how many times slower each contestant is."""
    header = ["operator", "on", "x_adv", "layout", "ms", "10-90%", "GB/s", "% of copy", *CONTESTANTS, "best"]
    return aligned([header, *map(_row, results)])


def targets_table(targets: Sequence[Result]) -> str:
    """One row a target: bound, measured, met or not met."""
    rows = [
        [
            target["operator"],
            target["layout"],
            f"{'<=' if target['at_most'] else '>='} {target['bound']:g} {target['what']}",
            f"{target['measured']:.2f}",
            "met" if target["met"] else "NOT MET",
        ]
        for target in targets
    ]
    return aligned([["operator", "layout", "target", "measured", ""], *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: words to the left, numbers to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    aligns = [str.rjust if all(map(_is_number, column[1:])) else str.ljust for column in columns]
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    deviation = statistics.stdev(shares) if len(shares) > 1 else 0.0
    return f"{100 * statistics.mean(shares):.2f} +- {100 * deviation:.2f}"


def require_matplotlib() -> None:
    """Raises ModuleNotFoundError, with the cure, where pictures cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib: pip install matplotlib")


def plot(results: Sequence[Result], path: Path) -> None:
    """Each contestant's time over ours, a row for each result; the ending of the file chooses its format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.3 * len(results)), layout="constrained")
    for i, name in enumerate(CONTESTANTS):
        points = [(result["ratios"][name], row) for row, result in enumerate(results) if name in result["ratios"]]
        if points:
            axes.scatter(*zip(*points, strict=True), color=f"C{i}", label=name)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel=f"time / {OURS}'s time: to the right of the line {OURS} is faster")
    axes.set_yticks(range(len(results)), [" ".join(_row(result)[:4]) for result in results])
    axes.grid(alpha=0.3)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=len(CONTESTANTS))
    figure.savefig(path)
    pyplot.close(figure)


def _row(result: Result) -> list[str]:
    timing, ratios = result["timings"][OURS], result["ratios"]
    where = result["device"] if result["threads"] is None else f"{result['threads']} threads"
    return [
        result["operator"],
        where.replace("1 threads", "1 thread"),
        result["dtype"],
        result["layout"],
        f"{timing['median_ms']:.4g}",
        f"{timing['p10_ms']:.4g}-{timing['p90_ms']:.4g}",
        f"{result['gb_per_s']:.4g}",
        f"{100 * result['copy_fraction']:.1f}",
        *(f"{ratios[name]:.2f}" if name in ratios else "-" for name in CONTESTANTS),
        f"{min(ratios.values()):.2f}" if ratios else "-",
    ]


def _is_number(cell: str) -> bool:
    return bool(cell) and all(character in "0123456789.-+e" for character in cell)
