"""The operators of adt_fast in plain PyTorch, as a careful author would write them: the contestants.

They see tensors flattened in the order of memory, x, mu and rho ``[B, D]`` and k samples ``[k, B, D]``, so that every
layout is contiguous to them. The normals r are given, never drawn here: eager code draws them into a buffer that it
keeps (``r.normal_()``), and has them at hand again in the backward pass and the ascent step, which cost the operators
of adt_fast a second drawing and these a stored tensor.

Eager code pays for every pass over memory, compiled code for every arithmetic operation. Where the two want different
forms, the eager one has few passes, works in place and keeps tanh(u) too; the one named ``fused_...``, meant for
``torch.compile``, shares a single exponential between tanh and the density.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

_LOG_2 = math.log(2.0)
_LOG_SQRT_2_PI = 0.5 * math.log(2.0 * math.pi)


# ---- Sampling: u = mu + sigma r, x_adv = clamp(x + epsilon tanh u), -log p (paper, Eq. 9 and 11) ---------------------
def sample(
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    r: torch.Tensor,
    x_adv: torch.Tensor,
    tanh: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
    density: bool = True,
) -> torch.Tensor | None:
    """Writes x_adv and tanh(u), both ``[k, B, D]``; returns -log p ``[k, B]``, or None without ``density``."""
    sigma = F.softplus(rho)
    u = torch.addcmul(mu, sigma, r, out=tanh)
    neg_log_density = None
    if density:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), and softplus(-2u) = -2 softplus(u, beta=-2).
        log_derivative = 2.0 * (2.0 * F.softplus(u, beta=-2.0).sum(-1) - u.sum(-1))
        half_square = 0.5 * torch.linalg.vector_norm(r, dim=-1).square()
        neg_log_density = half_square + log_derivative + _shared_density(sigma, epsilon)
    torch.add(x, u.tanh_(), alpha=epsilon, out=x_adv).clamp_(lower, upper)
    return neg_log_density


def fused_sample(
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    r: torch.Tensor,
    x_adv: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
    density: bool = True,
) -> torch.Tensor | None:
    """:func:`sample` in few operations."""
    sigma = F.softplus(rho)
    u = torch.addcmul(mu, sigma, r)
    magnitude = u.abs()
    decay = torch.exp(-2.0 * magnitude)
    x_adv.copy_(torch.add(x, _tanh_from_decay(u, decay), alpha=epsilon).clamp(lower, upper))
    if not density:
        return None
    own = 0.5 * r.square() - 2.0 * (magnitude + torch.log(1.0 + decay))
    return own.sum(-1) + _shared_density(sigma, epsilon)


def fused_draw_and_sample(
    x: torch.Tensor, mu: torch.Tensor, rho: torch.Tensor, x_adv: torch.Tensor, **options
) -> torch.Tensor | None:
    """:func:`fused_sample` that draws its normals too."""
    return fused_sample(x, mu, rho, torch.randn(x_adv.shape, device=x.device), x_adv, **options)


def _shared_density(sigma: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The part of -log p that all samples share, ``[B]``."""
    return sigma.log().sum(-1) + sigma.shape[-1] * (_LOG_SQRT_2_PI + 2.0 * _LOG_2 + math.log(epsilon))


