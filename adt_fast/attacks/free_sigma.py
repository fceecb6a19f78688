"""Ascent on (mu, sigma), where sigma is a free positive parameter: the paper's reading of its Eq. 9.

The published code climbs (mu, rho) with sigma = softplus(rho), and that is what the fused operators do. Here the
gradient comes from the sampler's backward pass instead, and the update is a few PyTorch operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops

_ADAM_EPSILON = 1e-8
LEAST_SIGMA = 1e-6


def rho_of(sigma: Tensor) -> Tensor:
    """The rho whose softplus is sigma > 0."""
    return sigma + torch.log(-torch.expm1(-sigma))


def ascent_step_on_sigma_(
    mu: Tensor,
    sigma: Tensor,
    grad_x_adv: Tensor,
    x: Tensor,
    noise: Tensor,
    *,
    draw: int,
    step_size: float,
    grad_scale: float,
    entropy_weight: float,
    entropy_reduction: str,
    update: str,
    log_offset: float,
    accumulated: tuple[Tensor, Tensor] | None,
    epsilon: float,
    lower: float,
    upper: float,
    first_example: int = 0,
) -> None:
    """:func:`adt_fast.ops.tanh_gaussian_ascent_step_` on sigma in place of rho.

    A step that makes sigma negative is reflected: mu + sigma r and mu - sigma r have one distribution.
    """
    leaves = mu.detach().requires_grad_(), rho_of(sigma).requires_grad_()
    with torch.enable_grad():
        x_adv, neg_log_density = ops.tanh_gaussian_sample(
            x, *leaves, noise, samples=len(grad_x_adv), draw=draw, first_example=first_example, dtype=grad_x_adv.dtype,
            log_offset=log_offset, epsilon=epsilon, lower=lower, upper=upper,
        )  # fmt: skip
    weight = entropy_weight / mu.numel() if entropy_reduction == "mean" else entropy_weight
    # Scaled afterwards, in float32: a 16-bit gradient may carry a loss scale that keeps it from vanishing.
    assert neg_log_density is not None  # asked for, by default
    directions = (grad_x_adv, torch.full_like(neg_log_density, weight / grad_scale))
    d_mu, d_rho = (grad.mul_(grad_scale) for grad in torch.autograd.grad((x_adv, neg_log_density), leaves, directions))
    d_sigma = d_rho / -torch.expm1(-sigma)  # d sigma / d rho = sigmoid(rho) = 1 - exp(-sigma)
    for index, (parameter, fresh) in enumerate(((mu, d_mu), (sigma, d_sigma))):
        grad = fresh if accumulated is None else accumulated[index].add_(fresh)
        direction = grad.sign() if update == "sign" else grad / (grad.abs() + _ADAM_EPSILON)
        parameter.add_(direction, alpha=step_size)
    sigma.abs_().clamp_(min=LEAST_SIGMA)
