"""The result of a robust evaluation, as data, JSON and Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._support.atomic_file import atomic_file
from .accuracy import Accuracy
from .outcomes import NOT_ATTACKED, RIGHT, WRONG

_LETTERS = {RIGHT: "1", WRONG: "0", NOT_ATTACKED: "-"}


@dataclass(frozen=True, eq=False)
class RobustReport:
    """What several attacks did to each of N images; :func:`adt_fast.evaluate` makes it."""

    settings: dict[str, Any]
    """Model, data, attacks, ball, seed and versions; plain values."""
    labels: Tensor
    """int64 ``[N]``."""
    natural: Tensor
    """Which images are classified right as they are, bool ``[N]``."""
    outcomes: dict[str, Tensor]
    """By attack, int8 ``[N]``: 1 where the image is still classified right, 0 where not, -1 where it was not attacked,
    as it had fallen to an attack before (``survivors_only``)."""
    examples: dict[str, Tensor]
    """A few images ``[E, C, H, W]`` under "natural", and what each attack made of them."""
    warnings: tuple[str, ...] = ()
    """What a reviewer would ask about."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Their names, in the order in which they were run."""
        return tuple(self.outcomes)

    @property
    def natural_accuracy(self) -> Accuracy:
        """On the images as they are."""
        return Accuracy(int(self.natural.sum()), len(self))

    @property
    def is_robust(self) -> Tensor:
        """Which images are classified right as they are and under every attack, bool ``[N]``."""
        return self.is_robust_under(self.attacks)

    @property
    def robust_accuracy(self) -> Accuracy:
        """A_rob, the share of images that withstand every attack (paper, Section 5.1)."""
        return self.robust_accuracy_under(self.attacks)

    def is_robust_under(self, attacks: Iterable[str]) -> Tensor:
        """Which images are classified right as they are and under each of some attacks, bool ``[N]``.

        Raises:
            ValueError: with ``survivors_only``, if images were not attacked, as they had fallen to other attacks.
        """
        outcomes = {name: self.outcomes[name] for name in attacks}
        withstood = torch.stack([self.natural, *(outcome != WRONG for outcome in outcomes.values())]).all(0)
        unknown = [name for name, outcome in outcomes.items() if bool((withstood & (outcome == NOT_ATTACKED)).any())]
        if unknown:
            raise ValueError(f"attacks must have those before {unknown[0]!r} among them: with survivors_only, it did "
                             "not see what they had broken")
        return withstood

    def robust_accuracy_under(self, attacks: Iterable[str]) -> Accuracy:
        """A_rob of some of the attacks; it raises what :meth:`is_robust_under` does."""
        return Accuracy(int(self.is_robust_under(attacks).sum()), len(self))

    def accuracy(self, attack: str) -> Accuracy:
        """Under one attack; with ``survivors_only``, under it and those before it."""
        return Accuracy(int((self.outcomes[attack] == RIGHT).sum()), len(self))

    def per_class(self) -> list[dict[str, Any]]:
        """For each class: its number, how many images it has, and accuracies, natural and of A_rob."""
        rows = []
        robust = self.is_robust
        for label in self.labels.unique().tolist():
            mine = self.labels == label
            natural, withstanding = (Accuracy(int(right[mine].sum()), int(mine.sum())) for right in
                                     (self.natural, robust))
            rows.append({"class": label, "images": natural.total, "natural": natural, "robust": withstanding})
        return rows

    def with_warnings(self, *warnings: str) -> RobustReport:
        """The same report with these warnings."""
        return replace(self, warnings=warnings)

    def accuracies(self) -> dict[str, Accuracy]:
        """By name: natural, each attack's, and, where there are several, A_rob."""
        by_attack = {name: self.accuracy(name) for name in self.attacks}
        together = {"A_rob": self.robust_accuracy} if len(by_attack) > 1 else {}
        return {"natural": self.natural_accuracy, **by_attack, **together}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the examples, as plain values; outcomes as texts of one letter an image."""
        return {
            "settings": self.settings,
            "accuracy": {
                name: {"share": float(value), **asdict(value)} for name, value in self.accuracies().items()
            },
            "per_class": [
                {name: asdict(value) if isinstance(value, Accuracy) else value for name, value in row.items()}
                for row in self.per_class()
            ],
            "warnings": list(self.warnings),
            "labels": self.labels.tolist(),
            "outcomes": {
                "natural": _as_text(self.natural),
                **{name: _as_text(outcome) for name, outcome in self.outcomes.items()},
                "A_rob": _as_text(self.is_robust),
            },
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_markdown(self) -> str:
        """Accuracies, classes and warnings as Markdown."""
        lines = [f"# Robust accuracy: {self.title}", "", self.subtitle, ""]
        lines += ["| attack | accuracy | correct |", "|---|---|---|"]
        for name, value in self.accuracies().items():
            lines.append(f"| {_shown(name)} | {value} | {value.correct} of {value.total} |")
        if self.settings["survivors_only"]:
            lines += ["", "Each attack saw what the ones above had left: an accuracy is that of all so far."]
        lines += ["", "| class | images | natural | A_rob |", "|---|---|---|---|"]
        for row in self.per_class():
            lines.append(f"| {row['class']} | {row['images']} | {row['natural']} | {row['robust']} |")
        if self.warnings:
            lines += ["", "## What a reviewer would ask about", "", *(f"- {warning}" for warning in self.warnings)]
        return "\n".join(lines) + "\n"

    @property
    def title(self) -> str:
        """Model and data, in a few words."""
        model, data = self.settings["model"], self.settings["data"]
        return f"{model['class']} on {len(self):,} images{' of ' + data['name'] if data else ''}"

    @property
    def subtitle(self) -> str:
        """Ball, seed and versions, in a line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.settings["versions"].items())
        norm = {"linf": "L-infinity", "l2": "L2"}[self.settings["norm"]]
        return (f"{norm} ball of radius {self.settings['epsilon']:.5g}, seed {self.settings['seed']}, "
                f"{self.settings['model']['parameters']:,} parameters; {versions}.")

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes report.json, report.md, and report.html with figures; each appears whole or not at all.

        Args:
            folder: made if missing.

        Returns:
            The files. report.html is not among them where matplotlib or jinja2 are missing, the extra ``report``; an
            older one is removed, for it would show something else.

        Raises:
            OSError: if a file cannot be written.
        """
        contents = {"report.json": self.to_json(), "report.md": self.to_markdown()}
        try:
            from .html import html_report

            contents["report.html"] = html_report(self)
        except ImportError:
            pass
        for name, content in contents.items():
            with atomic_file(Path(folder) / name) as file:
                file.write(content.encode())
        if "report.html" not in contents:
            (Path(folder) / "report.html").unlink(missing_ok=True)
        return [Path(folder) / name for name in contents]


def _as_text(outcome: Tensor) -> str:
    return "".join(_LETTERS[value] for value in outcome.to(torch.int8).tolist())


def _shown(name: str) -> str:
    return f"**{name}**" if name == "A_rob" else name
