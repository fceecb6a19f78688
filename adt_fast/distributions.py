"""TanhNormal: the adversarial distribution of ADT as a ``torch.distributions.Distribution``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from . import ops
from .noise import NoiseStream, seeded_by_torch
from .reference import log_tanh_derivative

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class TanhNormal(Distribution):
    """delta = epsilon * tanh(u), u ~ N(loc, scale^2), element by element (paper, Eq. 9).

    Like ``torch.distributions.Normal`` it is a batch of independent one-dimensional distributions: ``log_prob`` and
    ``entropy`` are per element; sum them over an image's elements for Eq. 11, or wrap the distribution in
    ``torch.distributions.Independent``.

    Args:
        loc: mu, any shape, float32 or float64.
        scale: sigma > 0, of any shape that can be broadcast against loc's.
        epsilon: radius of the support [-epsilon, epsilon], > 0.
        noise: where samples come from; if None, a stream seeded from torch's default generator at the first sample,
            or where the distribution is expanded before.
        validate_args: as in ``torch.distributions.Distribution``.

    Raises:
        TypeError: if loc is neither float32 nor float64.
        ValueError: if epsilon is not > 0, or (when validating) scale is not > 0.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = True

    def __init__(
        self,
        loc: torch.Tensor | float,
        scale: torch.Tensor | float,
        epsilon: float,
        noise: NoiseStream | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        if self.loc.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"loc must be float32 or float64, got {self.loc.dtype}")
        if not (isinstance(epsilon, (int, float)) and math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon must be a finite number > 0, got {epsilon!r}")
        self.epsilon = float(epsilon)
        self._noise = noise
        super().__init__(self.loc.shape, validate_args=validate_args)

    @classmethod
    def from_rho(
        cls, mu: torch.Tensor, rho: torch.Tensor, epsilon: float, noise: NoiseStream | None = None
    ) -> TanhNormal:
        """The distribution that the operators mean by (mu, rho): scale = softplus(rho).

        Args:
            mu, rho: of any shape, like loc and scale.
            epsilon, noise: as for the constructor.
        """
        return cls(mu, torch.nn.functional.softplus(rho), epsilon, noise)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(-self.epsilon, self.epsilon)

    @property
    def noise(self) -> NoiseStream:
        """The stream that samples come from; every sample advances it."""
        if self._noise is None:
            self._noise = seeded_by_torch(self.loc.device)
        return self._noise

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: TanhNormal | None = None
    ) -> TanhNormal:
        """A view of the distribution with a larger ``batch_shape``, on the same stream."""
        return TanhNormal(
            self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.epsilon, self.noise, validate_args=False
        )

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> torch.Tensor:
        """Samples ``[*sample_shape, *batch_shape]``, differentiable in loc and scale (Eq. 10)."""
        samples = math.prod(sample_shape)
        like = self.loc.detach().reshape(1, -1) if self.loc.dim() == 0 else self.loc.detach()
        if samples == 0 or like.numel() == 0:
            return self.loc.new_empty(self._extended_shape(sample_shape))
        r = ops.normal(like, self.noise.state, samples=samples).reshape(self._extended_shape(sample_shape))
        self.noise.advance()
        return self.epsilon * torch.tanh(self.loc + self.scale * r)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p(delta) of each element of a ``value`` ``[*sample_shape, *batch_shape]``; -inf at the support's ends.

        It works from delta alone, so it is only as exact as delta / epsilon is near +-1. The operators' density
        (``tanh_gaussian_sample``) knows u and has no such limit.
        """
        if self._validate_args:
            self._validate_sample(value)
        ratio = value / self.epsilon
        u = torch.atanh(ratio)
        standard = (u - self.loc) / self.scale
        # log(1 - tanh(u)^2), from the ratio: both factors are exact near the ends.
        log_derivative = torch.log1p(-ratio) + torch.log1p(ratio)
        log_p = -0.5 * standard.square() - _LOG_SQRT_2PI - self.scale.log() - log_derivative - math.log(self.epsilon)
        return torch.where(ratio.abs() < 1, log_p, -math.inf)

    @property
    def mean(self) -> torch.Tensor:
        """E[delta] of each element, to about 1e-7 epsilon, differentiable in loc and scale; it has no closed form."""
        return self.epsilon * self._mean_of_tanh()

    @property
    def variance(self) -> torch.Tensor:
        """Var[delta] of each element, to about 1e-7 epsilon^2, differentiable in loc and scale."""
        mean = self._mean_of_tanh()
        narrow = self._over_normal(lambda u: (torch.tanh(u) - mean).square())
        derivative = self._over_derivative(lambda z, scale: _normal_density(z) / scale)  # E[tanh'(u)]
        wide = (1.0 - derivative - mean.square()).clamp(min=0.0)  # below by rounding alone
        return self.epsilon**2 * torch.where(self._is_narrow, narrow, wide)

    def entropy(self) -> torch.Tensor:
        """H = E[-log p] of each element, to about 1e-6 (1 + scale), differentiable in loc and a finite scale.

        H = 1/2 + log(2 pi)/2 + log sigma + log epsilon + E[log(1 - tanh(u)^2)]. The expectation has no closed form.
        """
        # E|u - v| of the normal, in units of sigma: log cosh(u) + log 2 is half its integral over tanh'(v).
        wide = self._over_derivative(lambda z, scale: scale * (2.0 * _normal_density(z) + z * _probability_within(z)))
        narrow = self._over_normal(log_tanh_derivative)
        expectation = torch.where(self._is_narrow, narrow, 2.0 * math.log(2.0) - wide)
        return 0.5 + _LOG_SQRT_2PI + self.scale.log() + math.log(self.epsilon) + expectation

    def _mean_of_tanh(self) -> torch.Tensor:
        # By parts: tanh(u) is half the integral of sign(u - v) over tanh'(v).
        wide = self._over_derivative(lambda z, scale: 0.5 * _probability_within(z))
        return torch.where(self._is_narrow, self._over_normal(torch.tanh), wide)

    @property
    def _is_narrow(self) -> torch.Tensor:
        """Where the normal is narrower than tanh' is wide; each of the two has its own rule, of a fixed cost."""
        return self.scale <= 1.0

    def _over_normal(self, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """E[function(u)] of each element that is narrow, by the trapezoidal rule over the normal.

        tanh and log(1 - tanh^2) = -2 log cosh are analytic within pi/2 of the real axis, so it converges exponentially:
        its error is of the order of exp(-pi^2 / (step * sigma)), below 1e-16.
        """
        scale = self.scale.clamp(max=1.0)  # elsewhere the result is not used, and its gradient is to be finite
        expectation = torch.zeros_like(self.loc)
        for r in _nodes(reach=8.5, step=0.25):  # the normal beyond it weighs less than 2e-17
            weight = 0.25 * math.exp(-0.5 * r**2) / math.sqrt(2.0 * math.pi)
            expectation = expectation + weight * function(self.loc + scale * r)
        return expectation

    def _over_derivative(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The integral of tanh'(v) function(z, sigma), z = (mu - v) / sigma, of each element that is not narrow, by the
        trapezoidal rule over v.

        tanh'(v) = 1 / cosh(v)^2 has its poles pi/2 from the real axis, and functions of z are smooth where sigma is
        large: the error is of the order of exp(-pi^2 / step), below 1e-13.
        """
        scale = self.scale.clamp(min=1.0)
        integral = torch.zeros_like(self.loc)
        for v in _nodes(reach=19.0, step=0.3):  # tanh' beyond it weighs less than 1e-16
            integral = integral + 0.3 / math.cosh(v) ** 2 * function((self.loc - v) / scale, scale)
        return integral


def _nodes(reach: float, step: float) -> list[float]:
    """Of a trapezoidal rule from -reach to reach."""
    count = math.ceil(reach / step)
    return [i * step for i in range(-count, count + 1)]


def _normal_density(z: torch.Tensor) -> torch.Tensor:
    return torch.exp(-0.5 * z.square() - _LOG_SQRT_2PI)


def _probability_within(z: torch.Tensor) -> torch.Tensor:
    """Of a normal number to be between -z and z, with the sign of z."""
    return torch.erf(z * math.sqrt(0.5))
