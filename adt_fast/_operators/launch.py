"""Runs an operator whose arguments were checked: natively where there are kernels, else in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .. import reference
from .._support.layout import channels_and_pixels, empty_samples, preferred_layout, samples_with_layout, with_layout
from . import native


@dataclass(frozen=True)
class Ball:
    """x_adv lies within ``epsilon`` of x and within [lower, upper]."""

    epsilon: float
    lower: float
    upper: float

    def as_tuple(self) -> tuple[float, float, float]:
        return float(self.epsilon), float(self.lower), float(self.upper)


@dataclass(frozen=True)
class Draw:
    """Which normals: the state tensor, the draw counted from its offset, and the index of row 0."""

    noise: torch.Tensor
    draw: int
    first_example: int

    def as_tuple(self) -> tuple[int, int, int]:
        return self.noise.data_ptr(), self.draw, self.first_example

    def options(self) -> dict[str, Any]:
        return {"draw": self.draw, "first_example": self.first_example}


@dataclass(frozen=True)
class Ascent:
    """What an ascent step follows and how far it goes; ``entropy_weight`` is per element."""

    step_size: float
    update: str
    grad_scale: float
    entropy_weight: float
    log_offset: float


def _shape(like: torch.Tensor, layout: torch.memory_format) -> tuple[int, int, int, bool]:
    channels, pixels = channels_and_pixels(like.shape)
    return like.shape[0], channels, pixels, layout != torch.contiguous_format


def _channel_shape(like: torch.Tensor, layout: torch.memory_format) -> tuple[int, int, int, bool]:
    """Like :func:`_shape`, but every channel counts; those of a single pixel are neighbours, as in channels_last."""
    pixels = math.prod(like.shape[2:])
    return like.shape[0], like.shape[1], pixels, layout != torch.contiguous_format or pixels == 1


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _density_buffers(
    like: torch.Tensor, samples: int, shape: tuple[int, int, int, bool], density: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The output [k, B], and on CUDA the blocks' partial sums [k, B, blocks]."""
    if not density:
        return None, None
    out = like.new_empty(samples, like.shape[0])
    if like.device.type == "cpu":
        return out, None
    return out, like.new_empty(samples, like.shape[0], native.module.density_partials(shape))


