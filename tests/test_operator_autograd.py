"""Operators under autograd: gradients by finite differences, noise drawn again, layouts, errors, version counters.

Everything here holds for the kernels and for adt_fast.reference alike.
"""

from __future__ import annotations

import itertools
import math

import layouts
import pytest
import torch
import torch.nn.functional as F

from adt_fast import NoiseStream, ops
from adt_fast._operators import native

BACKENDS = ("native", "reference")


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(native, "module", None)
    elif native.module is None:
        pytest.skip(f"no native module: {native.unavailable_because}")
    return request.param


LAYOUTS = {
    "contiguous": ((2, 2, 2, 3), layouts.contiguous),
    "channels_last": ((2, 2, 2, 3), layouts.channels_last),
    "channels_last_3d": ((1, 2, 2, 1, 3), layouts.channels_last),
    "sliced": ((2, 2, 2, 3), layouts.sliced),
    "transposed": ((2, 2, 5), layouts.transposed),
    "one element an example": ((3,), layouts.contiguous),
}


def parameters(shape, arrange, device: torch.device, dtype=torch.float64) -> list[torch.Tensor]:
    """x, mu, rho, all of which want a gradient; x stays clear of the bounds, where the clamp has a kink."""
    generator = torch.Generator().manual_seed(11)
    x = 0.4 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    mu, rho = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return [arrange(tensor.to(device, dtype)).requires_grad_() for tensor in (x, mu, rho)]


def stream(device: torch.device) -> NoiseStream:
    return NoiseStream(5, device, offset=9)


# ---- Finite differences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("log_offset", [0.0, 0.1], ids="offset {:g}".format)
@pytest.mark.parametrize("output", ["x_adv", "neg_log_density", "both"])
def test_gradcheck(output: str, log_offset: float, layout: str, device: torch.device) -> None:
    shape, arrange = LAYOUTS[layout]
    noise = stream(device).state

    def sample(x, mu, rho):
        drawn = ops.tanh_gaussian_sample(
            x, mu, rho, noise, samples=3, epsilon=0.3, draw=2, first_example=7, density=output != "x_adv",
            log_offset=log_offset,
        )  # fmt: skip
        return {"x_adv": drawn[:1], "neg_log_density": drawn[1:], "both": drawn}[output]

    assert torch.autograd.gradcheck(sample, parameters(shape, arrange, device))


@pytest.mark.parametrize("wanted", [s for n in (1, 2) for s in itertools.combinations(range(3), n)], ids=str)
def test_gradcheck_of_some_inputs(wanted: tuple[int, ...], device: torch.device) -> None:
    """Each input alone, and each pair: the others want no gradient."""
    inputs = parameters(*LAYOUTS["contiguous"], device)
    noise = stream(device).state
    for i, tensor in enumerate(inputs):
        tensor.requires_grad_(i in wanted)

    def sample(x, mu, rho):
        return ops.tanh_gaussian_sample(x, mu, rho, noise, samples=2, epsilon=0.3)

    assert torch.autograd.gradcheck(sample, inputs)


def test_gradcheck_where_samples_are_clamped(device: torch.device) -> None:
    """Far inside the clamped region the gradient of x_adv is zero, and the density's is not."""
    x, mu, rho = parameters(*LAYOUTS["contiguous"], device)
    noise = stream(device).state
    options = dict(samples=3, epsilon=0.3, lower=0.45, upper=0.55)
    outputs = ops.tanh_gaussian_sample(x, mu, rho, noise, **options)
    assert ((outputs[0] == 0.45) | (outputs[0] == 0.55)).any() and (outputs[0] - 0.5).abs().lt(0.05).any()
    assert torch.autograd.gradcheck(lambda *inputs: ops.tanh_gaussian_sample(*inputs, noise, **options), (x, mu, rho))


def test_unused_outputs_and_inputs_cost_nothing_but_none(device: torch.device) -> None:
    x, mu, rho = parameters(*LAYOUTS["contiguous"], device)
    x_adv, density = ops.tanh_gaussian_sample(x, mu.detach(), rho, stream(device).state, epsilon=0.3)
    assert density.requires_grad and x_adv.requires_grad
    density.sum().backward()  # no gradient reaches x_adv
    assert x.grad is None or not x.grad.any()
    assert mu.grad is None and rho.grad.any()


def test_without_grad_there_is_no_graph(device: torch.device) -> None:
    inputs, noise = parameters(*LAYOUTS["contiguous"], device), stream(device).state
    with torch.no_grad():
        outputs = ops.tanh_gaussian_sample(*inputs, noise, epsilon=0.3)
    assert not any(output.requires_grad for output in outputs)
    outputs = ops.tanh_gaussian_sample(*(tensor.detach() for tensor in inputs), noise, epsilon=0.3)
    assert not any(output.requires_grad for output in outputs)


