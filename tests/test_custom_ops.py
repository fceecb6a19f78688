"""The operators as torch.library custom operators: opcheck, and torch.compile without graph breaks.

A compiled function must give what it gives eagerly, bit for bit: it runs the same kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import layouts
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from adt_fast import NoiseStream, ops
from adt_fast._operators import custom_ops

SHAPE, SAMPLES = (2, 3, 5, 4), 2
BALL = dict(epsilon=0.1, lower=0.0, upper=1.0)
BALL_VALUES = tuple(BALL.values())


def tensor(device: torch.device, shape: tuple[int, ...] = SHAPE, seed: int = 0, arrange=layouts.contiguous):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    if len(shape) < len(SHAPE):
        return values
    return arrange(values) if len(shape) == len(SHAPE) else layouts.by_slab(arrange, values)


def noise(device: torch.device) -> torch.Tensor:
    return NoiseStream(5, device, offset=9).state


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


# ---- opcheck -------------------------------------------------------------------------------------------------------


def sample_arguments(device, arrange, density=True, dtype=torch.float32, log_offset=0.0, grad=True):
    inputs = [tensor(device, seed=i, arrange=arrange).requires_grad_(grad) for i in range(3)]
    return (*inputs, noise(device), SAMPLES, *BALL_VALUES, 1, 3, dtype, density, log_offset)


def sample_backward_arguments(device, arrange, density=True, log_offset=0.0):
    inputs = [tensor(device, seed=i, arrange=arrange) for i in range(3)]
    grad_density = tensor(device, (SAMPLES, SHAPE[0])) if density else None
    return (tensor(device, (SAMPLES, *SHAPE)), grad_density, *inputs, noise(device), *BALL_VALUES, 1, 3, log_offset)


def ascent_arguments(device, arrange, accumulated=True, and_sample=False, density=True):
    mu, rho, x, *sums = (tensor(device, seed=i, arrange=arrange) for i in range(5))
    grad = tensor(device, (SAMPLES, *SHAPE), arrange=arrange)
    common = (mu, rho, grad, x, noise(device), *BALL_VALUES, 0.1, 0.01, "mean", "adam", 1.0, 0.0)
    return (*common, *(sums if accumulated else (None, None)), 1, 3, *((2, density) if and_sample else ()))


def step_arguments(device, arrange, momentum=False):
    x_adv, velocity, grad, x = (tensor(device, seed=i, arrange=arrange) for i in range(4))
    return (x_adv, *((velocity,) if momentum else ()), grad, x, 0.05, *((0.9,) if momentum else ()), *BALL_VALUES)


def uniform_start_arguments(device, arrange):
    return (tensor(device, arrange=arrange), tensor(device, seed=1, arrange=arrange), noise(device), *BALL_VALUES, 1, 3)


def normal_arguments(device, arrange):
    return (tensor(device, arrange=arrange), noise(device), SAMPLES, 1, 3)


def affine_arguments(device, arrange, relu=True, dtype=torch.float32, grad=True):
    x = (tensor(device, arrange=arrange) - 0.5).to(dtype).requires_grad_(grad)
    return (x, *(tensor(device, SHAPE[1:2], seed=i) for i in (1, 2)), relu)


def affine_backward_arguments(device, arrange, relu=True):
    y = tensor(device, seed=1, arrange=arrange) if relu else None
    return (tensor(device, arrange=arrange), y, tensor(device, SHAPE[1:2], seed=2))


OPCHECKS = {
    "tanh_gaussian_sample": [
        sample_arguments,
        lambda device, arrange: sample_arguments(device, arrange, density=False),
        lambda device, arrange: sample_arguments(device, arrange, dtype=torch.bfloat16),
        lambda device, arrange: sample_arguments(device, arrange, log_offset=1e-8),
        lambda device, arrange: sample_arguments(device, arrange, grad=False),
    ],
    "tanh_gaussian_sample_backward": [
        sample_backward_arguments,
        lambda device, arrange: sample_backward_arguments(device, arrange, density=False),
        lambda device, arrange: sample_backward_arguments(device, arrange, log_offset=1e-8),
    ],
    "tanh_gaussian_ascent_step": [
        ascent_arguments,
        lambda device, arrange: ascent_arguments(device, arrange, accumulated=False),
    ],
    "tanh_gaussian_ascent_step_and_sample": [
        lambda device, arrange: ascent_arguments(device, arrange, and_sample=True),
        lambda device, arrange: ascent_arguments(device, arrange, and_sample=True, accumulated=False, density=False),
    ],
    "linf_step": [step_arguments],
    "l2_step": [step_arguments],
    "momentum_linf_step": [lambda device, arrange: step_arguments(device, arrange, momentum=True)],
    "uniform_start": [uniform_start_arguments],
    "normal": [normal_arguments],
    "affine_relu": [
        affine_arguments,
        lambda device, arrange: affine_arguments(device, arrange, relu=False),
        lambda device, arrange: affine_arguments(device, arrange, dtype=torch.bfloat16),
        lambda device, arrange: affine_arguments(device, arrange, grad=False),
    ],
    "affine_relu_backward": [
        affine_backward_arguments,
        lambda device, arrange: affine_backward_arguments(device, arrange, relu=False),
    ],
}  # fmt: skip

OPERATORS = [name for name, value in vars(custom_ops).items() if isinstance(value, torch.library.CustomOpDef)]


def test_every_custom_operator_is_checked() -> None:
    registered = {name for name in OPERATORS if not name.startswith("_")}
    assert registered == set(OPCHECKS)


@pytest.mark.parametrize("arrange", [layouts.contiguous, layouts.channels_last], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("operator", "arguments"),
    [pytest.param(name, make, id=f"{name}-{i}") for name, makes in OPCHECKS.items() for i, make in enumerate(makes)],
)
def test_opcheck(operator: str, arguments: Callable, arrange: Callable, device: torch.device) -> None:
    """Schema, fake kernel, autograd registration, and AOTDispatch with dynamic shapes."""
    torch.library.opcheck(getattr(torch.ops.adt_fast, operator).default, arguments(device, arrange))


# ---- torch.compile -------------------------------------------------------------------------------------------------


def sample(x, mu, rho, noise, grad, out):
    return ops.tanh_gaussian_sample(x, mu, rho, noise, samples=SAMPLES, **BALL, draw=1, first_example=7)


def sample_with_offset(x, mu, rho, noise, grad, out):
    return ops.tanh_gaussian_sample(x, mu, rho, noise, samples=SAMPLES, **BALL, log_offset=0.1)


def sample_without_density(x, mu, rho, noise, grad, out):
    x_adv, density = ops.tanh_gaussian_sample(
        x, mu, rho, noise, samples=SAMPLES, **BALL, density=False, dtype=torch.bfloat16
    )
    assert density is None
    return x_adv.flatten(0, 1).float().mean(0)


def ascent_step(x, mu, rho, noise, grad, out):
    ops.tanh_gaussian_ascent_step_(
        mu, rho, grad, x, noise, **BALL, step_size=0.3, entropy_weight=0.01, entropy_reduction="mean"
    )
    return mu * 2  # whoever reads mu afterwards must see the step


def ascent_step_with_sums(x, mu, rho, noise, grad, out):
    sums = torch.zeros_like(mu), torch.zeros_like(rho)
    for draw in range(2):
        ops.tanh_gaussian_ascent_step_(
            mu, rho, grad, x, noise, **BALL, step_size=0.3, update="sign", accumulated=sums, draw=draw
        )
    return sums


def ascent_step_and_sample(x, mu, rho, noise, grad, out):
    return ops.tanh_gaussian_ascent_step_and_sample_(
        mu, rho, grad, x, noise, **BALL, step_size=0.3, log_offset=0.1, next_draw=4, density=True
    )


def ascent_step_and_sample_into_out(x, mu, rho, noise, grad, out):
    x_adv, _ = ops.tanh_gaussian_ascent_step_and_sample_(mu, rho, grad, x, noise, **BALL, step_size=0.3, out=out)
    return x_adv + 1


def linf_step(x, mu, rho, noise, grad, out):
    return ops.linf_step_(mu, grad[0], x, step_size=0.05, **BALL)


def l2_step(x, mu, rho, noise, grad, out):
    return ops.l2_step_(mu, grad[0], x, step_size=0.05, **BALL) * 2


def momentum_linf_step(x, mu, rho, noise, grad, out):
    for _ in range(2):
        ops.momentum_linf_step_(mu, rho, grad[0], x, step_size=0.05, decay=0.9, **BALL)
    return rho


def uniform_start(x, mu, rho, noise, grad, out):
    return ops.uniform_start_(mu, x, noise, **BALL, draw=1)


def normal(x, mu, rho, noise, grad, out):
    return ops.normal(x, noise, samples=3, draw=1, first_example=7)


def affine_relu(x, mu, rho, noise, grad, out):
    scale, shift = rho[0, :, 0, 0], rho[0, :, 1, 1]
    return ops.affine_relu(mu - 0.5, scale, shift) + ops.affine_relu(x, scale, shift, relu=False)


FUNCTIONS = (
    sample, sample_with_offset, sample_without_density, ascent_step, ascent_step_with_sums,
    ascent_step_and_sample, ascent_step_and_sample_into_out, linf_step, l2_step, momentum_linf_step, uniform_start,
    normal, affine_relu,
)  # fmt: skip


def function_arguments(device: torch.device, arrange=layouts.contiguous, batch: int = SHAPE[0]) -> list[torch.Tensor]:
    """x, mu, rho, noise, grad, out."""
    shape = (batch, *SHAPE[1:])
    x, mu, rho = (tensor(device, shape, seed=i, arrange=arrange) for i in range(3))
    grad = tensor(device, (SAMPLES, *shape), seed=3, arrange=arrange) - 0.5
    return [x, mu, rho, noise(device), grad, torch.full_like(grad, math.nan)]


def assert_same_effect(function: Callable, compiled: Callable, arguments: list[torch.Tensor]) -> None:
    """The same results and the same arguments afterwards, bit for bit and stride for stride."""
    eager_arguments = [argument.clone() for argument in arguments]  # clone keeps dense strides
    eager, result = function(*eager_arguments), compiled(*arguments)
    as_list = lambda value: list(value) if isinstance(value, tuple) else [value]  # noqa: E731
    for a, b in zip(as_list(eager) + eager_arguments, as_list(result) + arguments):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        assert a.stride() == b.stride() and a.dtype == b.dtype


@pytest.mark.parametrize("arrange", [layouts.contiguous, layouts.channels_last], ids=lambda f: f.__name__)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_compiled_equals_eager(function: Callable, arrange: Callable, device: torch.device) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same_effect(function, compiled, function_arguments(device, arrange))


@pytest.mark.parametrize("function", [sample, ascent_step_and_sample_into_out], ids=lambda f: f.__name__)
def test_compiled_by_inductor_equals_eager(function: Callable, device: torch.device) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="inductor")
    with torch.no_grad():
        assert_same_effect(function, compiled, function_arguments(device, layouts.channels_last))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_compiled_for_every_batch_size_at_once(function: Callable, device: torch.device) -> None:
    compilations = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=compilations, dynamic=True)
    with torch.no_grad():
        counts = []
        for batch in (6, 7, 11):  # none of them a size that means something else
            assert_same_effect(function, compiled, function_arguments(device, batch=batch))
            counts.append(compilations.frame_count)
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2, "another batch size was compiled again"


@pytest.mark.parametrize("log_offset", [0.0, 0.1], ids="offset {:g}".format)
@pytest.mark.parametrize(
    ("arrange", "dtype", "backend"),
    [
        (layouts.contiguous, torch.float32, "aot_eager"),
        (layouts.channels_last, torch.float32, "aot_eager"),
        (layouts.sliced, torch.float32, "aot_eager"),
        (layouts.contiguous, torch.float16, "aot_eager"),
        (layouts.channels_last, torch.float16, "inductor"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_compiled_backward_equals_eager(
    arrange: Callable, dtype: torch.dtype, backend: str, log_offset: float, device: torch.device
) -> None:
    def loss(x, mu, rho, noise):
        x_adv, density = ops.tanh_gaussian_sample(
            x, mu, rho, noise, samples=SAMPLES, **BALL, dtype=dtype, log_offset=log_offset
        )
        return (x_adv.float() * torch.arange(x_adv.numel(), device=device).view_as(x_adv)).sum() + density.sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        inputs = [tensor(device, seed=i, arrange=arrange).requires_grad_() for i in range(3)]
        function(*inputs, noise(device)).backward()
        gradients.append([leaf.grad for leaf in inputs])
    for eager, compiled in zip(*gradients):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(
    "arrange", [layouts.contiguous, layouts.channels_last, layouts.sliced], ids=lambda f: f.__name__
)
def test_compiled_backward_of_affine_relu_equals_eager(
    arrange: Callable, backend: str, relu: bool, device: torch.device
) -> None:
    scale, shift = (tensor(device, SHAPE[1:2], seed=i) - 0.5 for i in (1, 2))

    def loss(x):
        y = ops.affine_relu(x, scale, shift, relu=relu)
        return (y * torch.arange(y.numel(), device=device).view_as(y)).sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        x = tensor(device, arrange=arrange).requires_grad_()
        function(x).backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["scale", "shift"])
def test_coefficients_that_require_grad_are_refused_under_compile(name: str, device: torch.device) -> None:
    """When it is compiled; and by the custom operator itself."""
    scale, shift = (tensor(device, SHAPE[1:2]).requires_grad_(key == name) for key in ("scale", "shift"))

    def loss(x):
        return ops.affine_relu(x, scale, shift).sum()

    x = tensor(device).requires_grad_()
    with pytest.raises(Exception, match=f"{name} gets no gradient"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    with pytest.raises(ValueError, match=f"{name} gets no gradient"):
        torch.ops.adt_fast.affine_relu(x, scale, shift, True)


@pytest.mark.parametrize("output", [0, 1], ids=["x_adv alone", "density alone"])
@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_compiled_partial_backward(needs: tuple[int, ...], output: int, device: torch.device) -> None:
    """One output used, and not every input in want of a gradient."""
    if output == 1 and needs == (0,):
        needs = (0, 1)  # the density does not depend on x

    def loss(x, mu, rho, noise):
        return ops.tanh_gaussian_sample(x, mu, rho, noise, samples=SAMPLES, **BALL)[output].square().sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        inputs = [tensor(device, seed=i).requires_grad_(i in needs) for i in range(3)]
        function(*inputs, noise(device)).backward()
        gradients.append([inputs[i].grad for i in needs])
    for eager, compiled in zip(*gradients):
        eager, compiled = (torch.zeros(()) if g is None else g for g in (eager, compiled))
        assert torch.equal(*torch.broadcast_tensors(eager, compiled))


def test_compiled_backward_draws_the_forward_noise_again(device: torch.device) -> None:
    """Although the graph advances the stream in between."""
    stream = NoiseStream(5, device)

    def loss(x, mu, rho):
        x_adv, density = ops.tanh_gaussian_sample(x, mu, rho, stream.state, samples=SAMPLES, **BALL)
        stream.advance(3)
        return (x_adv * x_adv).sum() + density.sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        stream.load_state_dict({"seed": 5, "offset": 0})
        inputs = [tensor(device, seed=i).requires_grad_() for i in range(3)]
        value = function(*inputs)
        assert stream.offset == 3
        value.backward()
        results.append([leaf.grad for leaf in inputs])
    for eager, compiled in zip(*results):
        assert torch.equal(eager, compiled)


def test_a_compiled_loop_draws_new_noise_each_time(device: torch.device) -> None:
    """NoiseStream.advance inside of the graph: the whole inner loop, three calls in a row."""
    stream = NoiseStream(5, device)

    def inner_loop(x, mu, rho):
        x_adv, _ = ops.tanh_gaussian_sample(x, mu, rho, stream.state, samples=SAMPLES, **BALL, density=False)
        for draw in range(2):
            grad = torch.sin(x_adv * 50)
            x_adv, _ = ops.tanh_gaussian_ascent_step_and_sample_(
                mu, rho, grad, x, stream.state, **BALL, step_size=0.1, draw=draw
            )
        stream.advance(3)
        return x_adv

    def three_calls(function):
        stream.load_state_dict({"seed": 5, "offset": 0})
        x, mu, rho = (tensor(device, seed=i) for i in range(3))
        return [*(function(x, mu, rho).clone() for _ in range(3)), mu, rho, stream.state.clone()]

    with torch.no_grad():
        eager = three_calls(inner_loop)
        compiled = three_calls(torch.compile(inner_loop, fullgraph=True, backend="aot_eager"))
    assert not torch.equal(eager[0], eager[1])
    for a, b in zip(eager, compiled):
        assert torch.equal(a, b)


def test_exported_equals_eager(device: torch.device) -> None:
    class Sampler(torch.nn.Module):
        def forward(self, x, mu, rho, noise):
            return ops.tanh_gaussian_sample(x, mu, rho, noise, samples=SAMPLES, **BALL)

    arguments = tuple(function_arguments(device)[:4])
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Sampler(), arguments, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}, None)
    ).module()
    for size in (2, 7):
        arguments = tuple(function_arguments(device, batch=size)[:4])
        for eager, from_export in zip(Sampler()(*arguments), exported(*arguments)):
            assert torch.equal(eager, from_export)


def test_bad_arguments_are_refused_under_compile(device: torch.device) -> None:
    """When the operator runs; nothing is changed."""
    x, mu, rho, state, grad, out = function_arguments(device)
    before = mu.clone()

    def negative_epsilon(x, mu, grad):
        return ops.linf_step_(mu, grad[0], x, step_size=0.1, epsilon=-1.0)

    with torch.no_grad(), pytest.raises(ValueError, match="epsilon"):
        torch.compile(negative_epsilon, fullgraph=True, backend="aot_eager")(x, mu, grad)
    assert torch.equal(mu, before)


@pytest.mark.parametrize("wrong", ["dtype", "shape"])
def test_a_wrong_out_is_refused_under_compile(wrong: str, device: torch.device) -> None:
    """As it is eagerly: neither cast nor broadcast."""
    x, mu, rho, state, grad, out = function_arguments(device)
    out = out.to(torch.float64) if wrong == "dtype" else torch.empty(3, *out.shape, device=device)
    before = mu.clone()
    for function in (ascent_step_and_sample_into_out, torch.compile(ascent_step_and_sample_into_out, fullgraph=True,
                                                                    backend="aot_eager")):  # fmt: skip
        with torch.no_grad(), pytest.raises((ValueError, TypeError, RuntimeError), match="out"):
            function(x, mu, rho, state, grad, out)
        assert torch.equal(mu, before)
