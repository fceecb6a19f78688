"""The figures of a study, from its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from adt_fast._support.atomic_file import atomic_file
from adt_fast.analysis import _figures

from .summary import Document, by_name, mean_and_deviation, titled, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLACES = ((6, 0, "left"), (-6, 0, "right"), (6, 8, "left"), (6, -8, "left"), (-6, 8, "right"), (-6, -8, "right"),
           (0, 15, "center"), (0, -15, "center"))  # fmt: skip
"""Where a label may be beside its point, best first: x and y in points, and what of it is there."""


def write_figures(document: Document, epoch_time: dict[str, Any] | None, folder: Path) -> list[Path]:
    """Draws what there are numbers for, as PNG files in a folder."""
    drawings: dict[str, Callable[[Figure], None]] = {}
    if epoch_time is not None and by_name(document, "accuracies"):
        drawings["robustness-cost"] = lambda figure: robustness_and_cost(document, epoch_time, figure)
    for kind, draw in (("entropy", entropy), ("curvature", curvature), ("landscape", landscapes)):
        if by_name(document, kind):
            drawings[kind] = lambda figure, draw=draw: draw(document, figure)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in drawings.items():
        paths.append(folder / f"{name}.png")
        with atomic_file(paths[-1]) as file:
            file.write(_figures.rendered(draw)[_figures.KINDS.index("png")])
    return paths


def robustness_and_cost(document: Document, epoch_time: dict[str, Any], figure: Figure) -> None:
    """A_rob over the time of an epoch, a point a method; whiskers are standard deviations over seeds."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure.set_size_inches(_figures.PAGE_WIDTH, 3.6)
    axes = figure.subplots()
    seconds = dict(zip(epoch_time["methods"], epoch_time["epoch_seconds"]))
    labels: list[tuple[float, float, str, str]] = []
    for name, method, models in titled(by_name(document, "accuracies")):
        if method not in seconds or "batch_mean" in name:
            continue
        mean, deviation = mean_and_deviation(values(models, "accuracies", "A_rob"))
        index = 0 if method.startswith("adt-") else 1
        color = _figures.COLORS[index]
        axes.errorbar(
            seconds[method], mean, yerr=deviation, color=color, marker=_figures.MARKERS[index], capsize=2,
            linewidth=0.8, markerfacecolor="white" if ", " in name else color,
        )  # fmt: skip
        labels.append((seconds[method], mean, name.replace("gradient_scale=", ""), color))
    axes.set(
        xlabel="time of an epoch (s, log scale)", ylabel="accuracy under all attacks, $A_{rob}$ (%)", xscale="log",
        xlim=(0.8 * min(seconds.values()), 1.6 * max(seconds.values())),
        ylim=(0, 1.15 * max(y for _, y, _, _ in labels)),  # room for the labels
    )  # fmt: skip
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.4)
    _label_points(axes, labels)


def _label_points(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Puts each label, (x, y, text, colour), where it covers no point and no other label, if there is such a place."""
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=1.5, foreground="white")  # to be read across a whisker
    axes.figure.draw_without_rendering()
    points = axes.transData.transform([(x, y) for x, y, _, _ in labels])
    taken: list[Any] = []
    for x, y, text, color in labels:
        for place in _PLACES:
            offset, alignment = place[:2], place[2]
            label = axes.annotate(
                text, (x, y), xytext=offset, textcoords="offset points", fontsize=6.5, color=color, ha=alignment,
                va="center", path_effects=[halo],
            )  # fmt: skip
            box = label.get_window_extent().padded(2)  # a point is wider than its middle
            is_free = not any(box.overlaps(other) for other in taken) and not any(box.contains(*at) for at in points)
            if is_free or place == _PLACES[-1]:
                taken.append(box)
                break
            label.remove()


def entropy(document: Document, figure: Figure) -> None:
    """Figure 3: accuracies above, entropy below, over lambda."""
    figure.set_size_inches(_figures.COLUMN_WIDTH, 3.4)
    accuracy, below = figure.subplots(2, 1, sharex=True)
    found = by_name(document, "entropy")
    places = range(len(found))
    for index, (label, attack) in enumerate((("natural", "natural"), ("PGD-20", "pgd-20"))):
        means, deviations = zip(*(mean_and_deviation(values(mine, "entropy", attack)) for mine in found.values()))
        accuracy.errorbar(places, means, yerr=deviations, label=label, **_line(index))
    means, deviations = zip(
        *(mean_and_deviation([model["entropy"]["entropy_per_element"] for model in mine]) for mine in found.values())
    )
    below.errorbar(places, means, yerr=deviations, **_line(2))
    highest = next(iter(found.values()))[0]["entropy"]["highest_per_element"]
    below.axhline(highest, color="black", linestyle=":", label="uniform distribution")
    accuracy.set(ylabel="accuracy (%)", ylim=(0, None))
    accuracy.legend()
    below.set(xlabel="entropy weight $\\lambda$", ylabel="entropy (nats per element)")
    below.set_xticks(places, [f"{mine[0]['entropy_weight']:g}" for mine in found.values()])
    below.legend()


def curvature(document: Document, figure: Figure) -> None:
    """Figure 4 (f): the share of images whose eigenvalue is larger, of the first seed's models."""
    figure.set_size_inches(_figures.COLUMN_WIDTH, 2.6)
    axes = figure.subplots()
    for index, (name, _, models) in enumerate(titled(by_name(document, "curvature"))):
        quantiles = numpy.abs(models[0]["curvature"]["quantiles"])
        axes.plot(numpy.sort(quantiles), numpy.linspace(100, 0, len(quantiles)), color=_figures.COLORS[index],
                  label=_short(name))  # fmt: skip
    axes.set(xscale="log", xlabel="dominant eigenvalue of the Hessian", ylabel="images with a larger one (%)",
             ylim=(0, 100))  # fmt: skip
    axes.legend()


def landscapes(document: Document, figure: Figure) -> None:
    """Figure 4 (a-e): cross entropy around one image, the models side by side on one scale."""
    found = list(titled(by_name(document, "landscape")))
    figure.set_size_inches(_figures.PAGE_WIDTH, 1.9)
    panels = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    highest = max(max(map(max, models[0]["landscape"]["losses"])) for _, _, models in found)
    levels = numpy.linspace(0, math.ceil(highest), 17)
    for axes, (name, _, models) in zip(panels, found):
        one = models[0]["landscape"]
        filled = axes.contourf(*[one["offsets"]] * 2, numpy.array(one["losses"]).T, levels, cmap=_figures.SEQUENTIAL)
        axes.plot([1, 0, -1, 0, 1], [0, 1, 0, -1, 0], color="white", linewidth=0.8)
        axes.set(title=_short(name), aspect="equal", xlabel="along $d_g$ ($\\epsilon$)")
    panels[0].set_ylabel("along $d_r$ ($\\epsilon$)")
    figure.colorbar(filled, ax=panels, label="cross entropy (nats)", shrink=0.8)


def _short(title: str) -> str:
    return title.split(",")[0]


def _line(index: int) -> dict[str, Any]:
    return {"color": _figures.COLORS[index], "marker": _figures.MARKERS[index], "capsize": 2}
