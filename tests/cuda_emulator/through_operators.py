"""Runs the public operators with their GPU kernels emulated, and compares them with the CPU kernels of the same module.

    python through_operators.py MODULE

Where compare.py hands addresses to the kernels, here adt_fast does: shapes of one to five dimensions, in every layout.
Prints the number of cases and exits with 0, or fails with an AssertionError.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator

import layouts
import torch
from compare import CPU_DEVICE, EMULATED_DEVICE, load

from adt_fast import ops
from adt_fast._operators import launch, native
from adt_fast.noise import NoiseStream

SHAPES = ((3,), (2, 7), (2, 3, 5), (2, 3, 4, 4), (2, 3, 5, 3), (1, 5, 2, 2), (2, 3, 2, 2, 3), (1, 1, 1, 1, 1))
ARRANGEMENTS = (layouts.contiguous, layouts.channels_last, layouts.sliced, layouts.transposed, layouts.unaligned)
TYPES = (
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float64),
)
SAMPLES = 5
BALL = {"epsilon": 0.3}
Tensors = dict[str, torch.Tensor]


def use_device(device: int) -> None:
    """Makes CPU tensors run on the CPU's kernels or on the emulated ones, which need room for partial sums."""
    native.target = lambda _: (device, 0, 1)
    launch._density_buffers = _density_buffers if device == EMULATED_DEVICE else cpu_density_buffers


def _density_buffers(like: torch.Tensor, samples: int, shape: tuple, density: bool) -> tuple:
    if not density:
        return None, None
    rows = (samples, like.shape[0])
    return like.new_empty(rows), like.new_empty(*rows, native.module.density_partials(shape))


cpu_density_buffers = launch._density_buffers


def sample(x: torch.Tensor, storage: torch.dtype, log_offset: float = 0.0) -> Tensors:
    inputs = [tensor.clone().requires_grad_() for tensor in (x, x * 2 - 1, x * 4 - 3)]
    x_adv, density = ops.tanh_gaussian_sample(
        *inputs, noise(), samples=SAMPLES, dtype=storage, log_offset=log_offset, **BALL
    )
    grads = torch.autograd.grad((x_adv.double().square().sum(), density.sum()), inputs)
    return {"x_adv": x_adv, "density": density, **dict(zip(("grad_x", "grad_mu", "grad_rho"), grads))}


def sample_with_offset(x: torch.Tensor, storage: torch.dtype) -> Tensors:
    return sample(x, storage, log_offset=1e-8)


def ascent(x: torch.Tensor, storage: torch.dtype) -> Tensors:
    mu, rho, sums = dense(x * 2 - 1), dense(x * 4 - 3), (dense(x), dense(1 - x))
    grad = torch.stack([(x - 0.5) * (i - 2) for i in range(SAMPLES)]).to(storage)
    x_adv, density = ops.tanh_gaussian_ascent_step_and_sample_(
        mu, rho, grad, x, noise(), step_size=0.1, entropy_weight=0.01, log_offset=1e-8, accumulated=sums,
        density=True, **BALL,
    )  # fmt: skip
    return {"mu": mu, "rho": rho, "sum_mu": sums[0], "sum_rho": sums[1], "x_adv": x_adv, "density": density}


def steps(x: torch.Tensor, storage: torch.dtype) -> Tensors:
    grad, results = (x - 0.5).to(storage), {}
    for name, step in (("linf", ops.linf_step_), ("l2", ops.l2_step_)):
        results[name] = step(dense(1 - x).to(storage), grad, x, step_size=0.05, **BALL)
    results["momentum"], results["momentum linf"] = dense(x), dense(1 - x).to(storage)
    ops.momentum_linf_step_(results["momentum linf"], results["momentum"], grad, x, step_size=0.05, **BALL)
    return results


def random_starts(x: torch.Tensor, storage: torch.dtype) -> Tensors:
    start = ops.uniform_start_(torch.full_like(dense(x), torch.nan).to(storage), x, noise(), **BALL)
    return {"uniform": start, "normal": ops.normal(x, noise(), samples=SAMPLES)}


def affine(x: torch.Tensor, storage: torch.dtype) -> Tensors:
    if x.dim() < 2:
        return {}
    channels, results = torch.linspace(-1, 1, x.shape[1], dtype=x.dtype), {}
    for relu in (True, False):
        leaf = x.to(storage, copy=True).requires_grad_()
        y = ops.affine_relu(leaf, channels - 0.5, channels + 0.4, relu=relu)
        results[f"y {relu}"], (results[f"grad {relu}"],) = y.detach(), torch.autograd.grad(y, leaf, x.to(storage) - 0.5)
    return results


def noise() -> torch.Tensor:
    return NoiseStream(7, offset=2**33).state


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """A fresh tensor that may be changed in place, in the tensor's layout if it is a dense one."""
    layout = layouts.CHANNELS_LAST.get(tensor.dim())
    keep = layout is not None and tensor.is_contiguous(memory_format=layout)
    return tensor.clone(memory_format=layout if keep else torch.contiguous_format)


# What depends on the order of a sum over the example.
ROUNDED = ("density", "grad_rho", "l2", "momentum")


def check(operator: Callable[[torch.Tensor, torch.dtype], Tensors], x: torch.Tensor, storage: torch.dtype) -> None:
    use_device(CPU_DEVICE)
    expected = operator(x, storage)
    use_device(EMULATED_DEVICE)
    actual = operator(x, storage)
    for name, tensor in expected.items():
        options = {} if name in ROUNDED else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(
            actual[name], tensor, **options, msg=lambda text, name=name: f"{operator.__name__}, {name}: {text}"
        )
        assert actual[name].stride() == tensor.stride(), name


def inputs() -> Iterator[tuple[torch.Tensor, torch.dtype]]:
    for shape, arrange, (dtype, storage) in itertools.product(SHAPES, ARRANGEMENTS, TYPES):
        if arrange is layouts.channels_last and len(shape) not in layouts.CHANNELS_LAST:
            continue
        generator = torch.Generator().manual_seed(0)
        yield arrange(torch.rand(shape, dtype=dtype, generator=generator)), storage


def main() -> None:
    native.module = load(sys.argv[1])
    count = 0
    for order in ("forward", "reverse"):
        os.environ["ADT_EMULATED_ORDER"] = order
        for x, storage in inputs():
            for operator in (sample, sample_with_offset, ascent, steps, random_starts, affine):
                check(operator, x, storage)
                count += 1
    print(f"{count} cases agree")


if __name__ == "__main__":
    main()
