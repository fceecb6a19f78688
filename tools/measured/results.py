"""Committed results, which say what they were measured on."""

from __future__ import annotations

import json
from typing import Any

from .pages import ROOT

RESULTS = ROOT / "benchmarks" / "results"

Document = dict[str, Any]


def load(name: str) -> Document:
    """A file of benchmarks/results/.

    Raises:
        ValueError: it does not say on what machine, with which versions and when it was measured.
    """
    document = json.loads((RESULTS / name).read_text())
    machine = document.get("machine") or {}
    missing = [key for key in ("time", "cpu", "logical_cpus", "adt_fast") if not machine.get(key)]
    missing += [key for key in ("torch", "threads") if not machine.get("adt_fast", {}).get(key)]
    if missing:
        raise ValueError(f"{name} does not say what it was measured on: {', '.join(missing)} of machine")
    return document


def machine_words(document: Document, threads: int | str | None = None) -> str:
    """On what and when, in words: "2 threads of an AMD EPYC (avx512, 2 cores), torch 2.13.0+cpu, 2026-11-25".

    Args:
        document: what :func:`load` gives.
        threads: how many were used, where the file does not have that in ``machine``.
    """
    machine = document["machine"]
    build = machine["adt_fast"]
    threads = threads or build["threads"]
    set_of = ", ".join(filter(None, (build.get("cpu_instruction_set"), f"{machine['logical_cpus']} cores")))
    words = f"{threads} thread{'' if threads == 1 else 's'} of {_article(machine['cpu'])} ({set_of})"
    if "gpu" in machine:
        words = f"{machine['gpu']['name']}, {words}"
    return f"{words}, torch {build['torch']}, {machine['time'][:10]}"


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
