"""The dominant eigenvalue of many symmetric matrices at once, of which only products with vectors are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Vectors ``[N, D]`` -> matrix n times vector n, ``[N, D]``."""


class Dominant(NamedTuple):
    """Of each of N matrices; float64, on the CPU."""

    eigenvalues: Tensor
    """``[N]``: the eigenvalue of largest magnitude, with its sign."""
    residuals: Tensor
    """``[N]``: the norm of A v - eigenvalue v for the unit vector v found. An eigenvalue of A is that near."""
    iterations: Tensor
    """``[N]``, int64: products until it converged, or all of them."""
    converged: Tensor
    """``[N]``, bool: whether the residual came below tolerance times the eigenvalue's magnitude."""


def lanczos(product: Product, start: Tensor, *, iterations: int, tolerance: float) -> Dominant:
    """Lanczos with full reorthogonalisation, until the residuals are small.

    A matrix has converged when the residual of its dominant Ritz value is at most tolerance times that value, and the
    other end of the spectrum is known well enough not to be the dominant one after all.

    Args:
        product: of symmetric matrices.
        start: random vectors ``[N, D]``, not 0.
        iterations: at most this many products, >= 1; after D of them everything is known.
        tolerance: > 0.
    """
    count, size = start.shape
    iterations = min(iterations, size)
    basis = start.new_zeros(count, iterations, size)
    projected = torch.zeros(count, iterations, iterations, dtype=torch.float64)  # tridiagonal: A in the basis
    found = _Found(count, tolerance)
    vector = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    for step in range(iterations):
        basis[:, step] = vector
        image = product(vector)
        projected[:, step, step] = (image * vector).sum(1).double().cpu()
        known = basis[:, : step + 1]
        for _ in range(2):  # once leaves rounding errors that grow into copies of eigenvalues; twice is enough
            image = image - torch.einsum("nkd,nk->nd", known, torch.einsum("nkd,nd->nk", known, image))
        norm = torch.linalg.vector_norm(image, dim=1)
        found.note(step + 1, *_ritz(projected[:, : step + 1, : step + 1], norm.double().cpu(), tolerance))
        if found.is_complete:
            break
        if step + 1 < iterations:
            projected[:, step, step + 1] = projected[:, step + 1, step] = norm.double().cpu()
            vector = image / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None]
    return found.result()


def power_iteration(product: Product, start: Tensor, *, iterations: int, tolerance: float) -> Dominant:
    """v <- A v / \\|A v\\|; arguments as for :func:`lanczos`.

    It is slow where eigenvalues are close in magnitude, and does not converge where two are equal but for the sign.
    """
    found = _Found(len(start), tolerance)
    vector = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    for step in range(iterations):
        image = product(vector)
        value = (image * vector).sum(1)
        residual = torch.linalg.vector_norm(image - value[:, None] * vector, dim=1)
        value, residual = value.double().cpu(), residual.double().cpu()
        found.note(step + 1, value, residual, residual <= tolerance * value.abs())
        if found.is_complete:
            break
        norm = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        vector = image / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return found.result()


class _Found:
    """The latest values, those of a matrix until it has converged."""

    def __init__(self, count: int, tolerance: float) -> None:
        self._tolerance = tolerance
        self._values, self._residuals = torch.zeros(2, count, dtype=torch.float64)
        self._iterations = torch.zeros(count, dtype=torch.int64)
        self._converged = torch.zeros(count, dtype=torch.bool)

    @property
    def is_complete(self) -> bool:
        return bool(self._converged.all())

    def note(self, iteration: int, values: Tensor, residuals: Tensor, is_decided: Tensor) -> None:
        open_ = ~self._converged
        self._values[open_], self._residuals[open_] = values[open_], residuals[open_]
        self._iterations[open_] = iteration
        self._converged |= is_decided & (residuals <= self._tolerance * values.abs())

    def result(self) -> Dominant:
        return Dominant(self._values, self._residuals, self._iterations, self._converged)


def _ritz(projected: Tensor, norm: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """The Ritz value of largest magnitude, its residual, and whether the other end is known well enough: [N] each.

    The residual of the Ritz value theta with the eigenvector s of the projected matrix is norm * |last element of s|.
    The other end is known when it has converged too, or is too small by more than its residual; a single Ritz value
    tells nothing of another end, unless nothing is left outside the basis.
    """
    values, vectors = torch.linalg.eigh(projected)  # ascending
    ends, residuals = values[:, [0, -1]], norm[:, None] * vectors[:, -1, [0, -1]].abs()
    chosen = ends.abs().argmax(1, keepdim=True)
    value, residual = (of_ends.gather(1, chosen).squeeze(1) for of_ends in (ends, residuals))
    other, its_residual = (of_ends.gather(1, 1 - chosen).squeeze(1).abs() for of_ends in (ends, residuals))
    is_known = (other + its_residual <= value.abs()) | (its_residual <= tolerance * other)
    return value, residual, (is_known & (values.shape[1] > 1)) | (norm == 0)
