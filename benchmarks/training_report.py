"""Whole training steps as ratios, promises kept or not, a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report import aligned
from .training_contestants import (
    ADT_EXP,
    ADT_EXP_AM,
    ADT_IMP_AM,
    AT_PGD,
    HEADLINE,
    OBJECTIVES,
    OURS,
    PUBLISHED,
    STANDARD,
    STRONGEST,
)

Result = dict[str, Any]  # of benchmarks.training
Document = dict[str, Any]

_FIGURE_6 = (STANDARD, AT_PGD, ADT_EXP, ADT_EXP_AM, ADT_IMP_AM)  # in its order

_COLORS = {PUBLISHED: "C7", HEADLINE: "C7", STRONGEST: "C0", OURS: "C3"}
_LABELS = {PUBLISHED: "published algorithm, PyTorch defaults", STRONGEST: "strongest plain PyTorch", OURS: "adt_fast"}


# ---- Ratios ---------------------------------------------------------------------------------------------------------
def add_ratios(results: Sequence[Result]) -> None:
    """To each result of one objective, its time over that of adt_fast: at its precision, and at the fastest one."""
    for result in results:
        same = fastest(results, OURS, result["precision"])
        best = fastest(results, OURS)
        result["ratios"] = {"same_precision": _over(result, same), "fastest": _over(result, best)}


def headline(results: Sequence[Result]) -> dict[str, float | None]:
    """A step of ADT-EXP here over one of AT-PGD in plain PyTorch at library defaults; below 1, ADT-EXP is cheaper."""
    adt = _of(results, ADT_EXP)
    peer = fastest(adt, HEADLINE)
    return {"best": _over(fastest(adt, OURS), peer), "fp32": _over(fastest(adt, OURS, "fp32"), peer)}


def figure_6(results: Sequence[Result]) -> list[Result]:
    """The paper's Figure 6: seconds an epoch of its methods, and how many times those of the same contestant's AT-PGD.

    One entry for the published algorithms, and one for adt_fast at each precision. Objectives are timed one after
    another, so a slow minute of the machine can fall on one of them; the contestants of one objective take turns.
    """
    found = []
    for name in dict.fromkeys(result["contestant"] for result in results if result["group"] in (PUBLISHED, OURS)):
        seconds = {result["objective"]: result["epoch_s"] for result in results if result["contestant"] == name}
        if AT_PGD in seconds and len(seconds) > 1:
            epochs = {objective: seconds[objective] for objective in _FIGURE_6 if objective in seconds}
            ratios = {objective: value / seconds[AT_PGD] for objective, value in epochs.items()}
            found.append({"contestant": name, "epoch_s": epochs, "over_at_pgd": ratios})
    return found


def fastest(results: Iterable[Result], group: str, precision: str | None = None) -> Result | None:
    """The fastest of a group, at one precision or at any."""
    candidates = [result for result in results if result["group"] == group and precision in (None, result["precision"])]
    return min(candidates, key=_median, default=None)


def _of(results: Iterable[Result], objective: str) -> list[Result]:
    return [result for result in results if result["objective"] == objective]


def _median(result: Result) -> float:
    return result["timing"]["median_ms"]


def _over(slower: Result | None, faster: Result | None) -> float | None:
    return None if slower is None or faster is None else _median(slower) / _median(faster)


# ---- Promises (DESIGN: how fast, against whom) ----------------------------------------------------------------------
@dataclass(frozen=True)
class Target:
    """A bound on a number of one objective; it holds for the settings in ``only``."""

    objective: str
    what: str
    measure: Callable[[list[Result]], float | None]
    bound: float
    only: dict[str, Any]
    device: str = ""  # part of the device's name
    at_most: bool = False

    def applies_to(self, document: Document) -> bool:
        settings = document["settings"]
        return self.device in document["device_name"] and all(
            settings[name] == value for name, value in self.only.items()
        )

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


def _published_over_ours(precision: str | None) -> Callable[[list[Result]], float | None]:
    return lambda results: _over(fastest(results, PUBLISHED), fastest(results, OURS, precision))


def _strongest_over_ours(precision: str | None) -> Callable[[list[Result]], float | None]:
    return lambda results: _over(fastest(results, STRONGEST, precision), fastest(results, OURS, precision))


def _ours_over_pgd(results: list[Result]) -> float | None:
    return headline(results)["best"]


def _best_epoch(results: list[Result]) -> float | None:
    ours = fastest(results, OURS)
    return None if ours is None else ours["epoch_s"]


def _kernels(results: list[Result]) -> float | None:
    ours = fastest(results, OURS)
    return None if ours is None else ours["kernels_outside_model"]


_SIZE = {"image": [3, 32, 32], "steps": 7, "samples": 5}
_CPU = {"device": "cpu", "model": "wrn-16-4", "batch": 16, **_SIZE}
_CUDA = {"device": "cuda", "model": "wrn-28-10", **_SIZE}

TARGETS = (
    Target(ADT_EXP, "x the published algorithm, in fp32", _published_over_ours("fp32"), 1.9, _CPU),
    Target(ADT_EXP, "x the published algorithm, in bf16", _published_over_ours("bf16"), 3.5, _CPU),
    *(
        Target(objective, f"x the strongest plain PyTorch, in {precision or 'the best precision'}",
               _strongest_over_ours(precision), 1.0, size)
        for objective in (ADT_EXP, AT_PGD)
        for size, precisions in ((_CPU, (None, "fp32", "bf16")), (_CUDA, (None, "fp32", "tf32", "bf16", "fp16")))
        for precision in precisions
    ),
    *(
        Target(ADT_EXP, "times AT-PGD of plain PyTorch at library defaults", _ours_over_pgd, 1.0, size, at_most=True)
        for size in (_CPU, _CUDA)
    ),
    Target(ADT_EXP, "s an epoch on an H200", _best_epoch, 97.0, {**_CUDA, "batch": 512}, "H200", at_most=True),
    Target(ADT_EXP, "s an epoch on an H200", _best_epoch, 110.0, {**_CUDA, "batch": 64}, "H200", at_most=True),
    Target(ADT_EXP, "x the published algorithm on an H200", _published_over_ours(None), 4.0, _CUDA, "H200"),
    Target(ADT_EXP, "x the strongest plain PyTorch on an H200", _strongest_over_ours(None), 1.1, _CUDA, "H200"),
    Target(ADT_EXP, "kernels outside the model in an inner step", _kernels, 3.0, _CUDA, at_most=True),
    Target(AT_PGD, "s an epoch on an H200", _best_epoch, 25.0, {**_CUDA, "batch": 512}, "H200", at_most=True),
    Target(AT_PGD, "x the popular loop on an H200", _published_over_ours(None), 3.0, _CUDA, "H200"),
)  # fmt: skip


def check_targets(document: Document) -> list[Result]:
    """One entry for each target that applies and was measured."""
    return list(_checked_targets(document))


def _checked_targets(document: Document) -> Iterator[Result]:
    for target in TARGETS:
        if not target.applies_to(document):
            continue
        value = target.measure(_of(document["results"], target.objective))
        if value is not None:
            yield {
                "objective": target.objective,
                "what": target.what,
                "bound": target.bound,
                "at_most": target.at_most,
                "measured": value,
                "met": target.is_met(value),
            }


# ---- Words ----------------------------------------------------------------------------------------------------------
def results_table(results: Sequence[Result]) -> str:
    """One row a contestant, fastest first within an objective."""
    header = [
        "objective", "contestant", "ms", "10-90%", "images/s", "TFLOP/s", "% of matmul", "x ours", "x our best", "GiB",
        "kernels",
    ]  # fmt: skip
    ordered = sorted(results, key=lambda result: (OBJECTIVES.index(result["objective"]), _median(result)))
    return aligned([header, *map(_row, ordered)])


def summary(document: Document) -> str:
    """What follows the table: headline, Figure 6, targets, who was left out, and what was on in adt_fast."""
    parts = [_headline_line(document["headline"])]
    if document["figure_6"]:
        parts.append(_figure_6_table(document["figure_6"]))
    if document["targets"]:
        parts.append(_targets_table(document["targets"]))
    parts += [f"left out: {one['contestant']} of {one['objective']}: {one['reason']}" for one in document["left_out"]]
    parts += [
        f"{result['contestant']}, {result['objective']}:\n{result['explain']}"
        for result in document["results"]
        if result["explain"]
    ]
    return "\n\n".join(filter(None, parts))


def ceilings_line(ceilings: dict[str, float]) -> str:
    """The matmul ceilings in words."""
    return "matmul at " + ", ".join(f"{value / 1e12:.3g} TFLOP/s in {name}" for name, value in ceilings.items())


def _headline_line(ratios: dict[str, float | None]) -> str:
    words = [f"{value:.2f} in {name}" for name, value in ratios.items() if value is not None]
    if not words:
        return ""
    return f"a step of ADT-EXP here / one of AT-PGD in plain PyTorch at library defaults: {', '.join(words)}"


def _figure_6_table(rows: Sequence[Result]) -> str:
    cells = [[row["contestant"], *(_epoch_cell(row, objective) for objective in _FIGURE_6)] for row in rows]
    title = "Figure 6: seconds for 50,000 images, and how many times those of AT-PGD (paper: nearly 5, amortised 0.5)"
    return title + "\n" + aligned([["contestant", *_FIGURE_6], *cells])


def _epoch_cell(row: Result, objective: str) -> str:
    if objective not in row["epoch_s"]:
        return "-"
    return f"{row['epoch_s'][objective]:.4g} ({row['over_at_pgd'][objective]:.2f})"


def _targets_table(targets: Sequence[Result]) -> str:
    rows = [
        [
            target["objective"],
            f"{'<=' if target['at_most'] else '>='} {target['bound']:g} {target['what']}",
            f"{target['measured']:.2f}",
            "met" if target["met"] else "NOT MET",
        ]
        for target in targets
    ]
    return aligned([["objective", "target", "measured", ""], *rows])


def _row(result: Result) -> list[str]:
    timing, ratios, peak = result["timing"], result["ratios"], result["peak_memory_bytes"]
    return [
        result["objective"],
        result["contestant"],
        f"{timing['median_ms']:.4g}",
        f"{timing['p10_ms']:.4g}-{timing['p90_ms']:.4g}",
        f"{result['images_per_s']:.4g}",
        f"{result['flops_per_s'] / 1e12:.3g}",
        _number(result["ceiling_fraction"], ".1f", 100.0),
        _number(ratios["same_precision"], ".2f"),
        _number(ratios["fastest"], ".2f"),
        _number(peak, ".2f", 2.0**-30),
        _number(result["kernels_outside_model"], ".1f"),
    ]


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)


# ---- A picture ------------------------------------------------------------------------------------------------------
def bars(results: Sequence[Result], objective: str) -> list[Result]:
    """Who is drawn: of each group and precision the fastest, the slowest of them first."""
    of_it = _of(results, objective)
    keys = {(result["group"], result["precision"]) for result in of_it if result["group"] in _COLORS}
    return sorted((fastest(of_it, *key) for key in keys), key=_median, reverse=True)


def plot(document: Document, path: Path) -> None:
    """Milliseconds a step, an axis for each objective; the ending of the file chooses its format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    drawn = [(name, bars(document["results"], name)) for name in OBJECTIVES]
    drawn = [(name, rows) for name, rows in drawn if rows]
    heights = [len(rows) for _, rows in drawn]
    figure, axes = pyplot.subplots(
        len(drawn), squeeze=False, figsize=(8, 1.4 + 0.45 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axis, (name, rows) in zip(axes[:, 0], drawn):
        _draw_bars(axis, name, rows)
    axes[-1, 0].set_xlabel("milliseconds for a training step")
    settings = document["settings"]
    figure.suptitle(f"{settings['model']}, {settings['batch']} images a step, {document['device_name']}", fontsize=10)
    patches = [Patch(color=_COLORS[group], label=label) for group, label in _LABELS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def _draw_bars(axis: Any, name: str, rows: Sequence[Result]) -> None:
    medians = [_median(row) for row in rows]
    spread = [
        [median - row["timing"]["p10_ms"] for median, row in zip(medians, rows)],
        [row["timing"]["p90_ms"] - median for median, row in zip(medians, rows)],
    ]
    labels = [row["contestant"] for row in rows]
    drawn = axis.barh(labels, medians, xerr=spread, color=[_COLORS[row["group"]] for row in rows])
    axis.bar_label(drawn, [f"{median:.4g}" for median in medians], padding=4, fontsize=8)
    axis.margins(x=0.12)
    axis.set_title(name, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
