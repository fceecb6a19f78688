"""A plan: what a study trains and measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adt_fast.config import TrainConfig
from adt_fast.config_files import load_config_file

PLANS = Path(__file__).parent / "plans"
MEASUREMENTS = ("accuracies", "entropy", "strength", "curvature", "landscape", "distribution", "autoattack")
"""Parts of a plan that are measured of trained models, in their order."""


def name_of(changes: dict[str, Any]) -> str:
    """What the runs of these changes are called: the method, and what is changed about it."""
    options = (f"{name}={value}" for name, value in changes.items() if name != "method")
    return ", ".join([changes["method"], *options])


@dataclass(frozen=True)
class Run:
    """A model to be trained.

    Args:
        changes: what it has otherwise than the other runs of the plan: its method, and options of that.
        seed: of everything random in its training and in its measurements.
        training: of the plan: ``config``, see ``adt-fast configs``, and settings that go before it.
    """

    changes: dict[str, Any]
    seed: int
    training: dict[str, Any]

    @property
    def name(self) -> str:
        """See :func:`name_of`; runs of different seeds have the same."""
        return name_of(self.changes)

    def config(self, data_dir: Path | None, output: Path) -> TrainConfig:
        """All its settings."""
        given = {name: value for name, value in self.training.items() if name != "config"}
        file = load_config_file(self.training["config"])
        return file.config(**given, **self.changes, seed=self.seed, data_dir=data_dir, output=output)


def shared_config(training: dict[str, Any], data_dir: Path | None) -> TrainConfig:
    """The settings of all runs of a plan, for any method: with the options that only some have."""
    given = {name: value for name, value in training.items() if name != "config"}
    return TrainConfig(**(load_config_file(training["config"]).settings | given), data_dir=data_dir)


@dataclass(frozen=True)
class Measurement:
    """What is to be measured of a trained model.

    Args:
        kind: one of :data:`MEASUREMENTS`.
        settings: of the plan, and ``test_images``.
    """

    kind: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What ``studies/plans/NAME.yaml`` says; the file that is there shows all that it can say."""

    name: str
    document: dict[str, Any]

    def tasks(self, kinds: tuple[str, ...] = MEASUREMENTS) -> Iterator[tuple[Run, list[Measurement]]]:
        """Each model once, with all that is measured of it: those of the first seed first."""
        for seed in self.document["seeds"]:
            wanted: dict[str, tuple[Run, list[Measurement]]] = {}
            for kind in kinds:
                part = self.document.get(kind)
                if part is None or seed not in part.get("seeds", self.document["seeds"]):
                    continue
                settings = {"test_images": self.document["test_images"]}
                settings |= {name: value for name, value in part.items() if name not in ("runs", "seeds")}
                for changes in part["runs"]:
                    run = Run(changes, seed, self.document["training"])
                    wanted.setdefault(run.name, (run, []))[1].append(Measurement(kind, settings))
            yield from wanted.values()


def load_plan(source: str) -> Plan:
    """A plan of this folder by its name, or another by its path.

    Raises:
        OSError: if there is none.
    """
    path = Path(source) if source.endswith(".yaml") else PLANS / f"{source}.yaml"
    return Plan(path.stem, yaml.safe_load(path.read_text()))
