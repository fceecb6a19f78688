"""TanhNormal against its definition: integrals over delta, limits that are known, and samples."""

import math

import numpy as np
import pytest
import torch

from adt_fast import NoiseStream, TanhNormal

EPSILON = 8 / 255

CASES = [(0.0, math.log(2)), (0.8, 0.3), (-1.5, 0.9), (2.1, 0.05), (-2.1, 2.4), (0.4, 6.0), (0.5, 1.0), (-0.5, 1.001)]


def plain_moments(mu, sigma):
    """Mean, standard deviation and entropy of tanh(u) by a Riemann sum over 400,000 u, in float64."""
    r, step = np.linspace(-12, 12, 400_001, retstep=True)
    weights = np.exp(-(r**2) / 2) * step / math.sqrt(2 * math.pi)
    u = mu + sigma * r
    t = np.tanh(u)
    mean = (weights * t).sum()
    log_slope = 2 * (math.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u))))
    entropy = (weights * (r**2 / 2 + math.log(2 * math.pi) / 2 + math.log(sigma) + log_slope)).sum()
    return mean, math.sqrt((weights * (t - mean) ** 2).sum()), entropy


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 3e-7), (torch.float32, 3e-6)])
def test_moments(dtype, tolerance):
    """All cases in one tensor, and so with the nodes of the widest."""
    mu, sigma = torch.tensor(CASES, dtype=dtype).T
    found = TanhNormal(mu, sigma, EPSILON)
    exact = [plain_moments(*case) for case in CASES]
    mean, std, entropy = map(list, zip(*exact))
    assert found.mean.dtype == found.stddev.dtype == dtype
    assert (found.mean / EPSILON).tolist() == pytest.approx(mean, abs=tolerance)
    assert (found.stddev / EPSILON).tolist() == pytest.approx(std, abs=tolerance)
    assert found.entropy().tolist() == pytest.approx([one + math.log(EPSILON) for one in entropy], abs=10 * tolerance)


def test_limits_that_are_known():
    def of(mu, sigma):
        found = TanhNormal(torch.tensor(mu, dtype=torch.float64), sigma, 1.0)
        return found.mean.item(), found.stddev.item()

    mean, std = of(0.7, 1e-5)  # a normal, through the tangent of tanh
    assert mean == pytest.approx(math.tanh(0.7), abs=1e-10)
    assert std == pytest.approx(1e-5 / math.cosh(0.7) ** 2, rel=1e-8)
    mean, std = of(60.0, 200.0)  # the signs of a normal
    assert mean == pytest.approx(math.erf(0.3 / math.sqrt(2)), abs=1e-4)
    assert std == pytest.approx(math.sqrt(1 - mean**2), rel=5e-3)
    assert of(0.0, 1.3)[0] == pytest.approx(0, abs=1e-16)
    assert of(30.0, 0.5) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("mu, sigma", [(3.0, 40.0), (-900.0, 300.0), (5e3, 2e3), (4e4, 2e3)])
def test_wide_distributions(mu, sigma):
    found = TanhNormal(torch.tensor(mu, dtype=torch.float64), sigma, 1.0)
    mean, std, entropy = plain_moments(mu, sigma)
    assert found.mean.item() == pytest.approx(mean, abs=1e-9)
    assert found.variance.item() == pytest.approx(std**2, abs=1e-9)
    assert found.entropy().item() == pytest.approx(entropy, rel=1e-9)


def test_any_scale_takes_the_same_time():
    """A sign with probability 1/2 each, for one that is huge."""
    for dtype in (torch.float32, torch.float64):
        scales = torch.tensor([math.inf, 1e30, 1e6], dtype=dtype).requires_grad_()
        found = TanhNormal(torch.zeros(3, dtype=dtype), scales, 1.0)
        assert found.mean.tolist() == pytest.approx([0.0] * 3, abs=1e-6)
        assert found.variance.tolist() == pytest.approx([1.0] * 3, abs=2e-6)
        (gradient,) = torch.autograd.grad(found.mean.sum() + found.variance.sum(), scales)
        assert gradient.isfinite().all()
        huge = found.entropy()[1:].detach() / scales[1:].detach()
        assert huge.tolist() == pytest.approx([-2 * math.sqrt(2 / math.pi)] * 2, rel=1e-4), "-2 E|u|"


def test_gradients_of_moments():
    values = ([0.3, -1.0, 2.0], [0.4, 1.1, 30.0])
    mu, sigma = (torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in values)
    assert torch.autograd.gradcheck(lambda mu, sigma: TanhNormal(mu, sigma, 0.5).mean, (mu, sigma))
    assert torch.autograd.gradcheck(lambda mu, sigma: TanhNormal(mu, sigma, 0.5).variance, (mu, sigma))
    assert torch.autograd.gradcheck(lambda mu, sigma: TanhNormal(mu, sigma, 0.5).entropy(), (mu, sigma))


def test_an_expanded_distribution_is_on_the_same_stream():
    for noise in (None, NoiseStream(3)):
        found = TanhNormal(torch.zeros(2), 1.0, 1.0, noise)
        expanded = found.expand((4, 2))
        assert expanded.noise is found.noise
        first, second = expanded.rsample(), found.expand((4, 2)).rsample()
        assert first.shape == (4, 2) and not torch.equal(first, second) and found.noise.offset == 2


def test_samples_and_density(device):
    mu, sigma = torch.tensor(CASES[:4], dtype=torch.float64, device=device).T
    found = TanhNormal(mu, sigma, EPSILON, NoiseStream(3, device))
    samples = found.rsample((100_000,))
    assert samples.shape == (100_000, 4) and bool((samples.abs() <= EPSILON).all())
    error = found.stddev / math.sqrt(100_000)
    assert bool(((samples.mean(0) - found.mean).abs() < 4 * error).all())
    assert torch.allclose(samples.std(0), found.stddev, rtol=0.02)
    log_p = found.log_prob(samples)
    assert bool(((-log_p.mean(0) - found.entropy()).abs() < 4 * log_p.std(0) / math.sqrt(100_000)).all())
    delta = torch.linspace(-EPSILON, EPSILON, 200_001, dtype=torch.float64, device=device)[1:-1, None]
    total = found.log_prob(delta.expand(-1, 4)).exp().sum(0) * (2 * EPSILON / 200_000)
    assert total.tolist() == pytest.approx([1] * 4, abs=1e-4)
