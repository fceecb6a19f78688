"""Steps on a free sigma: beside the fused step, against Adam written plainly, and with a 16-bit loss scale."""

import pytest
import torch
import torch.nn.functional as F
from plain_adt import tiny_batch

from adt_fast import NoiseStream, ops
from adt_fast.attacks.free_sigma import LEAST_SIGMA, ascent_step_on_sigma_, rho_of

OPTIONS = {
    "draw": 0, "step_size": 0.3, "entropy_weight": 0.01, "entropy_reduction": "sum", "update": "adam",
    "log_offset": 0.0, "accumulated": None, "epsilon": 0.1, "lower": -torch.inf, "upper": torch.inf,
}  # fmt: skip


def problem(samples=3, dtype=torch.float64):
    x = tiny_batch(4)[0].to(dtype)
    generator = torch.Generator().manual_seed(1)
    mu, sigma, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in (
        x.shape, x.shape, (samples, *x.shape)))
    return x, mu * 0.5, sigma.abs() + 0.05, grad, NoiseStream(3).state


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 0.1, 0.693, 5.0, 40.0])
def test_rho_is_the_inverse_of_softplus(sigma):
    sigma = torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(F.softplus(rho_of(sigma)), sigma, rtol=1e-9, atol=0)


def test_the_step_is_of_sigma():
    x, mu, sigma, grad, noise = problem()
    r = ops.normal(x, noise, samples=3)
    leaves = mu.clone().requires_grad_(), sigma.clone().requires_grad_()
    t = torch.tanh(leaves[0] + leaves[1] * r)
    entropy = (leaves[1].log() + (1 - t**2).log()).sum()
    objective = 0.5 * (grad * (x + 0.1 * t)).sum() + 0.01 * entropy
    wanted = torch.autograd.grad(objective, leaves)
    expected = [leaf.detach() + 0.3 * g / (g.abs() + 1e-8) for leaf, g in zip(leaves, wanted, strict=True)]
    assert (expected[1] < 0).any(), "some steps go below 0, and are reflected"
    ascent_step_on_sigma_(mu, sigma, grad, x, noise, grad_scale=0.5, **OPTIONS)
    torch.testing.assert_close(mu, expected[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(sigma, expected[1].abs().clamp(min=LEAST_SIGMA), rtol=1e-7, atol=1e-9)


def test_a_sixteen_bit_gradient_keeps_its_loss_scale():
    """Gradients of 1e-6 times 1024 are what float16 holds; 1e-6 itself would have lost most of its digits."""
    found = []
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 1024.0)):
        x, mu, sigma, grad, noise = problem(dtype=torch.float32)
        grad = (grad * 1e-6 * scale).to(dtype)
        sums = torch.zeros_like(mu), torch.zeros_like(mu)
        ascent_step_on_sigma_(
            mu, sigma, grad, x, noise, grad_scale=1 / scale, **OPTIONS | {"accumulated": sums, "entropy_weight": 0.0}
        )
        found.append(sums)
    for exact, half in zip(*found, strict=True):
        assert ((half - exact).norm() / exact.norm()) < 2e-3


def test_reflection_leaves_the_distribution():
    """mu + sigma r and mu - sigma r are one distribution; sigma does not stick to 0."""
    x, mu, sigma, grad, noise = problem()
    sigma.fill_(0.1)
    ascent_step_on_sigma_(mu, sigma, torch.zeros_like(grad), x, noise, grad_scale=1.0,
                          **OPTIONS | {"entropy_weight": -1.0, "update": "sign"})
    assert sigma.min() > 0 and sigma.median() == pytest.approx(0.2)
