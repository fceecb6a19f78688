"""What the design promises of the operators, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .operator_cases import COMPILED, EAGER, NOISE_AND_COMPILED

Result = dict[str, Any]  # of benchmarks.kernels


def ratio_to(*contestants: str) -> Callable[[Result], float | None]:
    """How many times faster than the fastest of these; None unless all of them were timed."""

    def measure(result: Result) -> float | None:
        ratios = [result["ratios"].get(name) for name in contestants]
        return None if None in ratios else min(ratios)

    return measure


def microseconds(result: Result) -> float:
    return result["timings"]["adt_fast"]["median_ms"] * 1e3


def copy_fraction(result: Result) -> float:
    return result["copy_fraction"]


@dataclass(frozen=True)
class Target:
    """A bound on one number of one operator; it holds where ``only`` agrees with the result's own entries."""

    operator: str
    what: str
    measure: Callable[[Result], float | None]
    bound: float
    only: dict[str, Any]
    device: str = ""  # part of the device's name
    at_most: bool = False

    def applies_to(self, result: Result) -> bool:
        return (
            result["operator"] == self.operator
            and self.device in result["device_name"]
            and all(result[key] == value for key, value in self.only.items())
        )

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


_BEST_COMPILED = ratio_to(COMPILED, NOISE_AND_COMPILED)
_ON_CPU = {"device": "cpu", "samples": 5, "batch": 64, "image": [3, 32, 32], "dtype": "float32"}
_ON_CUDA = {"device": "cuda", "samples": 5, "batch": 512, "image": [3, 32, 32], "dtype": "float32", "launch": "graph"}

TARGETS = (
    Target("sample", "x the best compiled form, 1 thread", _BEST_COMPILED, 2.5, {**_ON_CPU, "threads": 1}),
    Target("sample", "x the best compiled form, 2 threads", _BEST_COMPILED, 3.5, {**_ON_CPU, "threads": 2}),
    Target("sample", "x eager", ratio_to(EAGER), 6.0, _ON_CPU),
    Target("sample", "microseconds on an H200", microseconds, 15.0, _ON_CUDA, "H200", at_most=True),
    Target("sample", "x eager on an H200", ratio_to(EAGER), 15.0, _ON_CUDA, "H200"),
    Target("sample", "x torch.compile on an H200", ratio_to(COMPILED), 1.5, _ON_CUDA, "H200"),
    Target("ascent_step_and_sample", "of the copy bandwidth on an H200", copy_fraction, 0.75, _ON_CUDA, "H200"),
)


def check_targets(results: list[Result]) -> Iterator[Result]:
    """One entry for each target and each result it applies to and was measured for."""
    for target in TARGETS:
        for result in results:
            value = target.measure(result) if target.applies_to(result) else None
            if value is None:
                continue
            yield {
                "operator": target.operator,
                "what": target.what,
                "threads": result["threads"],
                "layout": result["layout"],
                "bound": target.bound,
                "at_most": target.at_most,
                "measured": value,
                "met": target.is_met(value),
            }
