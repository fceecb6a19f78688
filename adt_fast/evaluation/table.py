"""Accuracies as a table for people."""

from __future__ import annotations

from collections.abc import Mapping

from .accuracy import Accuracy


def accuracy_table(rows: Mapping[str, Accuracy]) -> str:
    """A plain-text table with one line per entry: what was evaluated, its accuracy, and out of how many images."""
    header = ("test accuracy", "", "correct")
    body = [(name, str(accuracy), f"{accuracy.correct} of {accuracy.total}") for name, accuracy in rows.items()]
    first, second, third = (max(map(len, column)) for column in zip(header, *body, strict=True))
    lines = [f"{name:<{first}}  {share:>{second}}  {counts:>{third}}" for name, share, counts in (header, *body)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
