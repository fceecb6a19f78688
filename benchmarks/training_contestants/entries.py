"""The list of the contestants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .ours import Ours
from .published import build_published
from .strongest import FORMS, Strongest
from .strongest_amortized import StrongestAmortized
from .task import ADT_EXP, AMORTIZED, AT_PGD, PRECISIONS, STANDARD, Contestant, Task

PUBLISHED, STRONGEST, OURS, FEATURES, HEADLINE = GROUPS = ("published", "strongest", "ours", "features", "headline")

_HALF = {"cpu": "bf16", "cuda": "fp16"}  # the 16-bit precision in which features are switched off


@dataclass(frozen=True)
class Entry:
    """A contestant before it has a task."""

    name: str
    group: str
    precision: str
    build: Callable[[Task], Contestant]
    compiled: bool = False


def entries(objective: str, device_type: str) -> list[Entry]:
    """Everybody who takes part in an objective on a kind of device."""
    # PyTorch's defaults on CUDA: convolutions, where the time goes, in TF32.
    default_precision = "tf32" if device_type == "cuda" else "fp32"
    found = [Entry("published", PUBLISHED, default_precision, build_published)]
    if objective == ADT_EXP:
        found.append(Entry("published at-pgd", HEADLINE, default_precision, _published_at_pgd))
    for precision in PRECISIONS[device_type]:
        found += _strongest_entries(objective, device_type, precision)
    found += [
        Entry(f"adt_fast {precision}", OURS, precision, partial(Ours, precision=precision))
        for precision in PRECISIONS[device_type]
    ]
    if objective != STANDARD:
        found += _feature_entries(device_type)
    return found


def choose(found: Sequence[Entry], names: Sequence[str], precisions: Sequence[str], compiled: bool) -> list[Entry]:
    """Those of the groups or names, and of the precisions; the published ones are of whatever precision they are."""
    return [
        entry
        for entry in found
        if (entry.group in names or entry.name in names)
        and (entry.precision in precisions or entry.group in (PUBLISHED, HEADLINE))
        and (compiled or not entry.compiled)
    ]


def _published_at_pgd(task: Task) -> Contestant:
    """AT-PGD at library defaults takes its turn among the contestants of ADT-EXP, to be compared with them."""
    return build_published(replace(task, objective=AT_PGD))


def _strongest_entries(objective: str, device_type: str, precision: str) -> list[Entry]:
    forms = [form for form in FORMS[device_type] if form.folded or objective == ADT_EXP]
    if objective == STANDARD:
        forms = [form for form in forms if not form.graphed]
    kind = StrongestAmortized if objective in AMORTIZED else Strongest
    return [
        Entry(
            f"{form.name} {precision}", STRONGEST, precision,
            partial(kind, precision=precision, form=form), form.compiled,
        )
        for form in forms
    ]  # fmt: skip


def _feature_entries(device_type: str) -> list[Entry]:
    """Ours with a feature off, and with the one that is off by default on."""
    half = _HALF[device_type]
    changes: list[tuple[str, dict[str, Any]]] = [("fp32", {"twin": False})]
    for precision in ("fp32", half):
        changes += [(precision, {"chunk": None}), (precision, {"compile": True})]
    if device_type == "cuda":
        changes.append((half, {"graph": False}))
    return [
        Entry(
            f"adt_fast {precision} {name}={value}", FEATURES, precision,
            partial(Ours, precision=precision, **{name: value}), compiled=name == "compile",
        )
        for precision, change in changes
        for name, value in change.items()
    ]  # fmt: skip
