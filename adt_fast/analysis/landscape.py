"""The loss around an image, along the gradient and a random direction (paper, Section 5.4 and Figure 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from .. import ops
from .._support.batch_check import BatchCheck
from .._support.checks import check_ball, check_choice, check_int, check_positive, shown
from ..input_gradient import GradientSession, InputGradient
from ..noise import NoiseStream
from . import _figures
from .result import AnalysisResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Direction = Literal["sign", "gradient"]

_RADIUS_IN_EPSILONS = 10.0


@dataclass(frozen=True, eq=False)
class Landscape(AnalysisResult):
    """Cross entropy at x + a d_g + b d_r, of N images x."""

    offsets: Tensor
    """a and b, ``[S]``, float64, in the images' units; the middle one is 0."""
    losses: Tensor
    """``[N, S, S]``, float64: of image i, at a = offsets[j] and b = offsets[k], is [i, j, k]."""
    labels: Tensor
    """``[N]``, int64: the class whose cross entropy it is."""
    cosines: Tensor
    """``[N]``, float64: of the angle between d_g and d_r, near 0."""
    direction: Direction
    """d_g is the ``"sign"`` of the gradient, or the ``"gradient"`` over its largest element."""
    epsilon: float
    """Where \\|a\\| + \\|b\\| <= epsilon, the point is in the ball of this radius around the image."""
    bounds: tuple[float, float] | None
    """What points were clamped to; None where they were not."""

    @property
    def at_image(self) -> Tensor:
        """The loss of each image itself, ``[N]``."""
        middle = len(self.offsets) // 2
        return self.losses[:, middle, middle]

    @property
    def highest_in_ball(self) -> Tensor:
        """The highest loss of each image's grid points with \\|a\\| + \\|b\\| <= epsilon, ``[N]``."""
        distance = self.offsets.abs()
        inside = distance[:, None] + distance[None, :] <= self.epsilon * (1 + 1e-9)  # the rim is in, rounded or not
        return self.losses[:, inside].amax(1)

    def table(self) -> list[tuple[Any, ...]]:
        """image, label, a, b, loss."""
        offsets = self.offsets.tolist()
        rows: list[tuple[Any, ...]] = [("image", "label", "a", "b", "loss")]
        for image, (label, grid) in enumerate(zip(self.labels.tolist(), self.losses.tolist())):
            rows += [(image, label, a, b, loss) for a, line in zip(offsets, grid) for b, loss in zip(offsets, line)]
        return rows

    def draw(self, figure: Figure) -> None:
        """A row for each image: the surface, and its contours with the rim of the ball."""
        count, points = len(self.losses), len(self.offsets)
        figure.set_size_inches(_figures.PAGE_WIDTH, 2.9 * count)
        grid = figure.add_gridspec(count, 2, width_ratios=(1.0, 1.1))
        d_g, d_r = (axis.numpy() for axis in torch.meshgrid(*[self.offsets / self.epsilon] * 2, indexing="ij"))
        for image, losses in enumerate(self.losses.numpy()):
            surface = figure.add_subplot(grid[image, 0], projection="3d")
            surface.plot_surface(d_g, d_r, losses, cmap=_figures.SEQUENTIAL, rcount=points, ccount=points, linewidth=0)
            surface.set(xlabel="along $d_g$ ($\\epsilon$)", ylabel="along $d_r$ ($\\epsilon$)")
            surface.set_zlabel("cross entropy (nats)")
            surface.view_init(elev=28, azim=-130)
            surface.set_box_aspect((1, 1, 0.8), zoom=0.84)  # labels stay inside the figure
            for axis in (surface.xaxis, surface.yaxis, surface.zaxis):
                axis.set_tick_params(pad=-1)
                axis.labelpad -= 3
                axis.pane.set_alpha(0.0)

            contour = figure.add_subplot(grid[image, 1])
            filled = contour.contourf(d_g, d_r, losses, levels=16, cmap=_figures.SEQUENTIAL)
            contour.plot([1, 0, -1, 0, 1], [0, 1, 0, -1, 0], color="white", linewidth=1.0)
            contour.plot(0, 0, "+", color="white")
            contour.locator_params(nbins=5)
            contour.set_title(f"class {int(self.labels[image])}" if count > 1 else "")
            contour.set(xlabel="along $d_g$ ($\\epsilon$)", ylabel="along $d_r$ ($\\epsilon$)", aspect="equal")
            figure.colorbar(filled, ax=contour, label="cross entropy (nats)", shrink=0.9)