def _tanh_from_decay(u: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """tanh(u) from exp(-2|u|)."""
    return torch.copysign((1.0 - decay) / (1.0 + decay), u)


# ---- Its gradient, and the ascent step (Eq. 10) ---------------------------------------------------------------------
def sample_backward(
    grad_x_adv: torch.Tensor,
    grad_neg_log_density: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    r: torch.Tensor,
    tanh: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of mu and rho, given r and tanh(u) of the forward pass and the gradient ``[k, B]`` of -log p."""
    d_u = _gradient_through_clamp(grad_x_adv, x, tanh, epsilon, lower, upper)
    d_u.addcmul_(tanh, grad_neg_log_density.unsqueeze(-1), value=-2.0)
    return _parameter_gradients(d_u, r, rho, grad_neg_log_density.sum(0).unsqueeze(-1))


def fused_sample_backward(
    grad_x_adv: torch.Tensor,
    grad_neg_log_density: torch.Tensor,
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    r: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`sample_backward`, with tanh(u) computed again."""
    tanh, derivative = _fused_tanh(mu, rho, r)
    passed = _fused_mask(grad_x_adv, x, tanh, epsilon, lower, upper)
    d_u = epsilon * derivative * passed - 2.0 * grad_neg_log_density.unsqueeze(-1) * tanh
    return _parameter_gradients(d_u, r, rho, grad_neg_log_density.sum(0).unsqueeze(-1))


def ascent_step(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    r: torch.Tensor,
    tanh: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
    step_size: float,
    entropy_weight: float,
) -> None:
    """Adam(0, 0) ascent on (mu, rho), in place, given r and tanh(u) of the samples that were attacked."""
    d_u = _gradient_through_clamp(grad_x_adv, x, tanh, epsilon, lower, upper)
    d_u.sub_(tanh, alpha=2.0 * entropy_weight)
    grad_mu, grad_rho = _parameter_gradients(d_u, r, rho, entropy_weight * r.shape[0])
    mu.addcdiv_(grad_mu, grad_mu.abs().add_(1e-8), value=step_size)
    rho.addcdiv_(grad_rho, grad_rho.abs().add_(1e-8), value=step_size)


def fused_ascent_step(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    r: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
    step_size: float,
    entropy_weight: float,
) -> None:
    """:func:`ascent_step`, with tanh(u) computed again."""
    tanh, derivative = _fused_tanh(mu, rho, r)
    passed = _fused_mask(grad_x_adv, x, tanh, epsilon, lower, upper)
    d_u = epsilon * derivative * passed - 2.0 * entropy_weight * tanh
    grad_mu, grad_rho = _parameter_gradients(d_u, r, rho, entropy_weight * r.shape[0])
    mu.add_(step_size * grad_mu / (grad_mu.abs() + 1e-8))
    rho.add_(step_size * grad_rho / (grad_rho.abs() + 1e-8))


def ascent_step_and_sample(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    r: torch.Tensor,
    tanh: torch.Tensor,
    next_r: torch.Tensor,
    x_adv: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
    step_size: float,
    entropy_weight: float,
) -> None:
    """:func:`ascent_step`, then :func:`sample` of the new distribution without its density."""
    ball = {"epsilon": epsilon, "lower": lower, "upper": upper}
    ascent_step(mu, rho, grad_x_adv, x, r, tanh, step_size=step_size, entropy_weight=entropy_weight, **ball)
    sample(x, mu, rho, next_r, x_adv, tanh, density=False, **ball)


def fused_ascent_step_and_sample(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    r: torch.Tensor,
    next_r: torch.Tensor,
    x_adv: torch.Tensor,
    *,
    epsilon: float,
    lower: float,
    upper: float,
    step_size: float,
    entropy_weight: float,
) -> None:
    """:func:`ascent_step_and_sample` in few operations."""
    ball = {"epsilon": epsilon, "lower": lower, "upper": upper}
    fused_ascent_step(mu, rho, grad_x_adv, x, r, step_size=step_size, entropy_weight=entropy_weight, **ball)
    fused_sample(x, mu, rho, next_r, x_adv, density=False, **ball)


def fused_ascent_step_draw_and_sample(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    r: torch.Tensor,
    x_adv: torch.Tensor,
    **options: float,
) -> None:
    """:func:`fused_ascent_step_and_sample` that draws the next normals too, and leaves them in r for the next step."""
    next_r = torch.randn(r.shape, device=r.device)
    fused_ascent_step_and_sample(mu, rho, grad_x_adv, x, r, next_r, x_adv, **options)
    r.copy_(next_r)


def _gradient_through_clamp(
    grad_x_adv: torch.Tensor, x: torch.Tensor, tanh: torch.Tensor, epsilon: float, lower: float, upper: float
) -> torch.Tensor:
    """epsilon (1 - tanh^2) d L / d x_adv, zero where x_adv was clamped."""
    v = torch.add(x, tanh, alpha=epsilon)
    d_u = torch.addcmul(torch.full((), epsilon, dtype=x.dtype, device=x.device), tanh, tanh, value=-epsilon)
    return d_u.mul_(grad_x_adv).mul_(v.clamp(lower, upper).eq_(v))


def _fused_tanh(mu: torch.Tensor, rho: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """tanh(u) and 1 - tanh(u)^2."""
    u = mu + F.softplus(rho) * r
    tanh = _tanh_from_decay(u, torch.exp(-2.0 * u.abs()))
    return tanh, 1.0 - tanh.square()


def _fused_mask(
    grad_x_adv: torch.Tensor, x: torch.Tensor, tanh: torch.Tensor, epsilon: float, lower: float, upper: float
) -> torch.Tensor:
    v = x + epsilon * tanh
    return torch.where((v >= lower) & (v <= upper), grad_x_adv.to(x.dtype), 0.0)


def _parameter_gradients(
    d_u: torch.Tensor, r: torch.Tensor, rho: torch.Tensor, entropy: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """From d/du per sample ``[k, B, D]`` to d/d(mu, rho); ``entropy`` is the weight of log sigma, over all samples."""
    grad_mu = d_u.sum(0)
    grad_sigma = (d_u * r).sum(0) + entropy / F.softplus(rho)
    return grad_mu, grad_sigma * torch.sigmoid(rho)


# ---- Projected steps: in place in eager mode; compiled code does best when it returns new tensors --------------------
def linf_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    """A sign-gradient step in the L-infinity ball, in place; arithmetic in x's dtype."""
    moved = torch.add(x_adv.to(x.dtype), grad.sign().to(x.dtype), alpha=step_size)
    _clamp_into(x_adv, moved.clamp_(x - epsilon, x + epsilon), lower, upper)


def fused_linf_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> tuple[torch.Tensor]:
    """The new x_adv."""
    moved = x_adv.to(x.dtype) + step_size * grad.to(x.dtype).sign()
    projected = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon)
    return (projected.clamp(lower, upper).to(x_adv.dtype),)


def l2_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    """A step along the normalised gradient in the L2 ball, in place."""
    delta = (x_adv - x).addcdiv_(grad.to(x.dtype), _norm(grad.to(x.dtype), 2), value=step_size)
    shrink = (epsilon / _norm(delta, 2)).clamp_(max=1.0)
    _clamp_into(x_adv, torch.addcmul(x, delta, shrink), lower, upper)


def fused_l2_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> tuple[torch.Tensor]:
    """The new x_adv."""
    grad = grad.to(x.dtype)
    delta = x_adv.to(x.dtype) - x + grad * (step_size / _norm(grad, 2))
    shrink = (epsilon / _norm(delta, 2)).clamp(max=1.0)
    return ((x + delta * shrink).clamp(lower, upper).to(x_adv.dtype),)


def momentum_linf_step(
    x_adv: torch.Tensor,
    momentum: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    decay: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    """MIM's step, in place."""
    grad = grad.to(x.dtype)
    momentum.mul_(decay).addcdiv_(grad, _norm(grad, 1))
    linf_step(x_adv, momentum, x, step_size=step_size, epsilon=epsilon, lower=lower, upper=upper)


def fused_momentum_linf_step(
    x_adv: torch.Tensor,
    momentum: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    decay: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The new x_adv and momentum."""
    grad = grad.to(x.dtype)
    momentum = decay * momentum + grad / _norm(grad, 1)
    ball = {"epsilon": epsilon, "lower": lower, "upper": upper}
    return *fused_linf_step(x_adv, momentum, x, step_size=step_size, **ball), momentum


def uniform_start(
    x_adv: torch.Tensor, x: torch.Tensor, uniform: torch.Tensor, *, epsilon: float, lower: float, upper: float
) -> None:
    """x_adv = clamp(x + epsilon uniform), in place, for noise on [-1, 1]."""
    torch.add(x, uniform, alpha=epsilon, out=x_adv).clamp_(lower, upper)


def fused_uniform_start(
    x_adv: torch.Tensor, x: torch.Tensor, uniform: torch.Tensor, *, epsilon: float, lower: float, upper: float
) -> None:
    """:func:`uniform_start`, compiled better."""
    x_adv.copy_((x + epsilon * uniform).clamp(lower, upper))


def fused_draw_and_uniform_start(x_adv: torch.Tensor, x: torch.Tensor, **options: float) -> None:
    """:func:`fused_uniform_start` that draws its noise too."""
    fused_uniform_start(x_adv, x, torch.rand(x.shape, device=x.device) * 2.0 - 1.0, **options)


# ---- BatchNorm in eval mode, then ReLU; tensors of images, as layers see them ----------------------------------------
BATCH_NORM_EPS = 1e-5


def batch_norm_relu(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """ReLU in place, as networks have it."""
    return F.batch_norm(x, mean, variance, weight, bias, eps=BATCH_NORM_EPS).relu_()


def batch_norm_relu_backward(
    grad_y: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """The gradient of x alone, by the two operators that autograd runs."""
    passed = torch.ops.aten.threshold_backward(grad_y, y, 0)
    none = weight.new_empty(0)
    return torch.ops.aten.native_batch_norm_backward(
        passed, x, weight, mean, variance, none, none, False, BATCH_NORM_EPS, [True, False, False]
    )[0]


def _norm(tensor: torch.Tensor, order: int) -> torch.Tensor:
    """The norm of each example ``[B, 1]``, never zero."""
    return torch.linalg.vector_norm(tensor, order, dim=1, keepdim=True).clamp_min(torch.finfo(tensor.dtype).tiny)


def _clamp_into(out: torch.Tensor, v: torch.Tensor, lower: float, upper: float) -> None:
    """out = clamp(v), in one pass where the dtypes agree."""
    if out.dtype == v.dtype:
        torch.clamp(v, lower, upper, out=out)
    else:
        out.copy_(v.clamp_(lower, upper))
