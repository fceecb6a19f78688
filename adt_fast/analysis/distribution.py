"""What the explicit distributions of ADT look like, beside the one point of PGD (paper, Section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import ops
from .._support.arithmetic import float32_arithmetic
from .._support.batch_check import BatchCheck
from .._support.checks import check_int
from .._support.checks import shown as as_shown
from .._support.model_state import model_mode
from ..attacks import EXP, EXPAM, PGD
from ..attacks._ball import confine
from ..distributions import TanhNormal
from ..noise import NoiseStream
from ._distribution_figure import draw_distributions
from .entropy import explicit_distribution
from .result import AnalysisResult, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PGD_STEPS = 20


@dataclass(frozen=True, eq=False)
class DistributionPicture(AnalysisResult):
    """The distributions of delta = epsilon tanh(u), u ~ N(mu, sigma^2), for N images, and what a model makes of them.

    Tensors are on the CPU, float64 but for classes, which are int64.
    """

    attack: str
    """What gave the distributions, ``"EXP"`` or ``"EXPAM"``."""
    images: Tensor
    """``[N, C, H, W]``, in the data bounds."""
    labels: Tensor
    """``[N]``: their classes."""
    mu: Tensor
    """``[N, C, H, W]``."""
    sigma: Tensor
    """``[N, C, H, W]``, > 0."""
    mean: Tensor
    """``[N, C, H, W]``: of delta, in the images' units. It is that of delta itself, before x + delta is clamped."""
    std: Tensor
    """``[N, C, H, W]``: the standard deviation of delta, in the images' units, likewise."""
    entropies: Tensor
    """``[N]``: the mean over the elements of delta, in nats."""
    examples: Tensor
    """``[N, n, C, H, W]``: the first n samples of x + delta, in the ball and the data bounds."""
    example_classes: Tensor
    """``[N, n]``: what the model takes them for."""
    misclassified: Tensor
    """``[N]``: the share of all samples that the model gets wrong, from 0 to 1."""
    sample_probabilities: Tensor
    """``[N]``: the mean over the samples of the probability that the model gives the true class."""
    natural_classes: Tensor
    """``[N]``: what the model takes the images for."""
    natural_probabilities: Tensor
    """``[N]``: that it gives their true classes."""
    pgd: Tensor
    """``[N, C, H, W]``: the one perturbation that PGD-20 finds, in the images' units."""
    pgd_classes: Tensor
    """``[N]``: what the model takes x + that for."""
    pgd_probabilities: Tensor
    """``[N]``: that it gives the true class there."""
    samples: int
    """Samples of each distribution that the model was tried on."""
    epsilon: float
    """Radius of the L-infinity ball, in the images' units."""
    class_names: tuple[str, ...] | None
    """By number; None where they are not known."""

    @property
    def highest_entropy(self) -> float:
        """Nats per element: of the uniform distribution in the ball, log(2 epsilon), which no other exceeds."""
        return math.log(2 * self.epsilon)

    def class_name(self, label: int) -> str:
        """What class ``label`` is called, or ``"class 3"`` where that is not known."""
        return f"class {label}" if self.class_names is None else self.class_names[label]

    def to_dict(self) -> dict[str, Any]:
        """The fields without those that have a number for each pixel, and :attr:`highest_entropy`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        by_image = {name: plain(value) for name, value in values.items() if not _has_pixels(value)}
        return {**by_image, "highest_entropy": self.highest_entropy}

    def table(self) -> list[tuple[Any, ...]]:
        """image, channel, row, column, and of that element x, mu, sigma, mean, std, pgd, in float32's 7 digits."""
        maps = torch.stack([self.images, self.mu, self.sigma, self.mean, self.std, self.pgd], -1)
        places = torch.cartesian_prod(*[torch.arange(size) for size in self.images.shape]).tolist()
        rows = [
            (*place, *(float(f"{value:.7g}") for value in values))
            for place, values in zip(places, maps.flatten(0, 3).tolist())
        ]
        return [("image", "channel", "row", "column", "x", "mu", "sigma", "mean", "std", "pgd"), *rows]

    def draw(self, figure: Figure) -> None:
        """A band for each image: it, samples and their perturbations, mean and standard deviation, PGD's point."""
        draw_distributions(figure, self)


