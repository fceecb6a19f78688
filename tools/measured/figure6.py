"""Training steps of amortised methods, as in the paper's Figure 6: python -m benchmarks.training."""

from __future__ import annotations

from benchmarks.report import markdown
from benchmarks.training_contestants import (
    ADT_EXP,
    ADT_EXP_AM,
    ADT_IMP_AM,
    AT_PGD,
    OURS,
    PUBLISHED,
    STANDARD,
    STRONGEST,
)

from .results import Document, machine_words
from .training import median, sizes

FILES = ("figure6-cpu-zen4-avx512.json",)

_COLUMNS = {
    "standard": STANDARD,
    "AT-PGD": AT_PGD,
    "ADT-EXP": ADT_EXP,
    "ADT-EXP-AM": ADT_EXP_AM,
    "ADT-IMP-AM": ADT_IMP_AM,
}
_ROWS = {
    "published": (PUBLISHED, "fp32"),
    "strongest, fp32": (STRONGEST, "fp32"),
    "adt_fast, fp32": (OURS, "fp32"),
    "strongest, bf16": (STRONGEST, "bf16"),
    "adt_fast, bf16": (OURS, "bf16"),
}


def blocks(document: Document) -> dict[str, str]:
    """The table, in milliseconds and in times of AT-PGD; what was measured; how much the amortised methods gain."""
    results, settings = document["results"], document["settings"]
    rows = [["", *_COLUMNS]]
    for title, of in _ROWS.items():
        times = [median(results, objective, *of) for objective in _COLUMNS.values()]
        rows.append([title, *(f"{ms:.0f} ({ms / times[1]:.2f})" for ms in times)])
    gains = [median(results, ADT_EXP_AM, PUBLISHED, "fp32") / median(results, ADT_EXP_AM, OURS, precision)
             for precision in ("fp32", "bf16")]  # fmt: skip
    return {
        "table": markdown(rows),
        "machine": f"{sizes(settings)}, generators of width {settings['generator_width']}, "
                   f"on {machine_words(document, settings['threads'])}",
        "gain_fp32": f"{gains[0]:.2f}",
        "gain_bf16": f"{gains[1]:.2f}",
    }  # fmt: skip
