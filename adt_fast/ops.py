"""The fused operators.

Notation, per element (paper, Eq. 9-11): ``sigma = softplus(rho)``, ``r ~ N(0, 1)``, ``u = mu + sigma r``,
``t = tanh(u)``, ``x_adv = clamp(x + epsilon t, lower, upper)``, and

    -log p = r^2/2 + log(2 pi)/2 + log(sigma + o) + log(1 - t^2 + o) + log epsilon,

where ``log_offset`` o is 0 in the paper and 1e-8 in the published code.

Shapes: x, mu, rho ``[B, ...]``; x_adv ``[k, B, ...]`` for k Monte Carlo samples, each slab in the memory layout of x
(contiguous or channels_last), so ``x_adv.flatten(0, 1)`` is a batch of k * B images without a copy. Arithmetic is in
float32, or float64 for float64 inputs; x_adv and its gradient may be bfloat16 or float16 when x is float32.

Noise: ``noise`` is the ``state`` of a :class:`adt_fast.noise.NoiseStream` on x's device. An operator uses the one
draw numbered ``offset + draw``; row b of the batch is example ``first_example + b`` of that draw. The normals are
functions of these numbers alone, so a batch may be split, or its layout changed, without changing them.

Operators whose names end in ``_`` change their first argument in place and are not differentiable. All run natively
on the CPU and on CUDA (on the current stream, capturable in a CUDA graph), in plain PyTorch elsewhere
(:mod:`adt_fast.reference`, with the same noise), and under ``torch.compile(fullgraph=True)`` as custom operators.

Every operator raises ``TypeError`` or ``ValueError``, naming the argument, before anything is changed.
"""

from __future__ import annotations

from typing import Any

import torch

from ._operators import checked, custom_ops, launch
from ._operators.launch import Ball, Draw
from ._support.checks import check_int
from .noise import MAX_OFFSET

__all__ = [
    "affine_relu",
    "l2_step_",
    "linf_step_",
    "momentum_linf_step_",
    "normal",
    "tanh_gaussian_ascent_step_",
    "tanh_gaussian_ascent_step_and_sample_",
    "tanh_gaussian_sample",
    "uniform_start_",
]


