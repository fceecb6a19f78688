"""The operators in plain PyTorch: the definition, the oracle of the tests, and the fallback without native code.

Each function here is the twin of the one of the same name in :mod:`adt_fast.ops`, with the same noise. They work in
any floating dtype on any device; in float64 they are the truth the kernels are measured against. Arguments are not
checked here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ._support.layout import channels_and_pixels

_WORD = 0xFFFFFFFF
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32-bit counter words and two of key words -> four of random words, of the
    counter's shape, which may be any shape that the key's can be broadcast to."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of a 32 x 32 product.
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _WORD, product0 & _WORD
        high1, low1 = (product1 >> 32) & _WORD, product1 & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _WORD, (k1 + _PHILOX_KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def noise_words(
    shape: torch.Size, noise: torch.Tensor, samples: int, draw: int, first_example: int
) -> list[torch.Tensor]:
    """The four random words of each Philox block: int64 tensors ``[k, B, groups, C]`` (csrc/math/philox.h).

    Element (channel c, pixel p) of an example is lane ``p % 4`` of block ``(p // 4) * C + c``. ``shape`` is that of the
    images; the other arguments are those of :func:`adt_fast.ops.normal`.
    """
    channels, pixels = channels_and_pixels(shape)
    device = noise.device
    blocks = torch.arange(-(-pixels // 4) * channels, device=device).view(1, 1, -1)
    examples = (torch.arange(shape[0], device=device) + first_example).view(1, -1, 1)
    sample = torch.arange(samples, device=device).view(-1, 1, 1)
    seed, offset = noise[0], noise[1] + draw
    counter = torch.broadcast_tensors(
        blocks, examples & _WORD, offset & _WORD, (sample & 0xFFFFFF) | (((offset >> 32) & 0xFF) << 24)
    )
    words = philox(counter, (seed & _WORD, (seed >> 32) & _WORD))
    return [word.unflatten(2, (-1, channels)) for word in words]


def _lanes_to_elements(lanes: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Four tensors ``[k, B, groups, C]``, one per lane of a block -> ``[k, *shape]``."""
    _, pixels = channels_and_pixels(shape)
    by_pixel = torch.stack(lanes, dim=-1).transpose(2, 3).flatten(3)[..., :pixels]  # [k, B, C, P]
    return by_pixel.reshape(-1, *shape)


def normal(
    like: torch.Tensor, noise: torch.Tensor, *, samples: int = 1, draw: int = 0, first_example: int = 0
) -> torch.Tensor:
    """The normals ``[k, *like.shape]`` of a draw, by Box-Muller, in like's dtype."""
    words = noise_words(like.shape, noise, samples, draw, first_example)
    dtype = torch.promote_types(like.dtype, torch.float32)
    lanes: list[torch.Tensor] = []
    for radial, turn in ((words[0], words[1]), (words[2], words[3])):
        # The uniform is rounded to float32 for every dtype, so that all of them see the same noise.
        uniform = radial.to(torch.float32) * 2.0**-32 + 2.0**-33
        radius = torch.sqrt(-2.0 * torch.log(uniform.to(dtype)))
        signed = torch.where(turn >= 2**31, turn - 2**32, turn)
        angle = signed.to(dtype) * (2.0 * math.pi / 2.0**32)
        lanes += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return _lanes_to_elements(lanes, like.shape).to(like.dtype)


def _tanh_derivative(u: torch.Tensor) -> torch.Tensor:
    """1 - tanh(u)^2, without cancellation."""
    decay = torch.exp(-2.0 * u.abs())
    return 4.0 * decay / (1.0 + decay).square()


def log_tanh_derivative(u: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    """log(1 - tanh(u)^2 + offset) of each element of u, any shape, for an offset >= 0.

    Without offset it is 2 (log 2 - |u| - log1p(exp(-2|u|))), which does not saturate.
    """
    if offset > 0:
        return torch.log(_tanh_derivative(u) + offset)
    magnitude = u.abs()
    return 2.0 * (math.log(2.0) - magnitude - torch.log1p(torch.exp(-2.0 * magnitude)))


def _softplus(rho: torch.Tensor) -> torch.Tensor:
    return F.softplus(rho, threshold=40.0)  # the default threshold, 20, would show in float64


def _log_softplus(rho: torch.Tensor, offset: float) -> torch.Tensor:
    """log(softplus(rho) + offset); without offset, finite where softplus itself underflows."""
    if offset > 0:
        return torch.log(_softplus(rho) + offset)
    return torch.where(rho < -37.0, rho, torch.log(_softplus(rho.clamp(min=-40.0))))


def _usable_offset(log_offset: float, dtype: torch.dtype) -> float:
    """One below the smallest normal number counts as none, here and in the kernels."""
    return log_offset if log_offset >= torch.finfo(dtype).tiny else 0.0


def _clamp(v: torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """torch.clamp whose gradient passes at the bounds themselves, in every version of torch."""
    return torch.where(v < lower, lower, torch.where(v > upper, upper, v))


def tanh_gaussian_sample(
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    noise: torch.Tensor,
    *,
    samples: int = 1,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
    draw: int = 0,
    first_example: int = 0,
    dtype: torch.dtype | None = None,
    density: bool = True,
    log_offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Samples ``[k, B, ...]`` and their negative log density ``[k, B]``, differentiable in x, mu, rho by autograd."""
    r = normal(mu, noise, samples=samples, draw=draw, first_example=first_example)  # [k, B, ...]
    sigma = _softplus(rho)
    u = mu + sigma * r
    x_adv = _clamp(x + epsilon * torch.tanh(u), lower, upper).to(dtype or x.dtype)
    if not density:
        return x_adv, None
    log_offset = _usable_offset(log_offset, mu.dtype)
    per_element = (
        0.5 * r.square()
        + 0.5 * math.log(2.0 * math.pi)
        + _log_softplus(rho, log_offset)
        + log_tanh_derivative(u, log_offset)
        + math.log(epsilon)
    )
    return x_adv, per_element.reshape(*per_element.shape[:2], -1).sum(2)


def parameter_gradient(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    *,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
    entropy_weight: float = 0.0,
    grad_scale: float = 1.0,
    log_offset: float = 0.0,
    draw: int = 0,
    first_example: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of (mu, rho) that the ascent step follows (paper, Eq. 10-11), summed over the k samples.

    ``entropy_weight`` multiplies each element's -log p: divide it by B * D for the published code's mean. Arguments are
    those of :func:`adt_fast.ops.tanh_gaussian_ascent_step_`.
    """
    samples, log_offset = grad_x_adv.shape[0], _usable_offset(log_offset, mu.dtype)
    r = normal(mu, noise, samples=samples, draw=draw, first_example=first_example)
    sigma = _softplus(rho)
    u = mu + sigma * r
    t, derivative = torch.tanh(u), _tanh_derivative(u)
    v = x + epsilon * t
    passed = torch.where((v >= lower) & (v <= upper), grad_x_adv.to(mu.dtype) * grad_scale, 0.0)
    kept = derivative / (derivative + log_offset) if log_offset > 0 else 1.0
    d_u = epsilon * derivative * passed - 2.0 * entropy_weight * t * kept
    sigmoid = torch.sigmoid(rho)
    # d log(sigma + offset) / d rho; where sigmoid and sigma both underflow their ratio is 1.
    floored = rho.clamp(min=-80.0) if log_offset == 0 else rho
    d_log_sigma = torch.sigmoid(floored) / (_softplus(floored) + log_offset)
    return d_u.sum(0), sigmoid * (d_u * r).sum(0) + entropy_weight * samples * d_log_sigma


def tanh_gaussian_ascent_step_(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    *,
    step_size: float,
    update: str = "adam",
    accumulated: tuple[torch.Tensor, torch.Tensor] | None = None,
    **gradient_options: Any,
) -> None:
    """One ascent step on (mu, rho), in place. ``gradient_options`` are those of :func:`parameter_gradient`."""
    with torch.no_grad():
        gradients = parameter_gradient(mu, rho, grad_x_adv, x, noise, **gradient_options)
        for i, (parameter, gradient) in enumerate(zip((mu, rho), gradients)):
            if accumulated is not None:
                gradient = accumulated[i].add_(gradient)
            direction = torch.sign(gradient) if update == "sign" else gradient / (gradient.abs() + 1e-8)
            parameter.add_(step_size * direction)


def tanh_gaussian_ascent_step_and_sample_(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    *,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
    draw: int = 0,
    next_draw: int | None = None,
    first_example: int = 0,
    density: bool = False,
    log_offset: float = 0.0,
    out: torch.Tensor | None = None,
    **step_options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The step, with ``step_options``, then the next samples ``[k, B, ...]`` in the dtype of ``grad_x_adv``, and their
    negative log density ``[k, B]``."""
    shared: dict[str, Any] = {"epsilon": epsilon, "lower": lower, "upper": upper, "first_example": first_example}
    tanh_gaussian_ascent_step_(
        mu, rho, grad_x_adv, x, noise, draw=draw, log_offset=log_offset, **shared, **step_options
    )
    with torch.no_grad():
        x_adv, neg_log_density = tanh_gaussian_sample(
            x, mu, rho, noise,
            samples=grad_x_adv.shape[0],
            draw=draw + 1 if next_draw is None else next_draw,
            dtype=grad_x_adv.dtype,
            density=density,
            log_offset=log_offset,
            **shared,
        )
        return (x_adv if out is None else out.copy_(x_adv)), neg_log_density


def _project_linf(v: torch.Tensor, x: torch.Tensor, epsilon: float, lower: float, upper: float) -> torch.Tensor:
    return torch.clamp(torch.clamp(v, x - epsilon, x + epsilon), lower, upper)


def _per_example(norms: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return norms.view(-1, *[1] * (like.dim() - 1))


def linf_step_(
    x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, *,
    step_size: float, epsilon: float, lower: float = 0.0, upper: float = 1.0,
) -> torch.Tensor:
    """x_adv ``[B, ...]`` <- clamp(clip(x_adv + step_size sign(grad), x - epsilon, x + epsilon), lower, upper) (paper,
    Eq. 3)."""
    moved = x_adv.to(x.dtype) + step_size * torch.sign(grad.to(x.dtype))
    return x_adv.copy_(_project_linf(moved, x, epsilon, lower, upper))


def momentum_linf_step_(
    x_adv: torch.Tensor, momentum: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, *,
    step_size: float, decay: float = 1.0, epsilon: float, lower: float = 0.0, upper: float = 1.0,
) -> torch.Tensor:
    """momentum ``[B, ...]`` <- decay momentum + grad / ||grad||_1, per example; then a step along its sign (MIM)."""
    grad = grad.double()
    norm = _per_example(grad.reshape(len(grad), -1).abs().sum(1), x)
    momentum.mul_(decay).add_(torch.where(norm == 0, 0.0, grad / norm).to(x.dtype))
    return linf_step_(x_adv, momentum, x, step_size=step_size, epsilon=epsilon, lower=lower, upper=upper)


def l2_step_(
    x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, *,
    step_size: float, epsilon: float, lower: float = 0.0, upper: float = 1.0,
) -> torch.Tensor:
    """A step of x_adv ``[B, ...]`` along grad / ||grad||_2, projected onto the L2 ball around x, then onto the data
    bounds."""
    grad = grad.double()
    norm = _per_example(torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1), x)
    direction = torch.where(norm == 0, 0.0, grad / norm).to(x.dtype)
    delta = (x_adv.to(x.dtype) - x) + step_size * direction
    length = _per_example(torch.linalg.vector_norm(delta.reshape(len(delta), -1).double(), dim=1), x)
    shrink = torch.where(length <= epsilon, 1.0, epsilon / length).to(x.dtype)
    return x_adv.copy_(torch.clamp(x + delta * shrink, lower, upper))


def uniform_start_(
    x_adv: torch.Tensor, x: torch.Tensor, noise: torch.Tensor, *,
    epsilon: float, lower: float = 0.0, upper: float = 1.0, draw: int = 0, first_example: int = 0,
) -> torch.Tensor:
    """x_adv ``[B, ...]`` <- clamp(x + epsilon U(-1, 1), lower, upper)."""
    words = noise_words(x.shape, noise, 1, draw, first_example)
    lanes = [(word.to(torch.float32) * 2.0**-32 + 2.0**-33) * 2.0 - 1.0 for word in words]
    uniform = _lanes_to_elements(lanes, x.shape)[0].to(x.dtype)
    return x_adv.copy_(_project_linf(x + epsilon * uniform, x, epsilon, lower, upper))


def affine_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, relu: bool = True) -> torch.Tensor:
    """max(0, scale[c] x + shift[c]) of x ``[N, C, ...]``, computed in scale's dtype; without ``relu`` the map alone."""
    y = (x.to(scale.dtype) * _per_channel(scale, x) + _per_channel(shift, x)).to(x.dtype)
    return torch.relu(y) if relu else y


def affine_relu_backward(grad_y: torch.Tensor, y: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
    """The gradient of x: scale[c] grad_y, zero where y <= 0; y is None without ReLU."""
    grad_x = (grad_y.to(scale.dtype) * _per_channel(scale, grad_y)).to(grad_y.dtype)
    return grad_x if y is None else torch.where(y <= 0, 0.0, grad_x)


def _per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.dim() - 2))
