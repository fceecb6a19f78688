"""Pictures of a robust evaluation."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import Tensor

from .report import RobustReport

_BAR, _ROBUST = "#4477aa", "#aa3377"


def accuracy_bars(report: RobustReport) -> str:
    """A bar for each accuracy, as the URI of a PNG image."""
    from matplotlib.figure import Figure

    values = report.accuracies()
    figure = Figure(figsize=(6.4, 0.32 * len(values) + 0.7), layout="constrained")
    axes = figure.add_subplot()
    shares = [100 * float(value) for value in values.values()]
    bars = axes.barh(range(len(values)), shares, color=[_ROBUST if name == "A_rob" else _BAR for name in values])
    axes.bar_label(bars, [f"{share:.1f}" for share in shares], padding=3)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    return _as_uri(figure)


def example_grid(report: RobustReport, attack: str) -> str:
    """The examples, what the attack made of them, and the difference, magnified, in three rows; as a PNG's URI.

    Grey is no difference; the ball's radius is black or white.
    """
    from matplotlib.figure import Figure

    natural, adversarial = report.examples["natural"], report.examples[attack]
    difference = adversarial - natural
    scale = report.settings["epsilon"] if report.settings["norm"] == "linf" else float(difference.abs().max()) or 1.0
    rows = {"natural": natural, attack: adversarial, "difference": (difference / (2 * scale) + 0.5).clamp(0, 1)}
    fooled = report.outcomes[attack][report.natural][: len(natural)] == 0
    figure = Figure(figsize=(1.1 * len(natural) + 0.9, 3.7), layout="constrained")
    axes = figure.subplots(len(rows), len(natural), squeeze=False)
    for row, (name, images) in zip(axes, rows.items()):
        for column, (axis, image) in enumerate(zip(row, images)):
            axis.imshow(**_as_picture(image))
            axis.set_xticks([])
            axis.set_yticks([])
            colour = _ROBUST if fooled[column] and name == attack else "#999999"
            axis.spines[:].set(color=colour, linewidth=2.5 if colour == _ROBUST else 0.8)
        row[0].set_ylabel(name)
    return _as_uri(figure)


def _as_picture(image: Tensor) -> dict[str, Any]:
    """How matplotlib shows an image ``[C, H, W]`` in [0, 1]: in colour where it has three channels, else the first."""
    if len(image) == 3:
        return {"X": image.permute(1, 2, 0).to(torch.float32).numpy(), "interpolation": "nearest"}
    return {"X": image[0].to(torch.float32).numpy(), "cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}


def _as_uri(figure: Any) -> str:
    content = io.BytesIO()
    # Without the date and the version of matplotlib, the same figure is the same bytes.
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
