"""The numbers of a study, brought together over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from .plan import name_of

Document = dict[str, Any]
"""What ``studies/__main__.py`` writes."""

Measured = dict[str, Any]
"""A model of the study, and what was measured of it."""


def by_name(document: Document, kind: str) -> dict[str, list[Measured]]:
    """The models of which something was measured, by name in the plan's order, one a seed."""
    names = [name_of(changes) for changes in document["plan"].get(kind, {"runs": ()})["runs"]]
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for model in document["runs"]:
        if model.get(kind) is not None and model["name"] in found:
            found[model["name"]].append(model)
    return {name: models for name, models in found.items() if models}


def values(models: list[Measured], kind: str, attack: str) -> list[float]:
    """The accuracies of models under an attack, whose options may be left out, in percent."""
    return [100 * _accuracy(model[kind]["accuracies"], attack) for model in models]


def differences(document: Document, method: str, other: str, attack: str) -> list[float]:
    """What a method adds to another's accuracy under an attack, seed by seed, in points."""
    models = by_name(document, "accuracies")
    theirs = dict(zip((model["seed"] for model in models.get(other, [])),
                      values(models.get(other, []), "accuracies", attack)))  # fmt: skip
    mine = models.get(method, [])
    return [
        value - theirs[model["seed"]]
        for model, value in zip(mine, values(mine, "accuracies", attack))
        if model["seed"] in theirs
    ]


def spread(numbers: list[float], digits: int = 1) -> str:
    """Mean and standard deviation, in words; the mean alone of a single number."""
    mean, deviation = mean_and_deviation(numbers)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(numbers) > 1 else "")


def title(name: str) -> str:
    """A model's name as tables have it: options without what is so anyway."""
    method, *options = name.split(", ")
    return ", ".join([method, *(option.replace("recipe=published,", "") for option in options)])


def titled(models: dict[str, list[Measured]]) -> Iterator[tuple[str, str, list[Measured]]]:
    """Title, method and models of each name."""
    for name, mine in models.items():
        yield title(name), mine[0]["method"], mine


def mean_and_deviation(numbers: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; 0 for the deviation of a single number."""
    return statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def _accuracy(accuracies: dict[str, float], attack: str) -> float:
    for name, value in accuracies.items():
        if name == attack or name.split(":")[0] == attack:
            return value
    raise KeyError(attack)
