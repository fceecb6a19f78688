"""Nothing is timed before it is right: results against the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .operator_cases import OperatorCase, Workload

# Of a result stored in this dtype, relative to the root mean square of the truth.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# One element in so many may differ by more: where rounding moves a value across a bound, or a gradient is as small as
# its own rounding, the clamp or the sign falls the other way.
_ELEMENTS_PER_OUTLIER = 10_000


class ValidationError(RuntimeError):
    """A result is wrong, so its time would mean nothing."""


@dataclass(frozen=True)
class OutputErrors:
    """Largest errors of one output, relative to its root mean square; ``plain`` is the worse of the two plain forms."""

    output: str
    ours: float
    plain: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.ours <= self.tolerance and self.plain <= self.tolerance  # False for NaN


def validate(case_class: type[OperatorCase], workload: Workload) -> list[OutputErrors]:
    """Compares one call of ours, and the plain forms with the same normals, with the truth.

    Raises:
        ValidationError: if an error exceeds its tolerance, or is not a number.
    """
    truth = case_class(workload).truth()
    ours = case_class(workload).ours()
    forms = [case_class(workload).plain(fused) for fused in (False, True)]
    errors = [
        OutputErrors(
            name,
            relative_error(ours[name], truth[name]),
            max(relative_error(form[name], truth[name]) for form in forms),
            TOLERANCES[ours[name].dtype],
        )
        for name in truth
    ]
    if not all(error.passed for error in errors):
        details = "; ".join(
            f"{error.output}: ours {error.ours:.3g}, plain PyTorch {error.plain:.3g}, tolerance {error.tolerance:.3g}"
            for error in errors
        )
        raise ValidationError(f"{case_class.name} is not timed: a result is wrong ({details})")
    return errors


def relative_error(result: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest ``|result - truth|`` but for outliers, over the root mean square of the truth; NaN if any is NaN."""
    difference = (result.double() - truth).abs().flatten()
    if difference.isnan().any():
        return float("nan")
    outliers = difference.numel() // _ELEMENTS_PER_OUTLIER
    largest = difference.topk(outliers + 1).values[-1]
    return float(largest / truth.square().mean().sqrt())
