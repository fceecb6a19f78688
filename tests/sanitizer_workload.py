"""Runs every CPU kernel over odd shapes, unaligned views, layouts, dtypes, threads and instruction sets.

A program for test_cpu_sanitizers.py, which runs it on a module built with AddressSanitizer and
UndefinedBehaviorSanitizer. Every tensor is an allocation of its own and of the exact size, so that one element too far
is outside of it.
"""

from __future__ import annotations

import itertools
import math

import layouts
import torch

from adt_fast import NoiseStream, ops
from adt_fast._operators import native, winograd

SHAPES = [
    (1,), (3,), (2, 1), (2, 3), (3, 63), (2, 65), (1, 1025), (2, 3, 17), (2, 3, 5, 5), (1, 5, 3, 3), (2, 1, 6, 7),
    (2, 3, 1, 1), (1, 3, 33, 31), (2, 20, 4, 4), (1, 2, 3, 2, 5), (0, 3, 4), (9, 3, 47, 41),
]  # fmt: skip
DTYPES = [
    (torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
    (torch.float64, torch.float64),
]  # fmt: skip
CONVOLUTIONS = [
    # images [B, H, W], then channels in and out
    ((1, 1, 1), 1, 1), ((2, 4, 4), 3, 5), ((1, 5, 3), 16, 17), ((3, 9, 10), 17, 33), ((2, 8, 8), 64, 48),
    ((5, 19, 23), 5, 70), ((0, 4, 4), 3, 3),
]  # fmt: skip
EXTREMES = (0.0, -0.0, 1e-45, 50.0, -50.0, 1e30, -1e30, math.inf, -math.inf, math.nan)


def values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random numbers with a few that are not."""
    tensor = torch.randn(shape, dtype=torch.float64)
    flat = tensor.view(-1)
    places = torch.randperm(flat.numel())[: flat.numel() // 7]
    flat[places] = torch.tensor(EXTREMES, dtype=torch.float64).repeat(len(places) // len(EXTREMES) + 1)[: len(places)]
    return tensor.to(dtype)


def run_all(shape: tuple[int, ...], arrange, compute: torch.dtype, storage: torch.dtype, k: int) -> None:
    """Each operator once."""

    def new(dtype: torch.dtype = compute, samples: int | None = None) -> torch.Tensor:
        if samples is None:
            return arrange(values(shape, dtype))
        return layouts.by_slab(arrange, values((samples, *shape), dtype))

    stream = NoiseStream(-1, offset=2**32 - 1)
    noise, options = stream.state, dict(epsilon=0.1, draw=1, first_example=2**32 - 10)
    ops.normal(new(), noise, samples=k, draw=1)
    leaves = [new().requires_grad_() for _ in range(3)]
    for density, log_offset in ((True, 0.0), (True, 1e-8), (False, 0.0)):
        outputs = ops.tanh_gaussian_sample(
            *leaves, noise, samples=k, dtype=storage, density=density, log_offset=log_offset, **options
        )
        torch.autograd.grad(sum(output.sum() for output in outputs if output is not None), leaves)
    for update, sums in itertools.product(("adam", "sign"), ((new(), new()), None)):
        step = dict(step_size=0.3, update=update, accumulated=sums, entropy_weight=0.01, log_offset=1e-8, **options)
        ops.tanh_gaussian_ascent_step_(new(), new(), new(storage, k), new(), noise, **step)
        ops.tanh_gaussian_ascent_step_and_sample_(
            new(), new(), new(storage, k), new(), noise, **step, density=sums is None, out=new(storage, k)
        )
    for gradient in {compute, storage}:
        ops.linf_step_(new(storage), new(gradient), new(), step_size=0.1, epsilon=0.1)
        ops.l2_step_(new(storage), new(gradient), new(), step_size=0.1, epsilon=0.1)
        ops.momentum_linf_step_(new(storage), new(), new(gradient), new(), step_size=0.1, epsilon=0.1)
    ops.uniform_start_(new(storage), new(), noise, **options)
    if len(shape) > 1:
        scale, shift = values((2, shape[1]), compute)
        for relu in (True, False):
            x = new(storage).requires_grad_()
            torch.autograd.grad(ops.affine_relu(x, scale, shift, relu=relu), x, new(storage))


def run_convolutions() -> None:
    """And their weights, aligned or not."""
    for (images, *channels), dtype in itertools.product(CONVOLUTIONS, (torch.float32, torch.bfloat16, torch.float16)):
        in_channels, out_channels = channels
        batch, *size = images
        for shift, threads in ((0, 3), (1, 1)):
            torch.set_num_threads(threads)
            pixels = values((batch * math.prod(size) * in_channels + shift,), dtype)[shift:]
            x = pixels.view(batch, *size, in_channels).permute(0, 3, 1, 2)
            weight = values((math.prod(channels) * 9 + shift,), torch.float32)[shift:].view(*channels, 3, 3)
            transformed = winograd.transform_weights(weight, transposed=True)
            bias = values((out_channels + shift,), torch.float32)[shift:]
            winograd.conv3x3(x, transformed, out_channels, bias if shift else None, relu=bool(shift))
            winograd.transform_weights(weight)


def main() -> None:
    torch.manual_seed(0)
    sets = []
    for name in native.module.instruction_sets().split(","):
        try:
            native.module.use_instruction_set(name)
        except ValueError:  # built, but this CPU lacks it
            continue
        sets.append(name)
        run_convolutions()
        for shape, (compute, storage) in itertools.product(SHAPES, DTYPES):
            arrangements = [layouts.contiguous, layouts.unaligned]
            if len(shape) in layouts.CHANNELS_LAST:
                arrangements.append(layouts.channels_last)
            for arrange, threads in zip(arrangements, itertools.cycle((1, 3))):
                torch.set_num_threads(threads)
                run_all(shape, arrange, compute, storage, k=2)
    print("ran on", *sets)


if __name__ == "__main__":
    main()
