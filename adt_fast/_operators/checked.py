"""Each operator with its checks: what eager calls and the custom operators both run."""

from __future__ import annotations

from typing import Any

import torch

from .._support.checks import check_ball, check_bool, check_choice, check_finite, check_int, check_not_negative
from .._support.layout import layout_of, preferred_layout
from .._support.tensor_checks import (
    check_activation,
    check_batch,
    check_coefficients,
    check_iterate,
    check_like,
    check_noise,
    check_samples_of,
    check_separate,
    check_storage_dtype,
    check_tensor,
    check_written,
)
from ..noise import MAX_OFFSET
from . import launch
from .launch import Ascent, Ball, Draw


def check_sample_arguments(
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
) -> None:
    """Every check of the sampler's arguments."""
    check_batch("x", x)
    check_like("mu", mu, "x", x)
    check_like("rho", rho, "x", x)
    check_noise(noise, x, draw, first_example, samples)
    check_ball(epsilon, lower, upper, x.dtype)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {type(dtype).__name__}")
    check_storage_dtype("dtype", dtype, "x", x)
    check_bool("density", density)
    check_not_negative("log_offset", log_offset, x.dtype)


def ascend(
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
    sum_mu: torch.Tensor | None,
    sum_rho: torch.Tensor | None,
    draw: int,
    first_example: int,
    next_draw: int | None = None,
    density: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Checks, then steps; and samples when ``next_draw`` is given."""
    check_batch("mu", mu)
    check_like("rho", rho, "mu", mu)
    check_like("x", x, "mu", mu)
    check_samples_of("grad_x_adv", grad_x_adv, "mu", mu)
    check_noise(noise, mu, draw, first_example, grad_x_adv.shape[0])
    check_ball(epsilon, lower, upper, mu.dtype)
    for name, value in (("step_size", step_size), ("entropy_weight", entropy_weight), ("grad_scale", grad_scale)):
        check_finite(name, value, mu.dtype)
    check_not_negative("log_offset", log_offset, mu.dtype)
    check_choice("entropy_reduction", entropy_reduction, ("sum", "mean"))
    check_choice("update", update, ("adam", "sign"))
    check_written("mu", mu)
    layout = preferred_layout(mu)
    check_written("rho", rho, layout)
    if (sum_mu is None) != (sum_rho is None):
        raise ValueError("accumulated must hold two tensors, (sum_mu, sum_rho), or be None")
    if sum_mu is not None and sum_rho is not None:
        for name, tensor in (("accumulated[0]", sum_mu), ("accumulated[1]", sum_rho)):
            check_like(name, tensor, "mu", mu)
            check_written(name, tensor, layout)
    check_bool("density", density)
    if next_draw is not None:
        check_int("next_draw", next_draw, 0, MAX_OFFSET)
    if out is not None:
        _check_out(out, grad_x_adv, layout)
    check_separate(
        {"mu": mu, "rho": rho, "accumulated[0]": sum_mu, "accumulated[1]": sum_rho, "out": out},
        {"x": x, "grad_x_adv": grad_x_adv},
    )
    step = Ascent(
        step_size,
        update,
        grad_scale,
        launch.entropy_weight_per_element(entropy_weight, entropy_reduction, mu),
        log_offset,
    )
    accumulated = None if sum_mu is None or sum_rho is None else (sum_mu, sum_rho)
    return launch.ascent(
        mu, rho, grad_x_adv, x, Draw(noise, draw, first_example), Ball(epsilon, lower, upper), step, accumulated,
        next_draw, density, out,
    )


def projected_step(
    kind: str,
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
    decay: float = 0.0,
    momentum: torch.Tensor | None = None,
) -> torch.Tensor:
    """Checks, then takes one of the projected steps."""
    check_batch("x", x)
    check_iterate("x_adv", x_adv, "x", x)
    check_iterate("grad", grad, "x", x)
    check_ball(epsilon, lower, upper, x.dtype)
    check_finite("step_size", step_size, x.dtype)
    check_not_negative("decay", decay, x.dtype)
    check_written("x_adv", x_adv)
    if kind == "momentum_linf_step":
        wanted: Any = momentum  # None is refused
        check_like("momentum", wanted, "x", x)
        check_written("momentum", wanted, layout_of(x_adv))
    check_separate({"x_adv": x_adv, "momentum": momentum}, {"x": x, "grad": grad})
    launch.projected_step(kind, x_adv, grad, x, Ball(epsilon, lower, upper), step_size, decay, momentum)
    return x_adv


def uniform_start(
    x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    lower: float,
    upper: float,
    draw: int,
    first_example: int,
) -> torch.Tensor:
    """Checks, then fills x_adv."""
    check_batch("x", x)
    check_iterate("x_adv", x_adv, "x", x)
    check_noise(noise, x, draw, first_example, 1)
    check_ball(epsilon, lower, upper, x.dtype)
    check_written("x_adv", x_adv)
    check_separate({"x_adv": x_adv}, {"x": x})
    launch.uniform_start(x_adv, x, Draw(noise, draw, first_example), Ball(epsilon, lower, upper))
    return x_adv


def normal(
    like: torch.Tensor, noise: torch.Tensor, samples: int, draw: int, first_example: int
) -> torch.Tensor:
    """Checks, then draws."""
    check_batch("like", like)
    check_noise(noise, like, draw, first_example, samples, like_name="like")
    return launch.normal(like, Draw(noise, draw, first_example), samples)


def check_affine_arguments(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, relu: bool) -> None:
    """Every check of affine_relu's arguments."""
    check_activation("x", x)
    check_coefficients("scale", scale, "x", x)
    check_coefficients("shift", shift, "x", x)
    check_bool("relu", relu)


def _check_out(out: torch.Tensor, grad_x_adv: torch.Tensor, layout: torch.memory_format) -> None:
    check_tensor("out", out)
    if out.shape != grad_x_adv.shape or out.dtype != grad_x_adv.dtype or out.device != grad_x_adv.device:
        raise ValueError(
            f"out must have the shape, dtype and device of grad_x_adv, {list(grad_x_adv.shape)} {grad_x_adv.dtype} on "
            f"{grad_x_adv.device}, got {list(out.shape)} {out.dtype} on {out.device}"
        )
    folded = out.flatten(0, 1)
    if folded.data_ptr() != out.data_ptr():
        raise ValueError(f"out must be k dense slabs, one after another, got strides {tuple(out.stride())}")
    check_written("out", folded, layout)
