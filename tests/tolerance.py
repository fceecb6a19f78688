"""The tolerance policy: what it takes for a result to count as right.

A kernel is measured against the truth (NumPy, extended precision) and beside plain PyTorch (the eager formula in the
kernel's precision, from the same inputs). Its error, in the largest-element norm and in the 2-norm, may be at most
twice the error of plain PyTorch. Where plain PyTorch happens to be almost exact, a few units in the last place of
the numbers that were added up are granted instead: nobody can do better than round.
"""

from __future__ import annotations

import numpy as np
import torch

FACTOR = 2.0
# float64 is there to check gradients: it need not add up in the best order, only in float64 throughout.
FLOOR_ULPS = {torch.float32: 3.0, torch.float64: 16.0}

# Of the elements of a case, how many (but always one) may be left out because rounding alone decides them: whether
# they are clamped, or which sign they have.
MAX_UNDECIDED = 0.002


def as_real(tensor: torch.Tensor) -> np.ndarray:
    """The exact values of a tensor of any floating dtype, in extended precision."""
    return tensor.detach().cpu().double().numpy().astype(np.longdouble)


def ulp(dtype: torch.dtype) -> float:
    """A unit in the last place, relative."""
    return torch.finfo(dtype).eps


def assert_as_accurate_as_plain(
    name: str,
    actual: torch.Tensor,
    plain: torch.Tensor,
    truth: np.ndarray,
    compute_dtype: torch.dtype,
    magnitude: np.ndarray | None = None,
    undecided: np.ndarray | None = None,
) -> None:
    """Raises AssertionError unless ``actual`` is right by the policy above.

    Args:
        magnitude: of the numbers added up on the way to each element; by default the elements themselves.
        undecided: elements to leave out; there may be few.
    """
    magnitude = np.abs(truth) if magnitude is None else np.broadcast_to(magnitude, truth.shape)
    assert actual.shape == plain.shape == truth.shape, (name, actual.shape, plain.shape, truth.shape)
    actual_values, plain_values = as_real(actual), as_real(plain)
    assert np.isfinite(truth).all() and np.isfinite(actual_values).all(), f"{name} is not finite"
    actual_error, plain_error = np.abs(actual_values - truth), np.abs(plain_values - truth)
    plain_error = np.where(np.isfinite(plain_error), plain_error, 0)  # overflow in plain PyTorch excuses nothing
    if undecided is not None:
        assert undecided.sum() <= max(1, MAX_UNDECIDED * undecided.size), (
            f"{name}: {undecided.sum()} of {undecided.size}"
        )
        actual_error, plain_error = np.where(undecided, 0, actual_error), np.where(undecided, 0, plain_error)
    floor = FLOOR_ULPS[compute_dtype] * ulp(compute_dtype)
    for norm in (_largest, _root_sum_square):
        allowed = FACTOR * norm(plain_error) + floor * norm(magnitude)
        assert norm(actual_error) <= allowed, (
            f"{name}: error {norm(actual_error):.3g} ({norm.__name__[1:]}), plain PyTorch's {norm(plain_error):.3g}, "
            f"allowed {allowed:.3g}; worst at {np.unravel_index(actual_error.argmax(), truth.shape)}"
        )


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0))


def _root_sum_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).sum()))
