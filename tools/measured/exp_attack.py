"""EXP as an attack beside PGD-20, as in the paper's Table 4."""

from __future__ import annotations

import statistics

from benchmarks.report import markdown, spread

from .results import Document, machine_words

FILES = ("exp-attack-cpu.json",)

_MODELS = {
    "digits-standard": "digits, standard",
    "digits-at-pgd": "digits, AT-PGD",
    "digits-adt-exp": "digits, ADT-EXP",
    "cifar-at-pgd": "CIFAR-10, AT-PGD (WRN-10-2)",
}


def blocks(document: Document) -> dict[str, str]:
    """The table, a row a model; and where it was measured."""
    rows = [["model", "PGD-20", "`exp`", "EXP as in training", "`exp` less PGD-20"]]
    for name, title in _MODELS.items():
        mine = [run for run in document["runs"] if run["settings"]["model"] == name]
        cells = [spread([run[attack] for run in mine]) for attack in ("pgd-20", "exp", "exp, as in training")]
        difference = 100 * statistics.mean(run["exp"] - run["pgd-20"] for run in mine)
        rows.append([title, *cells, f"{difference:+.2f}"])
    seeds = len({run["settings"]["seed"] for run in document["runs"]})
    return {"table": markdown(rows), "machine": f"{seeds} seeds, on {machine_words(document)}"}
