"""Operators beside plain PyTorch: python -m benchmarks.kernels."""

from __future__ import annotations

from benchmarks.operator_cases import EAGER, OURS
from benchmarks.report import markdown

from .results import Document, machine_words

FILES = ("kernels-cpu-xeon-avx512.json",)

_OPERATORS = {
    "sample": "`tanh_gaussian_sample`",
    "sample_backward": "`tanh_gaussian_sample` backward",
    "ascent_step": "`tanh_gaussian_ascent_step_`",
    "ascent_step_and_sample": "`tanh_gaussian_ascent_step_and_sample_`",
    "linf_step": "`linf_step_`",
    "l2_step": "`l2_step_`",
    "momentum_linf_step": "`momentum_linf_step_`",
    "uniform_start": "`uniform_start_`",
}
"""What adt_fast.ops calls them."""


def blocks(document: Document) -> dict[str, str]:
    """The table of all operators, with one thread and with two; and where and at which sizes they were measured."""
    results = {(result["operator"], result["threads"]): result for result in document["results"]}
    rows = [["operator", "1 thread", "vs eager", "vs fastest", "2 threads", "vs eager", "vs fastest"]]
    for name, title in _OPERATORS.items():
        rows.append([title, *(cell for threads in (1, 2) for cell in _cells(results[name, threads]))])
    return {"table": markdown(rows), "sizes": _sizes(document)}


def _cells(result: Document) -> list[str]:
    ratios = result["ratios"]
    return [f"{result['timings'][OURS]['median_ms']:.2f} ms", f"{ratios[EAGER]:.1f}x", f"{min(ratios.values()):.1f}x"]


def _sizes(document: Document) -> str:
    one = document["results"][0]
    sizes = f"k = {one['samples']} samples, batch {one['batch']}, {'x'.join(map(str, one['image']))}, {one['dtype']}"
    return f"{sizes}, on {machine_words(document, '1 and 2')}"
