"""How sharply the loss bends at an image: the Hessian's dominant eigenvalue (paper, Section 5.4 and Figure 4f)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import ops
from .._support.arithmetic import float32_arithmetic
from .._support.batch_check import BatchCheck
from .._support.checks import check_choice, check_int, check_positive
from .._support.model_state import check_model, frozen_parameters, model_mode, unwrap
from ..losses import cross_entropy
from ..noise import NoiseStream
from . import _figures
from ._eigenvalues import Dominant, Product, lanczos, power_iteration
from .result import AnalysisResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Solver = Literal["lanczos", "power"]
Reduction = Literal["example", "batch_mean"]

_SOLVERS = {"lanczos": lanczos, "power": power_iteration}


@dataclass(frozen=True, eq=False)
class Curvature(AnalysisResult):
    """Of each of N images, the eigenvalue of largest magnitude of the loss's Hessian in the image."""

    eigenvalues: Tensor
    """``[N]``, float64, with their sign, in nats per squared unit of the images."""
    residuals: Tensor
    """``[N]``, float64: the norm of H v - eigenvalue v for the unit vector v found; H has an eigenvalue that near."""
    iterations: Tensor
    """``[N]``, int64: Hessian-vector products taken."""
    converged: Tensor
    """``[N]``, bool: whether the residual came below tolerance times the eigenvalue's magnitude."""
    solver: Solver
    """This and what follows: see :func:`hessian_curvature`."""
    reduction: Reduction
    batch_size: int
    tolerance: float

    @property
    def mean(self) -> float:
        """Over the images."""
        return float(self.eigenvalues.mean())

    @property
    def std(self) -> float:
        """The sample standard deviation over the images; 0 for one."""
        return float(self.eigenvalues.std()) if len(self.eigenvalues) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The fields, mean and standard deviation."""
        return {"mean": self.mean, "std": self.std, **super().to_dict()}

    def table(self) -> list[tuple[Any, ...]]:
        """image, eigenvalue, residual, iterations, converged."""
        columns = (self.eigenvalues, self.residuals, self.iterations, self.converged)
        rows = zip(range(len(self.eigenvalues)), *(column.tolist() for column in columns))
        return [("image", "eigenvalue", "residual", "iterations", "converged"), *rows]

    def draw(self, figure: Figure) -> None:
        """The share of images whose eigenvalue exceeds what the axis says, in magnitude."""
        axes = figure.subplots()
        ordered = self.eigenvalues.abs().sort().values
        count = len(ordered)
        above = torch.arange(count - 1, -1, -1) / count
        axes.step(ordered.numpy(), 100 * above.numpy(), where="post", color=_figures.COLORS[0])
        axes.axvline(abs(self.mean), color=_figures.COLORS[1], linestyle="--")
        axes.annotate(
            f"mean {self.mean:.3g}", (abs(self.mean), 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0),
            textcoords="offset points", va="top", color=_figures.COLORS[1], fontsize=7,
        )  # fmt: skip
        if bool((ordered > 0).any()):
            axes.set_xscale("log")
        scaled = "" if self.reduction == "example" else f", over {self.batch_size}"
        axes.set(
            xlabel=f"|dominant eigenvalue| (nats per squared intensity{scaled})", ylabel="images with a larger one (%)",
            ylim=(0, 100),
        )  # fmt: skip


def hessian_curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    solver: Solver = "lanczos",
    iterations: int = 100,
    tolerance: float = 1e-3,
    reduction: Reduction = "example",
    batch_size: int = 100,
    seed: int = 0,
) -> Curvature:
    """The dominant eigenvalue of the Hessian, in the image, of the cross entropy of each image.

    Dominant means of largest magnitude, and it keeps its sign. Products of the Hessian and a vector come from a second
    backward pass through the model itself. Where that is piecewise linear (ReLU, max pooling) they are of the
    generalised Gauss-Newton matrix, whose rank is below the number of classes and which has no negative eigenvalue.

    The paper reports 1.83 +- 6.37 for standard training and 0.024 +- 0.048 for AT-PGD, over 1,000 test images of
    CIFAR-10, and does not say how the loss is scaled. The Hessian in an image of the mean loss of a batch of B is 1 / B
    of that of the image's own loss. A script of one of the authors (cal_hessian.py in the history of
    github.com/thudzj/ADT) differentiates the mean loss of 100 images: ``reduction="batch_mean"``. Hold ratios between
    models against the paper's rather than numbers.

    Args:
        model: images ``[B, C, H, W]`` in [0, 1] -> logits; it normalises inside. It runs in eval mode, in the images'
            precision, and is left as it was. Its operations must be differentiable twice, and treat images apart.
        images: ``[N, C, H, W]``, float32 or float64, in [0, 1], on the model's device.
        labels: int64 ``[N]``.
        solver: ``"lanczos"``, or ``"power"``, power iteration: a slow one, to check the other with.
        iterations: Hessian-vector products for each image at most, >= 1.
        tolerance: an image is done when its residual is below this times its eigenvalue, > 0. The error of the
            eigenvalue is at most the residual, but for rounding: on the digits no eigenvalue in float32 differed from
            that in float64 by more than 1e-5 of itself.
        reduction: ``"example"``, of the image's own loss; or ``"batch_mean"``, that divided by ``batch_size``.
        batch_size: images at once, >= 1.
        seed: of the random start, in [0, 2**63).

    Raises:
        TypeError, ValueError: for a bad argument, by name.
        RuntimeError: if the model cannot be differentiated twice, or its logits do not depend on the images.
        FloatingPointError: if a derivative is NaN or infinite.
    """
    check_model(model)
    check_choice("solver", solver, get_args(Solver))
    check_int("iterations", iterations, 1, 2**31)
    check_positive("tolerance", tolerance)
    check_choice("reduction", reduction, get_args(Reduction))
    check_int("batch_size", batch_size, 1, 2**31)
    check_int("seed", seed, 0, 2**63)
    check_batch = BatchCheck(model)
    check_batch(images, labels)

    noise = NoiseStream(seed, images.device)
    found = []
    parts = list(zip(images.split(batch_size), labels.split(batch_size)))
    for first, (x, y) in zip(range(0, len(images), batch_size), tqdm(parts, "curvature", leave=False, disable=None)):
        start = ops.normal(x, noise.state, first_example=first)[0].flatten(1)
        with _hessian_products(model, x, y) as product:
            found.append(_SOLVERS[solver](product, start, iterations=iterations, tolerance=tolerance))
    together = Dominant(*map(torch.cat, zip(*found)))
    scale = 1.0 if reduction == "example" else 1.0 / batch_size
    return Curvature(
        eigenvalues=together.eigenvalues * scale,
        residuals=together.residuals * scale,
        iterations=together.iterations,
        converged=together.converged,
        solver=solver,
        reduction=reduction,
        batch_size=batch_size,
        tolerance=float(tolerance),
    )


@contextmanager
def _hessian_products(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Product]:
    """v ``[B, D]`` -> H v: the gradient's graph is made once, and gone through for every v.

    Images do not see one another in eval mode, so the Hessian of the sum of the losses is that of each, side by side.
    """
    model, device = unwrap(model), images.device
    with model_mode(model, "eval"), frozen_parameters(model), float32_arithmetic(device):
        with torch.inference_mode(False), torch.enable_grad():
            x = images.detach().clone().requires_grad_()
            losses = cross_entropy(model(x), labels)
            if not losses.requires_grad:
                raise RuntimeError("the loss does not depend on the model's input: is part of the model detached?")
            (grad,) = torch.autograd.grad(losses.sum(), x, create_graph=True)

        def product(vectors: Tensor) -> Tensor:
            (result,) = torch.autograd.grad(grad, x, vectors.view_as(x), retain_graph=True)
            if not bool(torch.isfinite(result).all()):
                raise FloatingPointError("the loss has a second derivative that is NaN or infinite; check the model's "
                                         "weights")
            return result.flatten(1)

        yield product
