"""docs/concepts.md: the names and tests of its table exist, and formulas that no other test compares are right."""

import importlib
import math
import re
from pathlib import Path

import named_tests
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

from adt_fast import NoiseStream, TanhNormal, ops

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "concepts.md").read_text()
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if re.match(r"\| .* \| `", line)]
NAMES = sorted({name for row in ROWS for name in re.findall(r"`([\w.]+)`", row[1])})
TESTS = sorted({test for row in ROWS for test in re.findall(r"`(\S+)`", row[2])})
FORMULAS = re.findall(r"\$\$(.*?)\$\$|\$([^$\n]+)\$", PAGE, re.DOTALL)

EPSILON = 8 / 255


# The page


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_table_is_public(name):
    module, *attributes = name.split(".")
    home = importlib.import_module(f"adt_fast.{module}")
    if "." in name and not hasattr(home, attributes[0]):
        home = importlib.import_module(f"adt_fast.{module}.{attributes.pop(0)}")
    for attribute in attributes:
        assert hasattr(home, attribute), f"{name}: {home} has no {attribute}"
        home = getattr(home, attribute)


@pytest.mark.parametrize("test", TESTS)
def test_every_test_of_the_table_exists(test):
    assert "::" in test and named_tests.is_there(test)


def test_every_numbered_equation_has_a_row():
    stated = {int(number) for number in re.findall(r"\\qquad \((\d+)\)", PAGE)}
    cells = " ".join(re.sub(r"[ABCD]\.\d|\d\.\d|Table \d|Alg\. \d", "", row[0]) for row in ROWS)
    assert stated == {int(number) for number in re.findall(r"\d+", cells)} == set(range(1, 16))


def test_formulas_are_such_as_github_shows():
    """Markdown takes the backslash from punctuation before the formula is set, and * and _ may become emphasis."""
    assert len(FORMULAS) > 50
    bad = [text for pair in FORMULAS for text in pair if re.search(r"\\[^a-zA-Z\s]|\*|\\\s", text)]
    assert bad == [] and PAGE.count("$") % 2 == 0


# The formulas


@pytest.fixture
def parameters():
    """(mu, sigma), float64 ``[5, 3]``."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return mu, torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.1


def test_the_density_is_that_of_the_transformed_normal(parameters):
    """Eq. 9 and 11 against PyTorch's own change of variables, from delta alone; and the operator's, which knows u."""
    mu, sigma = parameters
    plain = TransformedDistribution(Normal(mu, sigma), [TanhTransform(), AffineTransform(0.0, EPSILON)])
    x, noise = torch.zeros_like(mu), NoiseStream(1).state
    delta, neg_log_density = ops.tanh_gaussian_sample(
        x, mu, torch.expm1(sigma).log(), noise, samples=7, epsilon=EPSILON, lower=-math.inf, upper=math.inf
    )
    expected = plain.log_prob(delta)
    torch.testing.assert_close(TanhNormal(mu, sigma, EPSILON).log_prob(delta), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(neg_log_density, -expected.sum(2), rtol=1e-9, atol=1e-9)


def test_samples_and_their_gradients(parameters):
    """d delta / d mu = epsilon (1 - t^2), d delta / d sigma = r times that; the noise is the operators'."""
    mu, sigma = (parameter.requires_grad_() for parameter in parameters)
    delta = TanhNormal(mu, sigma, EPSILON, NoiseStream(1)).rsample((4,))
    r = ops.normal(mu.detach(), NoiseStream(1).state, samples=4)
    t = torch.tanh(mu + sigma * r)
    torch.testing.assert_close(delta, EPSILON * t)
    d_mu, d_sigma = torch.autograd.grad(delta.sum(), (mu, sigma))
    torch.testing.assert_close(d_mu, (EPSILON * (1 - t**2)).sum(0))
    torch.testing.assert_close(d_sigma, (EPSILON * (1 - t**2) * r).sum(0))


@pytest.mark.parametrize("mu, sigma", [(0.0, 0.05), (0.3, math.log(2)), (-2.0, 1.5), (1.0, 6.0)])
def test_the_entropy_is_minus_the_mean_of_log_p(mu, sigma):
    """A sum over a fine grid of u, of which delta is a function; and never above that of the uniform distribution."""
    normal = Normal(torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
    u, step = mu + sigma * torch.linspace(-9, 9, 20_001, dtype=torch.float64), sigma * 18 / 20_000
    expected = (step * normal.log_prob(u).exp() * (log_slope(u) + math.log(EPSILON) - normal.log_prob(u))).sum()
    entropy = TanhNormal(normal.loc, normal.scale, EPSILON).entropy()
    torch.testing.assert_close(entropy, expected, rtol=0, atol=2e-6)
    assert entropy <= math.log(2 * EPSILON)


def log_slope(u):
    """log(1 - tanh(u)^2)."""
    return 2 * (math.log(2) - u.abs() - torch.log1p(torch.exp(-2 * u.abs())))


def test_the_gradient_at_the_maximizer_is_that_of_the_maximum():
    """Eq. 8, for one pixel and one weight: the maximum over (mu, sigma) by Newton's method, means by quadrature."""
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(100))
    weights = weights / weights.sum()  # of the standard normal
    lambda_, epsilon, x = 0.05, 0.3, 0.4

    def loss(theta, mu, log_sigma):
        """E L of a logistic classifier."""
        delta = epsilon * torch.tanh(mu + log_sigma.exp() * nodes)
        return (weights * F.softplus(-theta * (x + delta))).sum()

    def objective(theta, mu, log_sigma):
        """J, but for the entropy's constants."""
        return loss(theta, mu, log_sigma) + lambda_ * (
            log_sigma + (weights * log_slope(mu + log_sigma.exp() * nodes)).sum()
        )

    def maximizer(theta):
        phi = torch.tensor([-1.3, -0.4], dtype=torch.float64)  # near it
        for _ in range(5):
            phi.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(theta, *phi), phi, create_graph=True)
            hessian = torch.stack([torch.autograd.grad(part, phi, retain_graph=True)[0] for part in gradient])
            phi = (phi - torch.linalg.solve(hessian, gradient)).detach()
        assert gradient.norm() < 1e-10 and torch.linalg.eigvalsh(hessian)[-1] < 0
        return phi

    theta, h = torch.tensor(2.0, dtype=torch.float64, requires_grad=True), 1e-4
    ends = [objective(theta.detach() + step, *maximizer(theta.detach() + step)) for step in (h, -h)]
    of_the_maximum = (ends[0] - ends[1]) / (2 * h)
    best = maximizer(theta.detach())
    # Of the loss alone: the entropy does not depend on theta.
    (at_the_maximizer,) = torch.autograd.grad(loss(theta, *best), theta)
    torch.testing.assert_close(at_the_maximizer, of_the_maximum, rtol=1e-6, atol=0)
    (elsewhere,) = torch.autograd.grad(loss(theta, *(best + 0.5)), theta)
    assert not torch.isclose(elsewhere, of_the_maximum, rtol=1e-2)
