"""The operators as torch.library custom operators, for torch.compile and torch.export.

Eager calls do not come here: an autograd.Function costs a third of a custom operator's dispatch. Each operator has a
fake kernel (shapes, dtypes and layouts without data), and the sampler has its autograd formula. Checks run when the
operator does. Parameters are written out every time, for torch.library reads an operator's schema from them.
"""

from __future__ import annotations

from typing import Any

import torch

from .._support.layout import empty_samples, preferred_layout
from .._support.tensor_checks import check_constant
from . import checked, launch
from .launch import Ball, Draw

NAMESPACE = "adt_fast"


@torch.library.custom_op(f"{NAMESPACE}::tanh_gaussian_sample", mutates_args=())
def tanh_gaussian_sample(
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    noise: torch.Tensor,
    samples: int,
    epsilon: float,
    lower: float,
    upper: float,
    draw: int,
    first_example: int,
    dtype: torch.dtype,
    density: bool,
    log_offset: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without ``density`` the second result is empty, [0]."""
    checked.check_sample_arguments(
        x, mu, rho, noise, samples, epsilon, lower, upper, draw, first_example, dtype, density, log_offset
    )
    x_adv, neg_log_density = launch.sample(
        x, mu, rho, Draw(noise, draw, first_example), Ball(epsilon, lower, upper), samples, dtype, density, log_offset
    )
    return x_adv, (x.new_empty(0) if neg_log_density is None else neg_log_density)


@tanh_gaussian_sample.register_fake
def _(x, mu, rho, noise, samples, epsilon, lower, upper, draw, first_example, dtype, density, log_offset):
    x_adv = empty_samples(x, samples, preferred_layout(x), dtype)
    return x_adv, x.new_empty((samples, x.shape[0]) if density else (0,))


@torch.library.custom_op(f"{NAMESPACE}::tanh_gaussian_sample_backward", mutates_args=())
def tanh_gaussian_sample_backward(
    grad_x_adv: torch.Tensor,
    grad_neg_log_density: torch.Tensor | None,
    x: torch.Tensor,
    mu: torch.Tensor,
    rho: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    lower: float,
    upper: float,
    draw: int,
    first_example: int,
    log_offset: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, mu and rho."""
    grads = launch.sample_backward(
        grad_x_adv, grad_neg_log_density, x, mu, rho,
        Draw(noise, draw, first_example), Ball(epsilon, lower, upper), log_offset, (True, True, True),
    )
    # A custom operator may not return its input or an expanded view.
    layout = preferred_layout(x)
    grad_x, grad_mu, grad_rho = (grad.contiguous(memory_format=layout) for grad in grads if grad is not None)
    return grad_x, grad_mu, grad_rho


@tanh_gaussian_sample_backward.register_fake
def _(grad_x_adv, grad_neg_log_density, x, mu, rho, noise, epsilon, lower, upper, draw, first_example, log_offset):
    return tuple(torch.empty_like(x, memory_format=preferred_layout(x)) for _ in range(3))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, mu, rho, noise, _, epsilon, lower, upper, draw, first_example, _, density, log_offset = inputs
    # The stream may be advanced, in place, before backward runs: keep its state as it is now.
    ctx.save_for_backward(x, mu, rho, noise.clone())
    ctx.scalars = (epsilon, lower, upper, draw, first_example, log_offset)
    ctx.density = density


def _sample_backward(
    ctx: Any, grad_x_adv: torch.Tensor, grad_neg_log_density: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    x, mu, rho, noise = ctx.saved_tensors
    grads = tanh_gaussian_sample_backward(
        grad_x_adv, grad_neg_log_density if ctx.density else None, x, mu, rho, noise, *ctx.scalars
    )
    return *grads, *[None] * 10


tanh_gaussian_sample.register_autograd(_sample_backward, setup_context=_save_for_backward)


@torch.library.custom_op(
    f"{NAMESPACE}::tanh_gaussian_ascent_step", mutates_args=("mu", "rho", "accumulated_mu", "accumulated_rho")
)
def tanh_gaussian_ascent_step(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    lower: float,
    upper: float,
    step_size: float,
    entropy_weight: float,
    entropy_reduction: str,
    update: str,
    grad_scale: float,
    log_offset: float,
    accumulated_mu: torch.Tensor | None,
    accumulated_rho: torch.Tensor | None,
    draw: int,
    first_example: int,
) -> None:
    checked.ascend(
        mu, rho, grad_x_adv, x, noise, epsilon, lower, upper, step_size, entropy_weight, entropy_reduction, update,
        grad_scale, log_offset, accumulated_mu, accumulated_rho, draw, first_example,
    )


@tanh_gaussian_ascent_step.register_fake
def _(*_: Any) -> None:
    return None


@torch.library.custom_op(
    f"{NAMESPACE}::tanh_gaussian_ascent_step_and_sample",
    mutates_args=("mu", "rho", "accumulated_mu", "accumulated_rho"),
)
def tanh_gaussian_ascent_step_and_sample(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    lower: float,
    upper: float,
    step_size: float,
    entropy_weight: float,
    entropy_reduction: str,
    update: str,
    grad_scale: float,
    log_offset: float,
    accumulated_mu: torch.Tensor | None,
    accumulated_rho: torch.Tensor | None,
    draw: int,
    first_example: int,
    next_draw: int,
    density: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Without ``density`` the second result is empty, [0]."""
    x_adv, neg_log_density = checked.ascend(
        mu, rho, grad_x_adv, x, noise, epsilon, lower, upper, step_size, entropy_weight, entropy_reduction, update,
        grad_scale, log_offset, accumulated_mu, accumulated_rho, draw, first_example, next_draw, density,
    )
    assert x_adv is not None  # next_draw is given
    return x_adv, (mu.new_empty(0) if neg_log_density is None else neg_log_density)


@tanh_gaussian_ascent_step_and_sample.register_fake
def _(mu, rho, grad_x_adv, *rest):
    samples, density = grad_x_adv.shape[0], rest[-1]
    x_adv = empty_samples(mu, samples, preferred_layout(mu), grad_x_adv.dtype)
    return x_adv, mu.new_empty((samples, mu.shape[0]) if density else (0,))


@torch.library.custom_op(f"{NAMESPACE}::linf_step", mutates_args=("x_adv",))
def linf_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    checked.projected_step("linf_step", x_adv, grad, x, step_size, epsilon, lower, upper)


@torch.library.custom_op(f"{NAMESPACE}::l2_step", mutates_args=("x_adv",))
def l2_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    checked.projected_step("l2_step", x_adv, grad, x, step_size, epsilon, lower, upper)


@torch.library.custom_op(f"{NAMESPACE}::momentum_linf_step", mutates_args=("x_adv", "momentum"))
def momentum_linf_step(
    x_adv: torch.Tensor,
    momentum: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    step_size: float,
    decay: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    checked.projected_step(
        "momentum_linf_step", x_adv, grad, x, step_size, epsilon, lower, upper, decay=decay, momentum=momentum
    )


@torch.library.custom_op(f"{NAMESPACE}::uniform_start", mutates_args=("x_adv",))
def uniform_start(
    x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    lower: float,
    upper: float,
    draw: int,
    first_example: int,
) -> None:
    checked.uniform_start(x_adv, x, noise, epsilon, lower, upper, draw, first_example)


for _step in (linf_step, l2_step, momentum_linf_step, uniform_start):
    _step.register_fake(lambda *_: None)


@torch.library.custom_op(f"{NAMESPACE}::normal", mutates_args=())
def normal(like: torch.Tensor, noise: torch.Tensor, samples: int, draw: int, first_example: int) -> torch.Tensor:
    return checked.normal(like, noise, samples, draw, first_example)


@normal.register_fake
def _(like, noise, samples, draw, first_example):
    return empty_samples(like, samples, preferred_layout(like), like.dtype)


@torch.library.custom_op(f"{NAMESPACE}::affine_relu", mutates_args=())
def affine_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, relu: bool) -> torch.Tensor:
    checked.check_affine_arguments(x, scale, shift, relu)
    return launch.affine_relu(x, scale, shift, relu)


@affine_relu.register_fake
def _(x, scale, shift, relu):
    return torch.empty_like(x, memory_format=preferred_layout(x))


@torch.library.custom_op(f"{NAMESPACE}::affine_relu_backward", mutates_args=())
def affine_relu_backward(grad_y: torch.Tensor, y: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
    """The gradient of x; y is None without ReLU."""
    return launch.affine_relu_backward(grad_y, y, scale)


@affine_relu_backward.register_fake
def _(grad_y, y, scale):
    return torch.empty_like(grad_y, memory_format=preferred_layout(grad_y if y is None else y))


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, scale, _, relu = inputs
    # The operator itself runs below autograd, where its checks cannot tell.
    check_constant("scale", ctx.needs_input_grad[1])
    check_constant("shift", ctx.needs_input_grad[2])
    ctx.save_for_backward(output if relu else None, scale)


def _affine_backward(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    y, scale = ctx.saved_tensors
    return affine_relu_backward(grad_y, y, scale), None, None, None


affine_relu.register_autograd(_affine_backward, setup_context=_save_output)
