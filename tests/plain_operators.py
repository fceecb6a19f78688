"""The operators as one would write them in plain PyTorch, given the normals: the yardstick of the accuracy tests."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from independent_operators import Ball


def sample(
    x: torch.Tensor, mu: torch.Tensor, rho: torch.Tensor, r: torch.Tensor, ball: Ball, log_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_adv [k, B, ...], -log p [k, B]), differentiable."""
    sigma = F.softplus(rho, threshold=40)
    u = mu + sigma * r
    t = torch.tanh(u)
    x_adv = (x + ball.epsilon * t).clamp(ball.lower, ball.upper)
    if log_offset > 0:
        log_derivative = torch.log(4 * torch.sigmoid(2 * u) * torch.sigmoid(-2 * u) + log_offset)
    else:
        log_derivative = 2 * (math.log(2) - u - F.softplus(-2 * u))
    constants = math.log(2 * math.pi) / 2 + math.log(ball.epsilon)
    per_element = r**2 / 2 + torch.log(sigma + log_offset) + log_derivative + constants
    return x_adv, per_element.reshape(*r.shape[:2], -1).sum(2)


def sample_gradients(
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    r: torch.Tensor,
    ball: Ball,
    grad_x_adv: torch.Tensor,
    grad_density: torch.Tensor,
    log_offset: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Of sum(grad_x_adv x_adv) + sum(grad_density (-log p)), by autograd."""
    inputs = {name: tensor.detach().requires_grad_() for name, tensor in (("x", x), ("mu", mu), ("rho", rho))}
    x_adv, neg_log_density = sample(**inputs, r=r, ball=ball, log_offset=log_offset)
    objective = (grad_x_adv.to(x.dtype) * x_adv).sum() + (grad_density * neg_log_density).sum()
    return dict(zip(inputs, torch.autograd.grad(objective, list(inputs.values()))))


def direction(gradient: torch.Tensor, update: str) -> torch.Tensor:
    return gradient.sign() if update == "sign" else gradient / (gradient.abs() + 1e-8)


def linf_step(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, step_size: float, ball: Ball) -> torch.Tensor:
    moved = x_adv.to(x.dtype) + step_size * grad.to(x.dtype).sign()
    return moved.clamp(x - ball.epsilon, x + ball.epsilon).clamp(ball.lower, ball.upper)


def accumulate_momentum(momentum: torch.Tensor, grad: torch.Tensor, decay: float) -> torch.Tensor:
    grad = grad.to(momentum.dtype)
    norm = per_example(by_example(grad).abs().sum(1), grad)
    return decay * momentum + grad / norm.where(norm > 0, torch.ones_like(norm))


def l2_step(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, step_size: float, ball: Ball) -> torch.Tensor:
    grad = grad.to(x.dtype)
    norm = per_example(by_example(grad).norm(dim=1), grad)
    d = x_adv.to(x.dtype) + step_size * grad / norm.where(norm > 0, torch.ones_like(norm)) - x
    length = per_example(by_example(d).norm(dim=1), d)
    return (x + d * (ball.epsilon / length).clamp(max=1).nan_to_num(1)).clamp(ball.lower, ball.upper)


def uniform_start(x: torch.Tensor, uniform: torch.Tensor, ball: Ball) -> torch.Tensor:
    return (x + ball.epsilon * uniform).clamp(ball.lower, ball.upper)


def affine_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, relu: bool) -> torch.Tensor:
    """As a frozen BatchNorm of mean 0 and variance 1, differentiable; computed in scale's dtype."""
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    eps = 1e-30  # lost beside a variance of 1; torch 2.11 refuses 0
    y = F.batch_norm(x.to(scale.dtype), mean, variance, scale, shift, eps=eps).to(x.dtype)
    return torch.relu(y) if relu else y


def box_muller(words: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Four int64 tensors of 32-bit words -> four normals, stacked in a last dimension."""
    lanes = []
    for radial, turn in ((words[0], words[1]), (words[2], words[3])):
        uniform = radial.to(torch.float32) * 2.0**-32 + 2.0**-33
        radius = torch.sqrt(-2 * torch.log(uniform.to(dtype)))
        angle = turn.to(dtype) * (2 * math.pi / 2**32)
        lanes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(lanes, dim=-1)


def by_example(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(len(tensor), -1)


def per_example(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
