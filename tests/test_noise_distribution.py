"""The noise is normal and independent; the tests that say so reject generators with planted flaws.

Normality is tested on the empirical distribution function over fine bins: Kolmogorov-Smirnov, most sensitive in the
middle, Anderson-Darling, which weighs the tails, and counts in the far tails. Box-Muller pairs are taken apart into
radius and angle, whose uniforms must fill a million bins. Independence is tested by correlations of r and of r^2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from adt_fast import NoiseStream, ops

# At the 0.1% level. The seeds are fixed, so a pass today is a pass tomorrow.
KS_CRITICAL = 1.9495  # of sqrt(n) D
AD_CRITICAL = 5.97  # of A^2, all parameters known (Marsaglia, 2004)
Z_CRITICAL = 5.0  # of a correlation, in standard errors; many are looked at


@dataclass
class Histogram:
    """Counts of normals in narrow bins over [-8, 8], from which both statistics follow for any n."""

    bins_per_unit: int = 2**14
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(16 * self.bins_per_unit, dtype=np.int64)

    def add(self, r: torch.Tensor) -> None:
        bins = r.flatten().double().add_(8).mul_(self.bins_per_unit).long()
        self.counts += torch.bincount(bins, minlength=len(self.counts)).cpu().numpy()

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def _edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At the inner edges: empirical and true distribution function, and the true upper tail."""
        edges = np.arange(1, len(self.counts)) / self.bins_per_unit - 8
        return np.cumsum(self.counts)[:-1] / self.n, ndtr(edges), ndtr(-edges)

    def kolmogorov_smirnov(self) -> float:
        """sqrt(n) D; the bins hide at most 2.5e-5 of D."""
        empirical, lower_tail, _ = self._edges()
        return math.sqrt(self.n) * float(np.abs(empirical - lower_tail).max())

    def anderson_darling(self) -> float:
        """n times the integral of (F_n - F)^2 / (F (1 - F)) dF, by the trapezoidal rule."""
        empirical, lower_tail, upper_tail = self._edges()
        integrand = (empirical - lower_tail) ** 2 / (lower_tail * upper_tail)
        return self.n * float(np.trapezoid(integrand, lower_tail))

    def far_tails(self) -> float:
        """The largest deviation of the counts beyond 3.5, 4, ... from a Poisson law, in standard errors."""
        upper, lower = self.counts[::-1].cumsum(), self.counts.cumsum()
        largest = 0.0
        for distance in (3.5, 4.0, 4.5, 5.0, 5.5):
            expected = self.n * ndtr(-distance)
            if expected < 10:
                break
            beyond = round((8 - distance) * self.bins_per_unit) - 1
            largest = max(largest, *(abs(tail[beyond] - expected) / math.sqrt(expected) for tail in (upper, lower)))
        return largest

    def is_normal(self) -> bool:
        return (
            self.kolmogorov_smirnov() < KS_CRITICAL
            and self.anderson_darling() < AD_CRITICAL
            and self.far_tails() < Z_CRITICAL
        )


def histogram(*chunks: torch.Tensor) -> Histogram:
    result = Histogram()
    for chunk in chunks:
        result.add(chunk)
    return result


def chi_square(uniform: torch.Tensor) -> float:
    """Of uniforms on [0, 1) in 2^20 bins, in standard errors from its mean."""
    bins = 2**20
    counts = torch.bincount((uniform.double() * bins).long().clamp(0, bins - 1).flatten(), minlength=bins).double()
    expected = uniform.numel() / bins
    return float(((counts - expected).square().sum() / expected - bins) / math.sqrt(2 * bins))


