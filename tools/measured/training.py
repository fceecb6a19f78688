"""Whole training steps beside plain PyTorch: python -m benchmarks.training."""

from __future__ import annotations

from benchmarks.report import markdown
from benchmarks.training_contestants import ADT_EXP, AT_PGD, OURS, PUBLISHED, STRONGEST
from benchmarks.training_report import fastest

from .results import Document, machine_words

FILES = ("training-cpu-zen4-avx512.json",)

_COLUMNS = {
    "published": (PUBLISHED, "fp32"),
    "strongest, fp32": (STRONGEST, "fp32"),
    "strongest, bf16": (STRONGEST, "bf16"),
    "adt_fast, fp32": (OURS, "fp32"),
    "adt_fast, bf16": (OURS, "bf16"),
}


def blocks(document: Document) -> dict[str, str]:
    """The table of both objectives, what was left out of adt_fast to see what it does, and ratios for sentences."""
    results = document["results"]
    exp = {title: median(results, ADT_EXP, *of) for title, of in _COLUMNS.items()}
    pgd = {title: median(results, AT_PGD, *of) for title, of in _COLUMNS.items()}
    features = {one["contestant"]: one["timing"]["median_ms"] for one in results if one["objective"] == ADT_EXP}
    ours, ours_bf16 = (_one_of(results, ADT_EXP, OURS, precision) for precision in ("fp32", "bf16"))
    whole, headline = features["adt_fast fp32 chunk=None"], document["headline"]
    return {
        "machine": f"{sizes(document['settings'])}, on {machine_words(document, document['settings']['threads'])}",
        "steps": markdown([
            ["", *_COLUMNS],
            ["ADT-EXP", *(f"{ms:.0f} ms" for ms in exp.values())],
            ["ADT-EXP, published / this", *(f"{exp['published'] / ms:.2f}" for ms in exp.values())],
            ["AT-PGD", *(f"{ms:.0f} ms" for ms in pgd.values())],
        ]),
        "without_twin": f"{features['adt_fast fp32 twin=False']:.0f}",
        "compiled_twin": f"{features['adt_fast fp32 compile=True']:.0f}",
        "whole": f"{whole:.0f}",
        "whole_is_less": f"{1 - whole / exp['adt_fast, fp32']:.0%}",
        "over_ceiling_fp32": f"{ours['ceiling_fraction']:.1f}",
        "over_ceiling_bf16": f"{ours_bf16['ceiling_fraction']:.2f}",
        "explain": f"```text\n{ours_bf16['explain']}\n```",
        "over_at_pgd": f"{headline['best']:.2f}",
        "over_at_pgd_fp32": f"{headline['fp32']:.2f}",
    }  # fmt: skip


def sizes(settings: Document) -> str:
    """Model, minibatch and attack."""
    image = "x".join(map(str, settings["image"]))
    attack = f"T = {settings['steps']}, k = {settings['samples']}"
    return f"{settings['model']}, {settings['batch']} images of {image}, {attack}"


def _one_of(results: list[Document], objective: str, group: str, precision: str) -> Document:
    return fastest([result for result in results if result["objective"] == objective], group, precision)


def median(results: list[Document], objective: str, group: str, precision: str) -> float:
    """Milliseconds of the fastest of the group."""
    return _one_of(results, objective, group, precision)["timing"]["median_ms"]