# ---- The affine map and ReLU ---------------------------------------------------------------------------------------


def affine_arguments(shape, arrange, device: torch.device, dtype=torch.float64) -> list[torch.Tensor]:
    """x, which wants a gradient, scale and shift; y stays clear of zero, where ReLU has a kink."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.where(x.abs() < 0.1, 0.5, x)
    scale = torch.tensor([-1.5, 0.7, 1.1, -0.4, 2.0], dtype=torch.float64)[: shape[1]]
    return [
        arrange(x.to(device, dtype)).requires_grad_(),
        *(tensor.to(device, torch.promote_types(dtype, torch.float32)) for tensor in (scale, 0.01 * scale)),
    ]


AFFINE_LAYOUTS = {
    name: (shape, arrange) for name, (shape, arrange) in LAYOUTS.items() if len(shape) > 1
} | {"one pixel": ((3, 5), layouts.contiguous)}  # fmt: skip


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("layout", AFFINE_LAYOUTS)
def test_gradcheck_of_affine_relu(layout: str, relu: bool, device: torch.device) -> None:
    x, scale, shift = affine_arguments(*AFFINE_LAYOUTS[layout], device)
    assert torch.autograd.gradcheck(lambda x: ops.affine_relu(x, scale, shift, relu=relu), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_affine_relu_is_a_frozen_batch_norm_and_relu(dtype: torch.dtype, device: torch.device) -> None:
    """To float32's rounding, and to that of x's dtype; values and gradients."""
    shape, tolerance = (4, 5, 6, 7), 4 * torch.finfo(dtype).eps
    x, weight, bias = affine_arguments(shape, layouts.channels_last, device, dtype)
    mean, variance = torch.rand(2, 5, device=device) + 0.5
    scale = weight / (variance + 1e-5).sqrt()
    y = ops.affine_relu(x, scale, bias - mean * scale)
    expected = torch.relu(F.batch_norm(x.float(), mean, variance, weight, bias, eps=1e-5))
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    upstream = torch.randn_like(y)
    (gradient,), (wanted,) = (torch.autograd.grad(output, x, upstream.to(output.dtype)) for output in (y, expected))
    torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 40), (2, 1, 41)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_affine_relu_meets_zero_infinity_and_nan_as_torch_does(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Nothing passes at exactly zero; a NaN shows, and lets the gradient pass."""
    numbers = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan], dtype=dtype, device=device)
    x = numbers.repeat(13)[: math.prod(shape)].view(shape).requires_grad_()
    one = torch.ones(shape[1], dtype=torch.promote_types(dtype, torch.float32), device=device)
    for relu, plain in ((True, torch.relu), (False, lambda x: x * 1)):
        outs = (ops.affine_relu(x, one, 0 * one, relu=relu), plain(x))
        results = [(y, *torch.autograd.grad(y, x, torch.full_like(y, 3.0))) for y in outs]
        for ours, theirs in zip(*results):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