def sample(
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    draw: Draw,
    ball: Ball,
    samples: int,
    dtype: torch.dtype,
    density: bool,
    log_offset: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns x_adv [k, *x.shape] in x's layout, and -log p [k, B] or None."""
    layout = preferred_layout(x)
    x, mu, rho = (with_layout(tensor, layout) for tensor in (x, mu, rho))
    if not native.runs_on(x.device):
        x_adv, neg_log_density = reference.tanh_gaussian_sample(
            x, mu, rho, draw.noise, samples=samples, dtype=dtype, density=density, log_offset=log_offset,
            **draw.options(), **vars(ball),
        )
        return samples_with_layout(x_adv, layout), neg_log_density
    shape = _shape(x, layout)
    x_adv = empty_samples(x, samples, layout, dtype)
    neg_log_density, partials = _density_buffers(x, samples, shape, density)
    native.module.tanh_gaussian_sample(
        native.target(x.device), native.DTYPE_CODES[x.dtype], native.DTYPE_CODES[dtype], shape, ball.as_tuple(),
        draw.as_tuple(), samples, float(log_offset), x.data_ptr(), mu.data_ptr(), rho.data_ptr(), x_adv.data_ptr(),
        _address(neg_log_density), _address(partials),
    )
    return x_adv, neg_log_density


def sample_backward(
    grad_x_adv: torch.Tensor,
    grad_neg_log_density: torch.Tensor | None,
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    draw: Draw,
    ball: Ball,
    log_offset: float,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of x, mu and rho; None for those not needed."""
    if not native.runs_on(x.device):
        return _reference_sample_backward(grad_x_adv, grad_neg_log_density, x, mu, rho, draw, ball, log_offset, needs)
    layout = preferred_layout(x)
    grad_x_adv = samples_with_layout(grad_x_adv, layout)
    x, mu, rho = (with_layout(tensor, layout) for tensor in (x, mu, rho))
    if grad_neg_log_density is not None:
        grad_neg_log_density = grad_neg_log_density.contiguous()
    grads = tuple(torch.empty_like(x, memory_format=layout) if need else None for need in needs)
    native.module.tanh_gaussian_sample_backward(
        native.target(x.device), native.DTYPE_CODES[x.dtype], native.DTYPE_CODES[grad_x_adv.dtype],
        _shape(x, layout), ball.as_tuple(), draw.as_tuple(), grad_x_adv.shape[0], float(log_offset),
        grad_x_adv.data_ptr(), _address(grad_neg_log_density), x.data_ptr(), mu.data_ptr(), rho.data_ptr(),
        *map(_address, grads),
    )
    return grads


def _reference_sample_backward(
    grad_x_adv: torch.Tensor,
    grad_neg_log_density: torch.Tensor | None,
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    draw: Draw,
    ball: Ball,
    log_offset: float,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, ...]:
    with torch.enable_grad():
        x, mu, rho = inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip((x, mu, rho), needs)]
        outputs = reference.tanh_gaussian_sample(
            x, mu, rho, draw.noise, samples=grad_x_adv.shape[0], dtype=grad_x_adv.dtype,
            density=grad_neg_log_density is not None, log_offset=log_offset, **draw.options(), **vars(ball),
        )
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    pairs = [(o, g) for o, g in zip(outputs, (grad_x_adv, grad_neg_log_density)) if o is not None and o.requires_grad]
    roots, root_grads = zip(*pairs)
    grads = iter(torch.autograd.grad(roots, wanted, root_grads, allow_unused=True, materialize_grads=True))
    return tuple(next(grads) if need else None for need in needs)


def ascent(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    draw: Draw,
    ball: Ball,
    step: Ascent,
    accumulated: tuple[torch.Tensor, torch.Tensor] | None,
    next_draw: int | None = None,
    density: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Steps (mu, rho) in place; with ``next_draw``, also draws the next k samples and returns them."""
    layout = preferred_layout(mu)
    grad_x_adv, x = samples_with_layout(grad_x_adv, layout), with_layout(x, layout)
    if not native.runs_on(mu.device):
        return _reference_ascent(mu, rho, grad_x_adv, x, draw, ball, step, accumulated, next_draw, density, out)
    samples, shape, x_adv = grad_x_adv.shape[0], _shape(mu, layout), out
    neg_log_density = partials = None
    if next_draw is not None:
        x_adv = empty_samples(mu, samples, layout, grad_x_adv.dtype) if out is None else out
        neg_log_density, partials = _density_buffers(mu, samples, shape, density)
    accumulated_mu, accumulated_rho = accumulated or (None, None)
    native.module.tanh_gaussian_ascent(
        native.target(mu.device), native.DTYPE_CODES[mu.dtype], native.DTYPE_CODES[grad_x_adv.dtype], shape,
        ball.as_tuple(), draw.as_tuple(), samples, int(step.update == "sign"), float(step.step_size),
        float(step.grad_scale), float(step.entropy_weight), float(step.log_offset), grad_x_adv.data_ptr(),
        x.data_ptr(), mu.data_ptr(), rho.data_ptr(), _address(accumulated_mu), _address(accumulated_rho),
        next_draw or 0, _address(x_adv), _address(neg_log_density), _address(partials),
    )
    mark_written(mu, rho, accumulated_mu, accumulated_rho, out)
    return x_adv, neg_log_density


def _reference_ascent(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    draw: Draw,
    ball: Ball,
    step: Ascent,
    accumulated: tuple[torch.Tensor, torch.Tensor] | None,
    next_draw: int | None,
    density: bool,
    out: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    options = vars(ball) | vars(step) | draw.options() | {"accumulated": accumulated}
    if next_draw is None:
        reference.tanh_gaussian_ascent_step_(mu, rho, grad_x_adv, x, draw.noise, **options)
        return None, None
    x_adv, neg_log_density = reference.tanh_gaussian_ascent_step_and_sample_(
        mu, rho, grad_x_adv, x, draw.noise, next_draw=next_draw, density=density, out=out, **options
    )
    return (samples_with_layout(x_adv, preferred_layout(mu)) if out is None else x_adv), neg_log_density


def projected_step(
    kind: str,
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    ball: Ball,
    step_size: float,
    decay: float = 0.0,
    momentum: torch.Tensor | None = None,
) -> None:
    """``kind`` is linf_step, l2_step or momentum_linf_step; x_adv (and momentum) change in place."""
    layout = preferred_layout(x_adv)
    grad, x = with_layout(grad, layout), with_layout(x, layout)
    if not native.runs_on(x.device):
        buffers = (x_adv,) if momentum is None else (x_adv, momentum)
        options = {} if momentum is None else {"decay": decay}
        with torch.no_grad():
            getattr(reference, kind + "_")(*buffers, grad, x, step_size=step_size, **options, **vars(ball))
        return
    codes = native.DTYPE_CODES
    getattr(native.module, kind)(
        native.target(x.device), codes[x.dtype], codes[x_adv.dtype], codes[grad.dtype], _shape(x, layout),
        ball.as_tuple(), float(step_size), *(() if momentum is None else (float(decay),)), grad.data_ptr(),
        x.data_ptr(), x_adv.data_ptr(), *(() if momentum is None else (momentum.data_ptr(),)),
    )
    mark_written(x_adv, momentum)


def uniform_start(x_adv: torch.Tensor, x: torch.Tensor, draw: Draw, ball: Ball) -> None:
    """Fills x_adv in place."""
    layout = preferred_layout(x_adv)
    x = with_layout(x, layout)
    if not native.runs_on(x.device):
        with torch.no_grad():
            reference.uniform_start_(x_adv, x, draw.noise, **draw.options(), **vars(ball))
        return
    native.module.uniform_start(
        native.target(x.device), native.DTYPE_CODES[x.dtype], native.DTYPE_CODES[x_adv.dtype], _shape(x, layout),
        ball.as_tuple(), draw.as_tuple(), x.data_ptr(), x_adv.data_ptr(),
    )
    mark_written(x_adv)


def normal(like: torch.Tensor, draw: Draw, samples: int) -> torch.Tensor:
    """The normals [k, *like.shape], in like's layout."""
    layout = preferred_layout(like)
    if not native.runs_on(like.device):
        return samples_with_layout(reference.normal(like, draw.noise, samples=samples, **draw.options()), layout)
    out = empty_samples(like, samples, layout, like.dtype)
    native.module.normal(
        native.target(like.device), native.DTYPE_CODES[like.dtype], _shape(like, layout), draw.as_tuple(), samples,
        out.data_ptr(),
    )
    return out


def affine_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, relu: bool) -> torch.Tensor:
    """Returns y like x, in x's layout."""
    layout = preferred_layout(x)
    x, scale, shift = with_layout(x, layout), scale.contiguous(), shift.contiguous()
    if not native.runs_on(x.device):
        return with_layout(reference.affine_relu(x, scale, shift, relu=relu), layout)
    y = torch.empty_like(x, memory_format=layout)
    native.module.affine_relu(
        native.target(x.device), native.DTYPE_CODES[scale.dtype], native.DTYPE_CODES[x.dtype],
        _channel_shape(x, layout), relu, x.data_ptr(), scale.data_ptr(), shift.data_ptr(), y.data_ptr(),
    )
    return y


def affine_relu_backward(grad_y: torch.Tensor, y: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
    """The gradient of x, in the layout of y; of grad_y without ReLU, when y is None."""
    layout = preferred_layout(grad_y if y is None else y)
    grad_y, scale = with_layout(grad_y, layout), scale.contiguous()
    if not native.runs_on(grad_y.device):
        return with_layout(reference.affine_relu_backward(grad_y, y, scale), layout)
    grad_x = torch.empty_like(grad_y, memory_format=layout)
    native.module.affine_relu_backward(
        native.target(grad_y.device), native.DTYPE_CODES[scale.dtype], native.DTYPE_CODES[grad_y.dtype],
        _channel_shape(grad_y, layout), grad_y.data_ptr(), _address(y), scale.data_ptr(), grad_x.data_ptr(),
    )
    return grad_x


def mark_written(*tensors: torch.Tensor | None) -> None:
    """Tells autograd that tensors were changed behind its back, so that stale saved values are noticed."""
    for tensor in tensors:
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)


def entropy_weight_per_element(weight: float, reduction: str, like: torch.Tensor) -> float:
    """The weight of one element's -log p: the mean reading divides by B * D (the published code's)."""
    return weight / max(1, math.prod(like.shape)) if reduction == "mean" else weight