def polar_uniforms(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The uniforms that Box-Muller made of the pairs (r[:, 0], r[:, 1]), (r[:, 2], r[:, 3]), ... came from."""
    x, y = r[:, 0::2].double(), r[:, 1::2].double()
    return torch.exp(-(x.square() + y.square()) / 2), torch.atan2(y, x) / (2 * math.pi) + 0.5


def largest_correlation(rows: torch.Tensor) -> float:
    """Among rows ``[m, n]``, of r with r and of r^2 with r^2, in standard errors."""
    largest = 0.0
    for values, mean, deviation in ((rows, 0.0, 1.0), (rows.square(), 1.0, math.sqrt(2.0))):
        standard = (values.double() - mean) / deviation
        correlations = standard @ standard.T / math.sqrt(rows.shape[1])
        largest = max(largest, float(correlations.fill_diagonal_(0).abs().max()))
    return largest


def draw(n: int, device: torch.device, *, seed: int = 1, draw: int = 0) -> torch.Tensor:
    """n normals ``[n / 8, 8]``: two blocks side by side in each row."""
    like = torch.empty(1, n, device=device)
    return ops.normal(like, NoiseStream(seed, device).state, draw=draw).view(-1, 8)


# ---- The real generator --------------------------------------------------------------------------------------------

N = 10_000_000


@pytest.fixture(scope="module")
def normals() -> torch.Tensor:
    return draw(N, torch.device("cpu"))


def test_normals_are_normal(normals: torch.Tensor) -> None:
    assert histogram(normals).is_normal()


def test_normals_are_normal_on_any_device(device: torch.device) -> None:
    assert histogram(draw(N, device, seed=2)).is_normal()


def test_each_lane_is_normal(normals: torch.Tensor) -> None:
    """The cosine and the sine of both pairs."""
    for lane in range(4):
        assert histogram(normals[:, lane::4]).is_normal(), lane


def test_few_examples_of_many_draws_are_normal(device: torch.device) -> None:
    """Along the axes of draws, samples and examples, where a counter that forgot one would repeat itself."""
    like, state = torch.empty(100, 4, device=device), NoiseStream(3, device).state
    chunks = [ops.normal(like, state, samples=50, draw=draw) for draw in range(100)]
    assert histogram(*chunks).is_normal()


def test_radius_and_angle_of_pairs_are_uniform(normals: torch.Tensor) -> None:
    """To 20 bits: no word was cut short on the way."""
    for uniform in polar_uniforms(normals):
        assert abs(chi_square(uniform)) < Z_CRITICAL


def test_moments(normals: torch.Tensor) -> None:
    r, n = normals.double(), normals.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((r**power).mean()) - expected) < 4 * math.sqrt(variance / n), power


def test_neighbours_are_independent(normals: torch.Tensor) -> None:
    """The four lanes of a block, and those of the next."""
    assert largest_correlation(normals.T) < Z_CRITICAL


def test_samples_examples_draws_channels_and_seeds_are_independent(device: torch.device) -> None:
    shape, n = (2, 3, 400, 500), 200_000
    like = torch.empty(shape, device=device)
    rows = [
        ops.normal(like, NoiseStream(seed, device).state, samples=2, draw=index).reshape(-1, n)
        for seed, index in itertools.product((0, 1, 2**32), (0, 1))
    ]
    assert largest_correlation(torch.cat(rows)) < Z_CRITICAL


def test_uniform_starts_are_uniform(device: torch.device) -> None:
    """Kolmogorov-Smirnov on U(-1, 1), mapped to 2^16 bins."""
    x = torch.zeros(1, N, device=device)
    start = ops.uniform_start_(torch.empty_like(x), x, NoiseStream(4, device).state, epsilon=1.0, lower=-1.0)
    bins = ((start.double() + 1) * 2**15).long().clamp(max=2**16 - 1).flatten()
    empirical = torch.bincount(bins, minlength=2**16).cumsum(0).double() / N
    expected = torch.arange(1, 2**16 + 1, device=device, dtype=torch.float64) / 2**16
    assert math.sqrt(N) * float((empirical - expected).abs().max()) < KS_CRITICAL


# ---- Planted flaws -------------------------------------------------------------------------------------------------


def sum_of_twelve(r: torch.Tensor) -> torch.Tensor:
    """The central limit theorem at work: light tails."""
    generator = torch.Generator().manual_seed(0)
    total = torch.full_like(r, -6.0)
    for _ in range(12):
        total += torch.rand(r.shape, generator=generator)
    return total


def radial_word_of_16_bits(r: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    word, turn = torch.randint(2**16, (2, *r[:, ::2].shape), generator=generator)
    radius, angle = torch.sqrt(-2 * torch.log((word + 0.5) / 2**16)), turn * (2 * math.pi / 2**16)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2).flatten(1)


def variance_off(r: torch.Tensor) -> torch.Tensor:
    return r * math.sqrt(1.003)


def mean_off(r: torch.Tensor) -> torch.Tensor:
    return r + 0.003


def without_far_tails(r: torch.Tensor) -> torch.Tensor:
    return r.clamp(-4.0, 4.0)


def half_precision(r: torch.Tensor) -> torch.Tensor:
    return r.bfloat16().float()


@pytest.mark.parametrize(
    "flaw",
    [sum_of_twelve, variance_off, mean_off, without_far_tails, half_precision],
    ids=lambda f: f.__name__,
)
def test_flawed_distributions_are_rejected(flaw: Callable, normals: torch.Tensor) -> None:
    assert not histogram(flaw(normals)).is_normal()


def test_short_words_are_rejected(normals: torch.Tensor) -> None:
    radius, angle = polar_uniforms(radial_word_of_16_bits(normals))
    assert chi_square(radius) > Z_CRITICAL and chi_square(angle) > Z_CRITICAL


def duplicated_lanes(r: torch.Tensor) -> torch.Tensor:
    return torch.cat([r[:, :6], r[:, :2]], dim=1)


def correlated_pairs(r: torch.Tensor) -> torch.Tensor:
    r = r.clone()
    r[:, 1] = 0.01 * r[:, 0] + math.sqrt(1 - 1e-4) * r[:, 1]
    return r


def shared_radius(r: torch.Tensor) -> torch.Tensor:
    """Both pairs of a block from one radial word: uncorrelated, but their squares are not."""
    r = r.clone()
    r[:, 2:4] *= (r[:, :2].norm(dim=1) / r[:, 2:4].norm(dim=1))[:, None]
    return r


def flipped_copy(r: torch.Tensor) -> torch.Tensor:
    """A lane that repeats another with random signs."""
    r = r.clone()
    r[:, 3] = r[:, 0].abs() * r[:, 3].sign()
    return r


@pytest.mark.parametrize(
    "flaw", [duplicated_lanes, correlated_pairs, shared_radius, flipped_copy], ids=lambda f: f.__name__
)
def test_dependent_lanes_are_rejected(flaw: Callable, normals: torch.Tensor) -> None:
    assert largest_correlation(flaw(normals).T) > Z_CRITICAL


# ---- A thousand million draws --------------------------------------------------------------------------------------


def thousand_million(device: torch.device) -> Iterator[torch.Tensor]:
    for index in range(100):
        yield draw(N, device, seed=5, draw=index)


@pytest.mark.slow
def test_normals_are_normal_at_1e9(device: torch.device) -> None:
    result = histogram(*thousand_million(device))
    assert result.n == 10**9
    assert result.kolmogorov_smirnov() < KS_CRITICAL
    assert result.anderson_darling() < AD_CRITICAL
    assert result.far_tails() < Z_CRITICAL


@pytest.mark.slow
def test_a_variance_of_1_001_is_rejected_at_1e9(device: torch.device) -> None:
    result = histogram(*(chunk * math.sqrt(1.001) for chunk in thousand_million(device)))
    assert result.kolmogorov_smirnov() > KS_CRITICAL
    assert result.anderson_darling() > AD_CRITICAL
