"""Numbers as plain-text tables, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .accuracy import Accuracy


def accuracy_table(rows: Mapping[str, Accuracy]) -> str:
    """A plain-text table with one line per entry of ``rows``: what was evaluated, its accuracy, out of how many
    images."""
    body = [(name, str(accuracy), f"{accuracy.correct} of {accuracy.total}") for name, accuracy in rows.items()]
    header, *lines = aligned([("test accuracy", "", "correct"), *body]).splitlines()
    return "\n".join([header, "-" * len(header), *lines])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths)).rstrip() for row in rows
    )