class _Sample(torch.autograd.Function):
    """Sampling with its analytic backward, which draws the noise again instead of storing it."""

    @staticmethod
    def forward(
        ctx: Any,
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
        # The stream may be advanced, in place, before backward runs: keep its state as it is now.
        ctx.draw, ctx.ball = Draw(draw.noise.clone(), draw.draw, draw.first_example), ball
        ctx.save_for_backward(x, mu, rho)
        ctx.set_materialize_grads(False)
        ctx.x_adv_like, ctx.log_offset = (samples, dtype), log_offset
        return launch.sample(x, mu, rho, draw, ball, samples, dtype, density, log_offset)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_x_adv: torch.Tensor | None, grad_neg_log_density: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        x, mu, rho = ctx.saved_tensors
        if grad_x_adv is None:
            samples, dtype = ctx.x_adv_like
            grad_x_adv = torch.zeros((samples, *x.shape), dtype=dtype, device=x.device)
        needs = tuple(ctx.needs_input_grad[:3])
        grads = launch.sample_backward(
            grad_x_adv, grad_neg_log_density, x, mu, rho, ctx.draw, ctx.ball, ctx.log_offset, needs
        )
        return *grads, *[None] * 6


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
    """Draws k adversarial examples around each image, with their negative log density (paper, Eq. 9 and 11).

    Equivalent to, with ``r = normal(x, noise, samples=samples)``::

        u = mu + F.softplus(rho) * r
        x_adv = (x + epsilon * torch.tanh(u)).clamp(lower, upper)
        log_sigma = (F.softplus(rho) + log_offset).log()
        log_derivative = (1 - torch.tanh(u) ** 2 + log_offset).log()
        nld = (r**2 / 2 + log(2 * pi) / 2 + log_sigma + log_derivative + log(epsilon)).flatten(2).sum(2)

    but in one pass, without storing r, and with 1 - tanh(u)^2, or its logarithm, in a form without cancellation.

    Args:
        x: images ``[B, ...]``, float32 or float64.
        mu: location, like x.
        rho: ``softplus(rho)`` is the scale sigma; like x.
        noise: int64 ``[2]``, a ``NoiseStream.state`` on x's device.
        samples: k >= 1.
        epsilon: radius of the L-infinity ball, > 0, in the units of x.
        lower, upper: data bounds, lower < upper; may be infinite.
        draw: which draw, counted from the stream's offset, >= 0.
        first_example: index of row 0 within the draw, >= 0.
        dtype: of x_adv: x's (default), or bfloat16 or float16 when x is float32.
        density: whether to compute the density.
        log_offset: o >= 0, added inside the logarithms of the density. 0 is exact; the published code uses 1e-8. x_adv
            does not depend on it.

    Returns:
        ``(x_adv, neg_log_density)``: ``[k, B, ...]`` in ``dtype``, and ``[k, B]`` in x's dtype (None without
        ``density``). Both are differentiable, once, in x, mu and rho; the gradient is zero where x_adv was clamped.

    Raises:
        TypeError, ValueError: for an argument of the wrong type, shape, dtype, device or range, by name.
    """
    dtype = x.dtype if dtype is None and isinstance(x, torch.Tensor) else dtype
    if torch.compiler.is_compiling():
        x_adv, neg_log_density = custom_ops.tanh_gaussian_sample(
            x, mu, rho, noise, samples, epsilon, lower, upper, draw, first_example, dtype, density, log_offset
        )
        return x_adv, (neg_log_density if density else None)
    checked.check_sample_arguments(
        x, mu, rho, noise, samples, epsilon, lower, upper, draw, first_example, dtype, density, log_offset
    )
    arguments = (
        x, mu, rho, Draw(noise, draw, first_example), Ball(epsilon, lower, upper), samples, dtype, density, log_offset,
    )  # fmt: skip
    if torch.is_grad_enabled() and (x.requires_grad or mu.requires_grad or rho.requires_grad):
        return _Sample.apply(*arguments)
    return launch.sample(*arguments)


def tanh_gaussian_ascent_step_(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    lower: float = 0.0,
    upper: float = 1.0,
    entropy_weight: float = 0.0,
    entropy_reduction: str = "sum",
    update: str = "adam",
    grad_scale: float = 1.0,
    log_offset: float = 0.0,
    accumulated: tuple[torch.Tensor, torch.Tensor] | None = None,
    draw: int = 0,
    first_example: int = 0,
) -> None:
    """One step of gradient ascent on (mu, rho), in place, from the gradient of the loss at the samples (Eq. 10).

    It climbs ``grad_scale * L + entropy_weight * sum_s H_s``, where H_s is sample s's negative log density, summed
    over the k samples. With ``g = grad_scale * d L / d x_adv`` (zero where x_adv was clamped), c the weight of an
    element's entropy and o the ``log_offset``::

        d/du_s = epsilon (1 - t^2) g - 2 c t (1 - t^2) / (1 - t^2 + o)
        d/dmu = sum_s d/du_s
        d/drho = sigmoid(rho) (sum_s r d/du_s + k c / (sigma + o))

    Args:
        mu, rho: ``[B, ...]``, float32 or float64, contiguous or channels_last, both in the same layout; changed.
        grad_x_adv: ``d L / d x_adv`` ``[k, B, ...]`` for the samples drawn with this noise and ``draw``; mu's dtype,
            or bfloat16 or float16 when that is float32.
        x: the images, like mu.
        noise: int64 ``[2]``, as given to the sampler.
        epsilon, lower, upper, draw, first_example: as given to the sampler.
        step_size: of the update, finite.
        entropy_weight: lambda, finite.
        entropy_reduction: ``"sum"`` over the elements of an example (the paper's Eq. 11), or ``"mean"`` over batch
            and elements (the published code): c = lambda, or lambda / (B * D).
        update: ``"adam"``, Adam with betas (0, 0): p += step_size * g / (\\|g\\| + 1e-8); or ``"sign"``.
        grad_scale: multiplies ``grad_x_adv``, to undo a loss scale or turn a batch mean into a sum; finite.
        log_offset: o >= 0, added inside the logarithms of the density. 0 is exact; the published code uses 1e-8.
        accumulated: ``(sum_mu, sum_rho)``, like mu: running sums of the gradients over steps, changed; the step
            follows them instead of the fresh gradient (the published code, which never zeroes its gradient).

    Raises:
        TypeError, ValueError: for an argument of the wrong type, shape, dtype, device, layout or range, by name;
            mu, rho and ``accumulated`` are then as they were.
    """
    scalars = (epsilon, lower, upper, step_size, entropy_weight, entropy_reduction, update, grad_scale, log_offset)
    sum_mu, sum_rho = _unpack_accumulated(accumulated)
    if torch.compiler.is_compiling():
        custom_ops.tanh_gaussian_ascent_step(
            mu, rho, grad_x_adv, x, noise, *scalars, sum_mu, sum_rho, draw, first_example
        )
        return
    checked.ascend(mu, rho, grad_x_adv, x, noise, *scalars, sum_mu, sum_rho, draw, first_example)


def tanh_gaussian_ascent_step_and_sample_(
    mu: torch.Tensor,
    rho: torch.Tensor,
    grad_x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    lower: float = 0.0,
    upper: float = 1.0,
    entropy_weight: float = 0.0,
    entropy_reduction: str = "sum",
    update: str = "adam",
    grad_scale: float = 1.0,
    log_offset: float = 0.0,
    accumulated: tuple[torch.Tensor, torch.Tensor] | None = None,
    draw: int = 0,
    next_draw: int | None = None,
    first_example: int = 0,
    density: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`tanh_gaussian_ascent_step_`, then k samples from the new distribution, in one kernel.

    Args:
        next_draw: the draw for the new samples; default ``draw + 1``.
        density: whether to compute the new samples' negative log density, with the same ``log_offset``.
        out: a buffer for the new samples, ``[k, B, ...]`` with grad_x_adv's dtype and slabs in mu's layout; it must
            not share memory with any other argument. Default: a new tensor.

        The others are those of :func:`tanh_gaussian_ascent_step_`.

    Returns:
        ``(x_adv, neg_log_density)``: ``[k, B, ...]`` in the dtype of ``grad_x_adv`` (``out`` itself if given), and
        ``[k, B]`` in mu's dtype or None.

    Raises:
        TypeError, ValueError: as :func:`tanh_gaussian_ascent_step_`.
    """
    scalars = (epsilon, lower, upper, step_size, entropy_weight, entropy_reduction, update, grad_scale, log_offset)
    sum_mu, sum_rho = _unpack_accumulated(accumulated)
    if next_draw is None:
        check_int("draw", draw, 0, MAX_OFFSET)
        next_draw = draw + 1
    if torch.compiler.is_compiling():
        x_adv, neg_log_density = custom_ops.tanh_gaussian_ascent_step_and_sample(
            mu, rho, grad_x_adv, x, noise, *scalars, sum_mu, sum_rho, draw, first_example, next_draw, density
        )
        if out is not None:
            if out.shape != x_adv.shape or out.dtype != x_adv.dtype:
                raise ValueError(f"out must be {list(x_adv.shape)} {x_adv.dtype}, got {list(out.shape)} {out.dtype}")
            x_adv = out.copy_(x_adv)
        return x_adv, (neg_log_density if density else None)
    x_adv, neg_log_density = checked.ascend(
        mu, rho, grad_x_adv, x, noise, *scalars, sum_mu, sum_rho, draw, first_example, next_draw, density, out
    )
    assert x_adv is not None  # next_draw is given
    return x_adv, neg_log_density


def linf_step_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
) -> torch.Tensor:
    """A projected sign-gradient step, in place (PGD; paper, Eq. 3).

    Equivalent to::

        x_adv += step_size * grad.sign()
        x_adv.clamp_(x - epsilon, x + epsilon).clamp_(lower, upper)

    Args:
        x_adv: ``[B, ...]``, contiguous or channels_last; x's dtype, or bfloat16 or float16 when that is float32.
        grad: like x_adv, in x's dtype or a 16-bit one.
        x: the images ``[B, ...]``, float32 or float64.
        step_size: finite; negative descends.
        epsilon: radius of the ball, > 0.
        lower, upper: data bounds, lower < upper; may be infinite.

    Returns:
        x_adv.

    Raises:
        TypeError, ValueError: for a bad argument, by name; x_adv is then as it was.
    """
    if torch.compiler.is_compiling():
        custom_ops.linf_step(x_adv, grad, x, step_size, epsilon, lower, upper)
        return x_adv
    return checked.projected_step("linf_step", x_adv, grad, x, step_size, epsilon, lower, upper)


def l2_step_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
) -> torch.Tensor:
    """A step along the normalised gradient, projected onto the L2 ball, in place.

    Per example: ``d = x_adv + step_size * grad / ||grad||_2 - x``, then
    ``x_adv = clamp(x + d * min(1, epsilon / ||d||_2), lower, upper)``. An example whose gradient is zero does not
    move. Norms are summed in double, in a fixed order.

    Arguments, result and errors are those of :func:`linf_step_`; epsilon is an L2 radius.
    """
    if torch.compiler.is_compiling():
        custom_ops.l2_step(x_adv, grad, x, step_size, epsilon, lower, upper)
        return x_adv
    return checked.projected_step("l2_step", x_adv, grad, x, step_size, epsilon, lower, upper)


def momentum_linf_step_(
    x_adv: torch.Tensor,
    momentum: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float,
    decay: float = 1.0,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
) -> torch.Tensor:
    """The step of the momentum iterative method (MIM), in place.

    ``momentum = decay * momentum + grad / ||grad||_1`` per example, then :func:`linf_step_` along its sign.

    Args:
        momentum: like x, in x_adv's layout; changed.
        decay: finite, >= 0.

        The others, result and errors are those of :func:`linf_step_`.
    """
    if torch.compiler.is_compiling():
        custom_ops.momentum_linf_step(x_adv, momentum, grad, x, step_size, decay, epsilon, lower, upper)
        return x_adv
    return checked.projected_step(
        "momentum_linf_step", x_adv, grad, x, step_size, epsilon, lower, upper, decay=decay, momentum=momentum
    )


def uniform_start_(
    x_adv: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    *,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
    draw: int = 0,
    first_example: int = 0,
) -> torch.Tensor:
    """A random start: ``x_adv = clamp(x + epsilon * U(-1, 1), lower, upper)``, in place.

    Args:
        x_adv: ``[B, ...]``, contiguous or channels_last; x's dtype, or bfloat16 or float16 when that is float32.
        x: the images ``[B, ...]``, float32 or float64.
        noise, draw, first_example: as for :func:`tanh_gaussian_sample`; the words of the draw become uniforms.
        epsilon, lower, upper: as for :func:`linf_step_`.

    Returns:
        x_adv.

    Raises:
        TypeError, ValueError: for a bad argument, by name; x_adv is then as it was.
    """
    if torch.compiler.is_compiling():
        custom_ops.uniform_start(x_adv, x, noise, epsilon, lower, upper, draw, first_example)
        return x_adv
    return checked.uniform_start(x_adv, x, noise, epsilon, lower, upper, draw, first_example)


def normal(
    like: torch.Tensor, noise: torch.Tensor, *, samples: int = 1, draw: int = 0, first_example: int = 0
) -> torch.Tensor:
    """The standard normals that the sampler uses for a draw.

    Args:
        like: ``[B, ...]``, float32 or float64: gives shape, dtype, device and layout; its values are not read.
        noise, samples, draw, first_example: as for :func:`tanh_gaussian_sample`.

    Returns:
        ``[k, B, ...]`` in like's dtype.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """
    if torch.compiler.is_compiling():
        return custom_ops.normal(like, noise, samples, draw, first_example)
    return checked.normal(like, noise, samples, draw, first_example)


class _AffineRelu(torch.autograd.Function):
    """Keeps the output and not the input: it tells where the ReLU passes, and whoever comes next keeps it anyway."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, relu: bool) -> torch.Tensor:
        y = launch.affine_relu(x, scale, shift, relu)
        ctx.save_for_backward(y if relu else None, scale)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, scale = ctx.saved_tensors
        return launch.affine_relu_backward(grad_y, y, scale), None, None, None


def affine_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, relu: bool = True) -> torch.Tensor:
    """A per-channel affine map and a ReLU in one pass: what a frozen BatchNorm and the ReLU behind it come to.

    Equivalent to::

        y = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)  # for [N, C, H, W]
        y = torch.relu(y) if relu else y

    and, with ``scale = weight / (running_var + eps).sqrt()`` and ``shift = bias - running_mean * scale``, to
    ``torch.relu(F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps))``. Forward and backward read and
    write each tensor once, and y alone is kept for backward (nothing of x's size without ``relu``).

    Args:
        x: ``[N, C, ...]``, float32, bfloat16, float16 or float64, in any memory layout.
        scale: ``[C]``, float32, or float64 when x is; a constant.
        shift: like scale.
        relu: whether to cut off below zero.

    Returns:
        y in x's shape and dtype, and in its layout where that is contiguous or channels_last (else contiguous).
        Arithmetic is in scale's dtype, rounded once. y is differentiable, once, in x: the gradient is
        ``scale * grad_y``, zero where y is 0, as torch.relu's. A NaN stays a NaN.

    Raises:
        TypeError, ValueError: for an argument of the wrong type, shape, dtype or device, by name; for a scale or shift
            that requires grad while grad is enabled.
    """
    if torch.compiler.is_compiling():
        return custom_ops.affine_relu(x, scale, shift, relu)
    checked.check_affine_arguments(x, scale, shift, relu)
    if torch.is_grad_enabled() and x.requires_grad:
        return _AffineRelu.apply(x, scale, shift, relu)
    return launch.affine_relu(x, scale, shift, relu)


def _unpack_accumulated(
    accumulated: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if accumulated is None:
        return None, None
    if not isinstance(accumulated, (tuple, list)) or len(accumulated) != 2:
        raise TypeError("accumulated must be a pair of tensors, (sum_mu, sum_rho), or None")
    return accumulated[0], accumulated[1]
