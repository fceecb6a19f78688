"""Attacks beside those of torchattacks and foolbox: python -m benchmarks.attacks."""

from __future__ import annotations

from benchmarks.attack_report import speed_table, strength_table, traces_table

from .results import Document, machine_words

FILES = ("attacks-cpu-zen4-avx512.json",)


def blocks(document: Document) -> dict[str, str]:
    """The tables that the benchmark prints, and what was attacked, where."""
    return {
        "settings": _settings(document),
        "strength": strength_table(document),
        "speed": speed_table(document),
        "traces": traces_table(document),
    }


def _settings(document: Document) -> str:
    classifier, settings = document["classifier"], document["settings"]
    model = (
        f"a {classifier['name']} trained by {classifier['method']}, natural accuracy {document['natural_accuracy']:.1%}"
    )
    data = f"the first {document['images']:,} test images of {classifier['dataset']}, {len(settings['seeds'])} seeds"
    peers = ", ".join(f"{name} {version}" for name, version in document["peers"].items())
    return f"{model}, {data}, float32, on {machine_words(document, settings['threads'])}, {peers}"