def learned_distribution(
    attack: EXP | EXPAM,
    images: Tensor,
    labels: Tensor,
    *,
    samples: int = 1000,
    shown: int = 3,
    class_names: Sequence[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> DistributionPicture:
    """The distributions of delta that an attack finds for a few images: not one point, but a region with a mean and a
    spread.

    Mean, standard deviation and entropy are computed by quadrature, see :class:`adt_fast.distributions.TanhNormal`:
    unlike Monte Carlo estimates, they have no error that would show as grain in a picture. What the model makes of the
    distribution is counted over samples. Samples, images and PGD's points are classified in eval mode, in float32, and
    the model is left as it was.

    Args:
        attack: an :class:`adt_fast.attacks.EXP`, or :class:`adt_fast.attacks.EXPAM` with a trained generator; its
            target must be ``"none"``. Its noise, of which EXP finds the distribution, is its own: give it one for
            results that can be had again.
        images: ``[N, C, H, W]``, float32 or float64, in the attack's data bounds, on the model's device.
        labels: int64 ``[N]``.
        samples: of each distribution, on which the model is tried, >= 1.
        shown: how many of these the figure shows, from 1 to samples.
        class_names: by number, as many as the model has classes. Default: classes are told by number.
        batch_size: samples that go through the model at once, >= 1; an image of each distribution is the least.
        seed: of the samples, and of PGD's random start, in [0, 2**63).

    Raises:
        TypeError, ValueError: for a bad argument, by name.
        FloatingPointError: if a gradient is not finite.
    """
    if not isinstance(attack, (EXP, EXPAM)):
        raise TypeError(f"attack must be an EXP or an EXPAM, got {type(attack).__name__}")
    if attack.target != "none":
        raise ValueError(f"attack must have the target 'none', for labels are the true classes, got {attack.target!r}")
    check_int("samples", samples, 1, 2**24)
    check_int("shown", shown, 1, samples + 1)
    check_int("batch_size", batch_size, 1, 2**31)
    check_int("seed", seed, 0, 2**63)
    BatchCheck(attack.model, attack.lower, attack.upper)(images, labels)
    natural = _probabilities(attack.model, images)
    names = _checked_names(class_names, natural.shape[1])

    mu, rho = explicit_distribution(attack, images, labels)
    noise = NoiseStream(seed, images.device)
    pgd = PGD(
        attack.model, attack.epsilon, steps=PGD_STEPS, lower=attack.lower, upper=attack.upper, noise=noise
    )(images, labels)  # fmt: skip
    of_pgd = _probabilities(attack.model, pgd)
    examples, of_samples = _try_samples(attack, images, mu, rho, noise, samples, shown, batch_size)

    true = labels.view(1, -1, 1)
    found = of_samples.argmax(2)  # [samples, N]
    distribution = TanhNormal.from_rho(mu.double(), rho.double(), attack.epsilon)
    return DistributionPicture(
        attack=type(attack).__name__,
        images=_exact(images),
        labels=labels.cpu(),
        mu=_exact(distribution.loc),
        sigma=_exact(distribution.scale),
        mean=_exact(distribution.mean),
        std=_exact(distribution.stddev),
        entropies=_exact(distribution.entropy().flatten(1).mean(1)),
        examples=_exact(examples),
        example_classes=found[:shown].T.contiguous().cpu(),
        misclassified=_exact((found != labels).double().mean(0)),
        sample_probabilities=_exact(of_samples.gather(2, true.expand(samples, -1, 1))[..., 0].mean(0)),
        natural_classes=natural.argmax(1).cpu(),
        natural_probabilities=_exact(natural.gather(1, true[0])[:, 0]),
        pgd=_exact(pgd) - _exact(images),
        pgd_classes=of_pgd.argmax(1).cpu(),
        pgd_probabilities=_exact(of_pgd.gather(1, true[0])[:, 0]),
        samples=samples,
        epsilon=attack.epsilon,
        class_names=names,
    )


def _checked_names(names: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"class_names must be a list of str or None, got {as_shown(names)}")
    if len(names) != classes:
        raise ValueError(f"class_names must be {classes}, one for each class of the model, got {len(names)}")
    return tuple(names)


@torch.no_grad()
def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Of each class, ``[B, num_classes]``, float64."""
    with model_mode(model, "eval"), float32_arithmetic(images.device):
        return model(images).double().softmax(1)


def _try_samples(
    attack: EXP | EXPAM, images: Tensor, mu: Tensor, rho: Tensor, noise: NoiseStream, samples: int, shown: int,
    batch_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first samples ``[N, shown, C, H, W]``, and the probabilities of each class for all, ``[samples, N,
    num_classes]``."""
    kept: list[Tensor] = []
    probabilities = []
    for x_adv in _samples(attack, images, mu, rho, noise, samples, max(1, batch_size // len(images))):
        kept += x_adv[: shown - len(kept)]
        probabilities.append(_probabilities(attack.model, x_adv.flatten(0, 1)).view(*x_adv.shape[:2], -1))
    return torch.stack(kept, 1), torch.cat(probabilities)


@torch.no_grad()
def _samples(
    attack: EXP | EXPAM, images: Tensor, mu: Tensor, rho: Tensor, noise: NoiseStream, samples: int, at_once: int
) -> Iterator[Tensor]:
    """Adversarial images ``[n, N, C, H, W]``, n at most ``at_once``: the same samples whatever that is."""
    x = images.contiguous()
    for first in range(0, samples, at_once):
        drawn = [
            ops.tanh_gaussian_sample(x, mu, rho, noise.state, draw=draw, density=False, **attack.ball)[0]
            for draw in range(first, min(first + at_once, samples))
        ]
        yield confine(torch.cat(drawn), x, norm=attack.norm, **attack.ball)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu().contiguous()


def _has_pixels(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 4