@torch.no_grad()
def loss_landscape(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    radius: float | None = None,
    steps: int = 41,
    direction: Direction = "sign",
    bounds: tuple[float, float] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> Landscape:
    """The cross entropy of a few images over the plane x + a d_g + b d_r.

    d_g is the direction of the gradient of the image's cross entropy at x, of unit L-infinity norm; d_r has elements of
    1 and -1 with equal probability (Rademacher). The paper says no more of its Figure 4. The range and the gradient's
    sign are those of a script of one of the authors (plot_loss_surface.py in the history of github.com/thudzj/ADT),
    which besides draws d_r again until it is orthogonal to d_g, for one image at a time.

    Args:
        model: images ``[B, C, H, W]`` in [0, 1] -> logits; it normalises inside. It runs in eval mode, in float32, and
            is left as it was.
        images: ``[N, C, H, W]``, float32 or float64, in [0, 1], on the model's device.
        labels: int64 ``[N]``.
        epsilon: > 0, in the images' units: the radius of the ball that the figure shows, and its unit.
        radius: a and b go from -radius to radius, > 0, in the images' units. Default: 10 epsilon.
        steps: points along each direction, odd, so that the image is one of them, >= 3.
        direction: d_g is the ``"sign"`` of the gradient (default), the way that an L-infinity attack goes; or the
            ``"gradient"`` itself, divided by its largest element.
        bounds: (lower, upper) to clamp the points to. Default: none; it is the plane itself that is shown, as in the
            paper, though parts of it are no images.
        batch_size: points that go through the model at once, >= 1.
        seed: of d_r, in [0, 2**63).

    Raises:
        TypeError, ValueError: for a bad argument, by name, or an image whose gradient is 0 and has no direction.
        FloatingPointError: if a gradient or a loss is not finite.
    """
    if bounds is not None and not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        raise TypeError(f"bounds must be (lower, upper) or None, got {shown(bounds)}")
    try:
        check_ball(epsilon, *(bounds if bounds is not None else (0.0, 1.0)))
    except (TypeError, ValueError) as error:
        raise error if "epsilon" in str(error) else type(error)(f"bounds: {error}") from None
    radius = _RADIUS_IN_EPSILONS * epsilon if radius is None else radius
    check_positive("radius", radius)
    check_int("steps", steps, 3, 2**31)
    if steps % 2 == 0:
        raise ValueError(f"steps must be odd, so that the image itself is one of the points, got {steps}")
    check_choice("direction", direction, get_args(Direction))
    check_int("batch_size", batch_size, 1, 2**31)
    check_int("seed", seed, 0, 2**63)
    engine = InputGradient(model)
    BatchCheck(model)(images, labels)

    d_g = _unit_gradient(engine(images, labels).grad, direction)
    normal = ops.normal(images, NoiseStream(seed, images.device).state)[0]
    d_r = torch.where(normal < 0, -1.0, 1.0).to(images.dtype)
    half = steps // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float64) * (radius / half)

    def evaluate(session: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
        parts = (
            session.losses(points, label.expand(len(points)))
            for x, g, r, label in zip(images, d_g, d_r, labels)
            for points in _points(x, g, r, offsets, bounds, batch_size)
        )
        return (torch.cat(list(parts)),)

    (losses,) = engine.run(evaluate, images, labels)
    if not bool(torch.isfinite(losses).all()):
        raise FloatingPointError("the loss is NaN or infinite at a point of the plane; try a smaller radius")
    cosines = torch.cosine_similarity(d_g.flatten(1).double(), d_r.flatten(1).double())
    return Landscape(
        offsets=offsets,
        losses=losses.double().cpu().view(len(images), steps, steps),
        labels=labels.cpu(),
        cosines=cosines.cpu(),
        direction=direction,
        epsilon=float(epsilon),
        bounds=None if bounds is None else (float(bounds[0]), float(bounds[1])),
    )


def _unit_gradient(grad: Tensor, direction: Direction) -> Tensor:
    """``[N, C, H, W]``, each of L-infinity norm 1."""
    largest = grad.abs().amax((1, 2, 3), keepdim=True)
    if not bool((largest > 0).all()):
        image = int((largest.flatten() == 0).nonzero()[0])
        raise ValueError(f"images must each have a gradient, and that of image {image} is 0 everywhere: the model is "
                         "so sure of its class that the loss is flat there")
    return grad.sign() if direction == "sign" else grad / largest


def _points(
    x: Tensor, d_g: Tensor, d_r: Tensor, offsets: Tensor, bounds: tuple[float, float] | None, batch_size: int
) -> Iterator[Tensor]:
    """The points ``[n, C, H, W]`` of an image's plane, b running fastest, at most batch_size at once."""
    for pairs in torch.cartesian_prod(offsets, offsets).split(batch_size):  # [n, 2]
        a, b = pairs.to(x).T[..., None, None, None]
        points = x + a * d_g + b * d_r
        yield points if bounds is None else points.clamp(*bounds)
