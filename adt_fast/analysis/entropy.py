"""How wide the distributions are that an attack learns: their entropy (paper, Eq. 11 and Section 5.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from .._support.checks import check_int
from .._support.model_state import model_mode
from ..attacks import EXP, EXPAM
from ..evaluation.batches import Batches
from ..noise import NoiseStream
from . import _figures
from ._batches import shown_batches
from .result import AnalysisResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Entropy(AnalysisResult):
    """Monte Carlo estimates of H(p) = E[-log p(delta)], of the distributions for N images."""

    per_image: Tensor
    """``[N]``, float64, in nats: a sum over the elements of the image."""
    standard_errors: Tensor
    """``[N]``, float64: of each estimate, over its Monte Carlo samples."""
    elements: int
    """C * H * W."""
    samples: int
    """Monte Carlo samples of each distribution."""
    epsilon: float
    """Radius of the L-infinity ball, in the images' units."""

    @property
    def mean_per_image(self) -> float:
        """Nats, over the images."""
        return float(self.per_image.mean())

    @property
    def mean_per_element(self) -> float:
        """Nats."""
        return self.mean_per_image / self.elements

    @property
    def standard_error_per_element(self) -> float:
        """Of :attr:`mean_per_element`, by the Monte Carlo samples: how well the mean of these images is known."""
        return float(self.standard_errors.square().sum().sqrt()) / len(self.per_image) / self.elements

    @property
    def highest_per_element(self) -> float:
        """Nats: of the uniform distribution in the ball, log(2 epsilon), which no other exceeds."""
        return math.log(2 * self.epsilon)

    def to_dict(self) -> dict[str, Any]:
        """The means, and the fields."""
        names = ("mean_per_image", "mean_per_element", "standard_error_per_element", "highest_per_element")
        return {**{name: getattr(self, name) for name in names}, **super().to_dict()}

    def table(self) -> list[tuple[Any, ...]]:
        """image, entropy, standard error; in nats."""
        rows = zip(range(len(self.per_image)), self.per_image.tolist(), self.standard_errors.tolist())
        return [("image", "entropy", "standard_error"), *rows]

    def draw(self, figure: Figure) -> None:
        """A histogram of the images' entropy per element."""
        axes = figure.subplots()
        axes.hist((self.per_image / self.elements).numpy(), bins=30, color=_figures.COLORS[0])
        axes.axvline(self.mean_per_element, color=_figures.COLORS[1], linestyle="--", label="mean")
        axes.set(xlabel="entropy (nats per element)", ylabel="images")
        axes.legend()


def distribution_entropy(attack: EXP | EXPAM, data: Batches, *, samples: int = 100, seed: int = 0) -> Entropy:
    """The entropy of the distributions of delta that an attack gives for images.

    That of epsilon tanh(u), u ~ N(mu, sigma^2), has no closed form: it is the mean of -log p over samples (Eq. 11), of
    the density without the published code's offset, and of delta itself, whether or not x + delta is clamped later.

    Args:
        attack: an :class:`adt_fast.attacks.EXP`, or :class:`adt_fast.attacks.EXPAM` with a trained generator.
        data: an :class:`adt_fast.data.ImageData`, or batches (images, labels).
        samples: Monte Carlo samples of each distribution, >= 2.
        seed: of these samples, in [0, 2**63).

    Raises:
        TypeError, ValueError: for a bad argument, by name, or if there are no data.
        FloatingPointError: if a gradient is not finite.
    """
    if not isinstance(attack, (EXP, EXPAM)):
        raise TypeError(f"attack must be an EXP or an EXPAM, got {type(attack).__name__}")
    check_int("samples", samples, 2, 2**24)
    check_int("seed", seed, 0, 2**63)
    means, errors, elements = [], [], 0
    noise = None
    for images, labels in shown_batches(attack.model, data, "entropy"):
        noise = noise or NoiseStream(seed, images.device)
        mu, rho = explicit_distribution(attack, images, labels)
        values = sampled_neg_log_density(mu, rho, noise, samples=samples, epsilon=attack.epsilon)
        means.append(values.mean(0))
        errors.append(values.std(0) / math.sqrt(samples))
        elements = images[0].numel()
    return Entropy(torch.cat(means), torch.cat(errors), elements, samples, attack.epsilon)


@torch.no_grad()
def sampled_neg_log_density(mu: Tensor, rho: Tensor, noise: NoiseStream, *, samples: int, epsilon: float) -> Tensor:
    """-log p(delta) ``[samples, B]``, float64, on the CPU, of delta ~ p; advances the noise.

    Args:
        mu, rho: ``[B, C, H, W]``, float32 or float64; sigma = softplus(rho).
    """
    values = []
    image = torch.zeros_like(mu)  # the density of delta does not depend on it
    for draw in range(samples):  # one at a time: all samples of a batch of images may not fit in memory
        _, neg_log_density = ops.tanh_gaussian_sample(
            image, mu, rho, noise.state, epsilon=epsilon, lower=-math.inf, upper=math.inf, draw=draw
        )
        assert neg_log_density is not None  # asked for, by default
        values.append(neg_log_density[0].double().cpu())
    noise.advance(samples)
    return torch.stack(values)


@torch.no_grad()
def explicit_distribution(attack: EXP | EXPAM, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(mu, rho) of each image's distribution of delta, ``[B, C, H, W]`` each, contiguous."""
    if isinstance(attack, EXP):
        found = attack.maximize(images, labels)
        mu, rho = found.mu, found.rho
    else:
        with model_mode(attack.generator, "eval"):
            mu, rho = attack.generator(attack.generator_inputs(images, labels)).to(images.dtype).chunk(2, 1)
    return mu.contiguous(), rho.contiguous()
