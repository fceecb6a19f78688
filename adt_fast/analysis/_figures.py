"""How figures look: one house style for all, fit for a column of a paper."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]

KINDS = ("png", "pdf")

COLUMN_WIDTH = 3.35
"""Inches, of a column of a two-column paper; figures are printed at the size they are made."""
PAGE_WIDTH = 6.9
"""Inches, of both columns."""

# Okabe and Ito's colours, which remain apart for the colour-blind, without the yellow that vanishes on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SEQUENTIAL = "viridis"  # goes from dark to bright for everyone, and in black and white

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.linewidth": 0.4,
    "grid.color": "0.85",
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # letters stay letters: journals refuse Type 3 fonts
    "savefig.dpi": 300,
}


def drawn(draw: Draw) -> Figure:
    """A figure of a column's width, drawn in the house style.

    Raises:
        ImportError: if matplotlib is missing.
    """
    with _style():
        return _draw(draw)


def rendered(draw: Draw) -> list[bytes]:
    """The figure's files, one of each of :data:`KINDS`; the same figure gives the same bytes.

    Raises:
        ImportError: if matplotlib is missing.
    """
    with _style():
        figure = _draw(draw)
        files = []
        for kind in KINDS:
            file = io.BytesIO()
            figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
            files.append(file.getvalue())
        return files


def _draw(draw: Draw) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN_WIDTH, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    return figure


def _style() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError('figures need matplotlib: pip install "adt_fast[report]"') from None
    return matplotlib.rc_context(STYLE)