def test_affine_relu_keeps_its_output_alone(relu: bool, device: torch.device) -> None:
    """Not x."""
    x, scale, shift = affine_arguments((2, 5, 3, 4), layouts.channels_last, device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = ops.affine_relu(x, scale, shift, relu=relu)
    large = [tensor.data_ptr() for tensor in kept if tensor.shape == x.shape]
    assert large == ([y.data_ptr()] if relu else [])


def test_a_changed_output_of_affine_relu_is_noticed(device: torch.device) -> None:
    y = ops.affine_relu(*affine_arguments((2, 5, 3, 4), layouts.channels_last, device))
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("arrange", ["sliced", "transposed", "expanded", "contiguous", "channels_last"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
def test_affine_relu_with_upstream_gradients_in_any_layout(arrange: str, relu: bool, device: torch.device) -> None:
    x, scale, shift = affine_arguments((2, 5, 3, 4), layouts.channels_last, device)
    y = ops.affine_relu(x, scale, shift, relu=relu)
    upstream = getattr(layouts, arrange)(torch.randn_like(y))
    got, wanted = (
        torch.autograd.grad(y, x, u, retain_graph=True)[0] for u in (upstream, layouts.channels_last(upstream))
    )
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["scale", "shift"])
def test_affine_relu_refuses_coefficients_that_require_grad(name: str, device: torch.device) -> None:
    """While gradients are recorded: theirs would be missing."""
    x, scale, shift = affine_arguments((2, 5, 3, 4), layouts.contiguous, device)
    coefficients = {"scale": scale, "shift": shift}
    coefficients[name].requires_grad_()
    for tensor in (x, x.detach()):
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            ops.affine_relu(tensor, **coefficients)
    with torch.no_grad():
        ops.affine_relu(x, **coefficients)


def test_second_derivatives_of_affine_relu_are_refused(device: torch.device) -> None:
    x, scale, shift = affine_arguments((2, 5, 3, 4), layouts.contiguous, device)
    (gradient,) = torch.autograd.grad(ops.affine_relu(x, scale, shift).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---- Noise ---------------------------------------------------------------------------------------------------------


def test_backward_draws_the_forward_noise_again(device: torch.device) -> None:
    """Although the stream was advanced, and even reseeded, in between."""
    gradients = []
    for disturb in (False, True):
        inputs, noise = parameters(*LAYOUTS["contiguous"], device), stream(device)
        outputs = ops.tanh_gaussian_sample(*inputs, noise.state, samples=2, epsilon=0.3, draw=1)
        if disturb:
            noise.advance(4)
            noise.load_state_dict({"seed": 99, "offset": 0})
        gradients.append(torch.autograd.grad(sum(output.sum() for output in outputs), inputs))
    for undisturbed, disturbed in zip(*gradients):
        assert torch.equal(undisturbed, disturbed)


def test_backward_twice_with_a_retained_graph(device: torch.device) -> None:
    inputs = parameters(*LAYOUTS["contiguous"], device)
    x_adv, _ = ops.tanh_gaussian_sample(*inputs, stream(device).state, epsilon=0.3)
    first = torch.autograd.grad(x_adv.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(x_adv.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_two_draws_in_one_graph(device: torch.device) -> None:
    """Each has its own noise in backward."""
    mu, rho = parameters(*LAYOUTS["contiguous"], device)[1:]
    x, noise = torch.full_like(mu, 0.5).detach(), stream(device).state
    separate = [
        torch.autograd.grad(ops.tanh_gaussian_sample(x, mu, rho, noise, epsilon=0.3, draw=draw)[0].sum(), rho)[0]
        for draw in range(2)
    ]
    assert not torch.equal(*separate)
    together = sum(ops.tanh_gaussian_sample(x, mu, rho, noise, epsilon=0.3, draw=draw)[0].sum() for draw in range(2))
    torch.testing.assert_close(torch.autograd.grad(together, rho)[0], sum(separate))


# ---- Upstream gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrange", ["sliced", "transposed", "expanded", "scalar expanded", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_upstream_gradients_in_any_layout(arrange: str, dtype: torch.dtype, device: torch.device) -> None:
    """The same values, however they lie in memory, give the same gradients bit for bit."""
    shape, k = (2, 3, 5, 4), 3
    compute = torch.float32 if dtype == torch.bfloat16 else dtype
    inputs = parameters(shape, layouts.contiguous, device, compute)
    outputs = ops.tanh_gaussian_sample(*inputs, stream(device).state, samples=k, epsilon=0.3, dtype=dtype)
    upstream = [torch.randn(output.shape, device=device).to(output.dtype) for output in outputs]
    if arrange == "scalar expanded":  # what .sum().backward() sends
        upstream = [torch.ones((), dtype=u.dtype, device=device).expand_as(u) for u in upstream]
    elif arrange == "channels_last":
        upstream[0] = layouts.by_slab(layouts.channels_last, upstream[0])
    else:
        upstream = [getattr(layouts, arrange)(u) for u in upstream]
    dense = [u.contiguous() for u in upstream]
    got = torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)
    wanted = torch.autograd.grad(outputs, inputs, dense)
    for a, b in zip(got, wanted):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_x_adv_backward(dtype: torch.dtype, device: torch.device) -> None:
    """The gradient arrives in 16 bits, and everything after it is float32: the same as sending it in float32."""
    inputs = parameters((2, 3, 5, 4), layouts.channels_last, device, torch.float32)
    noise, options = stream(device).state, dict(samples=3, epsilon=0.3)
    half, half_density = ops.tanh_gaussian_sample(*inputs, noise, **options, dtype=dtype)
    wide, wide_density = ops.tanh_gaussian_sample(*inputs, noise, **options)
    assert half.dtype == dtype and half_density.dtype == torch.float32
    gradient = torch.randn_like(half)
    from_half = torch.autograd.grad(half, inputs, gradient)
    from_wide = torch.autograd.grad(wide, inputs, gradient.float())
    for a, b in zip(from_half, from_wide):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_flow_through_a_model_in_the_layout_of_x(layout: str, device: torch.device) -> None:
    shape, arrange = LAYOUTS[layout]
    inputs = parameters(shape, arrange, device)
    x_adv, _ = ops.tanh_gaussian_sample(*inputs, stream(device).state, samples=2, epsilon=0.3)
    batch = x_adv.flatten(0, 1)
    assert batch.data_ptr() == x_adv.data_ptr(), "folding the samples must not copy"
    if layout.startswith("channels_last"):
        assert batch.is_contiguous(memory_format=layouts.CHANNELS_LAST[batch.dim()])
    gradients = torch.autograd.grad(batch.square().sum(), inputs)
    assert all(gradient.shape == torch.Size(shape) for gradient in gradients)


# ---- Errors and version counters -----------------------------------------------------------------------------------


def test_second_derivatives_are_refused(device: torch.device) -> None:
    inputs = parameters(*LAYOUTS["contiguous"], device)
    x_adv, _ = ops.tanh_gaussian_sample(*inputs, stream(device).state, epsilon=0.3)
    (gradient,) = torch.autograd.grad(x_adv.square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("changed", range(3), ids=("x", "mu", "rho"))
def test_a_changed_input_is_noticed(changed: int, device: torch.device) -> None:
    inputs = parameters(*LAYOUTS["contiguous"], device)
    x_adv, _ = ops.tanh_gaussian_sample(*inputs, stream(device).state, epsilon=0.3)
    with torch.no_grad():
        inputs[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x_adv.sum().backward()


def ascent_step(written: dict, x: torch.Tensor, noise: torch.Tensor) -> None:
    ops.tanh_gaussian_ascent_step_(
        written["mu"], written["rho"], torch.ones(2, *x.shape, device=x.device), x, noise, epsilon=0.1, step_size=0.1,
        accumulated=(written["sum_mu"], written["sum_rho"]),
    )  # fmt: skip


def ascent_step_and_sample(written: dict, x: torch.Tensor, noise: torch.Tensor) -> None:
    ops.tanh_gaussian_ascent_step_and_sample_(
        written["mu"], written["rho"], torch.ones(2, *x.shape, device=x.device), x, noise, epsilon=0.1, step_size=0.1,
        accumulated=(written["sum_mu"], written["sum_rho"]), out=written["out"],
    )  # fmt: skip


def linf_step(written: dict, x: torch.Tensor, noise: torch.Tensor) -> None:
    ops.linf_step_(written["x_adv"], torch.ones_like(x), x, epsilon=0.1, step_size=0.1)


def l2_step(written: dict, x: torch.Tensor, noise: torch.Tensor) -> None:
    ops.l2_step_(written["x_adv"], torch.ones_like(x), x, epsilon=0.1, step_size=0.1)


def momentum_linf_step(written: dict, x: torch.Tensor, noise: torch.Tensor) -> None:
    ops.momentum_linf_step_(written["x_adv"], written["momentum"], torch.ones_like(x), x, epsilon=0.1, step_size=0.1)


def uniform_start(written: dict, x: torch.Tensor, noise: torch.Tensor) -> None:
    ops.uniform_start_(written["x_adv"], x, noise, epsilon=0.1)


@pytest.mark.parametrize(
    ("operator", "names"),
    [
        (ascent_step, ("mu", "rho", "sum_mu", "sum_rho")),
        (ascent_step_and_sample, ("mu", "rho", "sum_mu", "sum_rho", "out")),
        (linf_step, ("x_adv",)),
        (l2_step, ("x_adv",)),
        (momentum_linf_step, ("x_adv", "momentum")),
        (uniform_start, ("x_adv",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_autograd_notices_what_an_operator_changed(operator, names: tuple[str, ...], device: torch.device) -> None:
    """A graph that saved the old value must refuse to run backward, and the new value must be there."""
    x, noise = torch.full((2, 3, 5), 0.5, device=device), stream(device).state
    for watched in names:
        written = {name: torch.full_like(x, 0.25) for name in names}
        if "out" in written:
            written["out"] = torch.full((2, *x.shape), 0.25, device=device)
        weight = torch.ones((), device=device, requires_grad=True)
        loss = (weight * written[watched]).sum()  # saves the tensor for d/dweight
        old = written[watched].clone()
        operator(written, x, noise)
        assert not torch.equal(written[watched], old), f"{watched} did not change"
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_operators_run_in_inference_mode(device: torch.device) -> None:
    with torch.inference_mode():
        x, noise = torch.full((2, 3, 5), 0.5, device=device), stream(device).state
        written = {name: torch.full_like(x, 0.25) for name in ("mu", "rho", "sum_mu", "sum_rho", "x_adv", "momentum")}
        written["out"] = torch.empty(2, *x.shape, device=device)
        for operator in (
            ascent_step, ascent_step_and_sample, linf_step, l2_step, momentum_linf_step, uniform_start,
        ):  # fmt: skip
            operator(written, x, noise)
        ops.tanh_gaussian_sample(x, x, x, noise, epsilon=0.1)
        ops.affine_relu(x, torch.ones(3, device=device), torch.ones(3, device=device))
