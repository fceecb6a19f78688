"""The operators where numbers run out: saturated tanh, vanishing sigma, bounds met exactly, NaN, 16-bit edges."""

from __future__ import annotations

import itertools
import math

import independent_noise
import independent_operators as truth
import numpy as np
import plain_operators as plain
import pytest
import torch
from independent_operators import Ball, TanhGaussian
from tolerance import as_real, assert_as_accurate_as_plain

from adt_fast import NoiseStream, ops
from adt_fast._operators import native

EVERYWHERE = Ball(8 / 255, -math.inf, math.inf)
MUS = (-50.0, -9.5, -1.0, -1e-6, 0.0, 1e-6, 0.3, 9.5, 50.0)
RHOS = (-60.0, -37.0, -20.0, -16.5, -16.0, -15.5, -1.0, 0.0, 0.541324854612918, 1.0, 20.0, 60.0)
XS = (-3.0, -0.0, 0.0, 0.5, 1.0, 4.0)

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels, and the plain PyTorch that stands in for them: both must hold."""
    if request.param == "reference":
        monkeypatch.setattr(native, "module", None)
    return request.param


def extreme_parameters(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """(x, mu, rho) with every combination of the values above, one row for each (x, mu)."""
    grid = torch.tensor(list(itertools.product(XS, MUS, RHOS)), dtype=dtype, device=device)
    return tuple(grid[:, i].clone().view(len(XS) * len(MUS), len(RHOS)) for i in range(3))


def noise(device: torch.device, seed: int = 3) -> torch.Tensor:
    return NoiseStream(seed, device).state


offsets = pytest.mark.parametrize("log_offset", [0.0, 1e-8, 1e-2], ids="offset {:g}".format)


@dtypes
@offsets
@pytest.mark.parametrize("ball", [EVERYWHERE, Ball(8 / 255), Ball(3.0)], ids=str)
def test_sampling_is_right_at_the_extremes(
    backend, ball: Ball, log_offset: float, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = extreme_parameters(dtype, device)
    k, shape = 4, tuple(inputs[0].shape)
    r = independent_noise.normals(shape, seed=3, samples=k)
    drawn = ops.tanh_gaussian_sample(*inputs, noise(device), samples=k, log_offset=log_offset, **ball._asdict())
    eager = plain.sample(*inputs, torch.from_numpy(r.astype(np.float64)).to(device, dtype), ball, log_offset)
    expected = TanhGaussian(*map(as_real, inputs), r, ball, log_offset)
    for i, name in enumerate(("x_adv", "neg_log_density")):
        for row in range(shape[0]):  # each row has a scale of its own
            assert_as_accurate_as_plain(
                f"{name}[:, {row}]", drawn[i][:, row], eager[i][:, row], getattr(expected, name)()[:, row], dtype,
                expected.magnitudes()[name][:, row],
            )  # fmt: skip


@dtypes
@offsets
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e15], ids="gradient {:.0e}".format)
def test_gradients_are_right_at_the_extremes(
    backend, scale: float, log_offset: float, dtype: torch.dtype, device: torch.device
) -> None:
    x, mu, rho = (tensor.requires_grad_() for tensor in extreme_parameters(dtype, device))
    k, shape = 4, tuple(x.shape)
    r = independent_noise.normals(shape, seed=3, samples=k)
    upstream = (
        scale * torch.linspace(-1, 1, k * x.numel(), dtype=dtype, device=device).view(k, *shape),
        scale * torch.linspace(1, 2, k * shape[0], dtype=dtype, device=device).view(k, shape[0]),
    )
    options = dict(samples=k, log_offset=log_offset, **EVERYWHERE._asdict())
    outputs = ops.tanh_gaussian_sample(x, mu, rho, noise(device), **options)
    gradients = dict(zip(("x", "mu", "rho"), torch.autograd.grad(outputs, (x, mu, rho), upstream)))
    draw = TanhGaussian(*map(as_real, (x, mu, rho)), r, EVERYWHERE, log_offset)
    eager = plain.sample_gradients(
        x, mu, rho, torch.from_numpy(r.astype(np.float64)).to(device, dtype), EVERYWHERE, *upstream, log_offset
    )
    expected, magnitudes = draw.gradients(*map(as_real, upstream)), draw.magnitudes(*map(as_real, upstream))
    for name, gradient in gradients.items():
        for column in range(shape[1]):  # each rho has a scale of its own
            assert_as_accurate_as_plain(
                f"d/d{name}[:, {column}]", gradient[:, column], eager[name][:, column], expected[name][:, column],
                dtype, magnitudes[name][:, column],
            )  # fmt: skip


@dtypes
def test_an_offset_keeps_saturated_elements_from_counting(backend, dtype: torch.dtype, device: torch.device) -> None:
    """At u = +-12 and sigma = 9e-27 the published 1e-8 drowns both 1 - tanh(u)^2 = 1.5e-10 and sigma.

    So the density's gradient all but vanishes, where without offset it is -2 tanh(u) and 1; x_adv is the same.
    """
    mu = torch.tensor([[12.0, -12.0]], dtype=dtype, device=device).repeat(3, 20)
    x, mu, rho = (tensor.requires_grad_() for tensor in (torch.full_like(mu, 0.5), mu, torch.full_like(mu, -60.0)))
    x_advs, x_adv_gradients = [], []
    for log_offset in (0.0, 1e-8):
        x_adv, density = ops.tanh_gaussian_sample(x, mu, rho, noise(device), epsilon=0.1, log_offset=log_offset)
        d_mu, d_rho = torch.autograd.grad(density.sum(), (mu, rho), retain_graph=True)
        derivative, sigma = math.cosh(12) ** -2, math.exp(-60)
        expected_mu = -2 * mu.sign() * math.tanh(12) * derivative / (derivative + log_offset)
        expected_rho = torch.full_like(rho, sigma / (sigma + log_offset))
        tolerance = 50 * torch.finfo(dtype).eps  # exp(-24) magnifies the rounding of its exponent 24 times
        torch.testing.assert_close(d_mu, expected_mu, rtol=tolerance, atol=0)
        torch.testing.assert_close(d_rho, expected_rho, rtol=2 * tolerance, atol=1e-24)  # r d/du is part of it
        x_advs.append(x_adv)
        x_adv_gradients.append(torch.autograd.grad(x_adv.sum(), (x, mu, rho)))
    assert torch.equal(*x_advs)
    assert all(torch.equal(*pair) for pair in zip(*x_adv_gradients))


@dtypes
def test_an_offset_too_small_to_be_a_number_counts_as_none(backend, dtype: torch.dtype, device: torch.device) -> None:
    """Where it, and 1 - tanh(u)^2 and sigma beside it, would underflow."""
    results = []
    for log_offset in (0.0, 5e-324):
        x, mu, rho = (tensor.requires_grad_() for tensor in extreme_parameters(dtype, device))
        outputs = ops.tanh_gaussian_sample(x, mu, rho, noise(device), log_offset=log_offset, **EVERYWHERE._asdict())
        results.append((*outputs, *torch.autograd.grad(sum(output.sum() for output in outputs), (x, mu, rho))))
    assert all(torch.equal(*pair) for pair in zip(*results))


@dtypes
def test_ascent_is_finite_at_the_extremes(backend, dtype: torch.dtype, device: torch.device) -> None:
    """Adam moves by at most the step size, wherever it stands; a zero gradient does not move it."""
    for grad_scale, entropy_weight, log_offset in itertools.product(
        (0.0, 1e-30, 1e30), (0.0, 0.01), (0.0, 5e-324, 1e-8)
    ):
        x, mu, rho = extreme_parameters(dtype, device)
        before = mu.clone(), rho.clone()
        grad = torch.ones(3, *x.shape, dtype=dtype, device=device)
        ops.tanh_gaussian_ascent_step_(
            mu, rho, grad, x, noise(device), step_size=0.3, entropy_weight=entropy_weight, grad_scale=grad_scale,
            log_offset=log_offset, **EVERYWHERE._asdict(),
        )  # fmt: skip
        for after, old in zip((mu, rho), before):
            assert torch.isfinite(after).all()
            assert ((after - old).abs() <= 0.3 + 4 * torch.finfo(dtype).eps * old.abs()).all()
            if grad_scale == entropy_weight == 0:
                assert torch.equal(after, old)


@dtypes
def test_the_bounds_count_as_inside(backend, dtype: torch.dtype, device: torch.device) -> None:
    """As in torch.clamp, a sample exactly on a bound passes its gradient on, and one beyond does not."""
    bound = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=dtype, device=device)
    mu = torch.tensor([[0.0, -9.0, 0.0, 9.0]], dtype=dtype, device=device)  # on the bound, below, on, above
    rho = torch.full_like(mu, -80.0)  # sigma = 2e-35: x + epsilon tanh(u) rounds to x where mu = 0
    inputs = [tensor.requires_grad_() for tensor in (bound, mu, rho)]
    x_adv, _ = ops.tanh_gaussian_sample(*inputs, noise(device), epsilon=1e-30 if dtype == torch.float64 else 0.1)
    (grad_x,) = torch.autograd.grad(x_adv.sum(), inputs[0])
    if dtype == torch.float64:  # epsilon is below the rounding of 1, but not of 0
        assert grad_x[0, 2:].tolist() == [1.0, 1.0]
    else:
        assert grad_x[0, 2:].tolist() == [1.0, 0.0]
    assert grad_x[0, 1] == 0


@dtypes
@pytest.mark.parametrize("magnitude", [1e-44, 1e-40, 1e-30, 1e-10, 1.0, 1e18, 1e37], ids="{:.0e}".format)
@pytest.mark.parametrize("step", ["linf_step_", "l2_step_", "momentum_linf_step_"])
def test_steps_do_not_depend_on_the_size_of_the_gradient(
    backend, step: str, magnitude: float, dtype: torch.dtype, device: torch.device
) -> None:
    """Down to the subnormal gradients of a network that is very sure of itself, the step has its full length."""
    x = torch.full((3, 40), 0.5, dtype=dtype, device=device)
    grad = torch.linspace(-2, 2, x.numel(), dtype=dtype, device=device).view_as(x) * magnitude
    grad[:, ::7] = 0
    x_adv, momentum = x.clone(), torch.zeros_like(x)
    ball = Ball(0.1, -1.0, 2.0)
    if step == "momentum_linf_step_":
        ops.momentum_linf_step_(x_adv, momentum, grad, x, step_size=0.05, **ball._asdict())
        expected_momentum = truth.accumulate_momentum(np.zeros(x.shape), as_real(grad), 1.0)
        np.testing.assert_allclose(as_real(momentum), expected_momentum, rtol=1e-5, atol=1e-12)
        expected = truth.linf_step(as_real(x), expected_momentum, as_real(x), 0.05, ball)
    else:
        getattr(ops, step)(x_adv, grad, x, step_size=0.05, **ball._asdict())
        expected = getattr(truth, step[:-1])(as_real(x), as_real(grad), as_real(x), 0.05, ball)
    np.testing.assert_allclose(as_real(x_adv), expected, rtol=1e-6)


@pytest.mark.parametrize("step", ["linf_step_", "l2_step_", "momentum_linf_step_"])
def test_without_a_gradient_nothing_moves(backend, step: str, device: torch.device) -> None:
    x = torch.rand(3, 2, 5, device=device)
    x_adv, grad = x.clone(), torch.zeros_like(x)
    buffers = (x_adv, torch.zeros_like(x)) if step == "momentum_linf_step_" else (x_adv,)
    getattr(ops, step)(*buffers, grad, x, step_size=0.05, epsilon=0.1)
    assert torch.equal(x_adv, x)
    assert all(torch.isfinite(buffer).all() for buffer in buffers)


@pytest.mark.parametrize("step", ["linf_step_", "l2_step_", "momentum_linf_step_"])
def test_steps_return_into_the_ball(backend, step: str, device: torch.device) -> None:
    """x_adv far outside of the ball and of the bounds comes back; an image outside of the bounds does too."""
    x = torch.linspace(-2, 3, 60, device=device).view(4, 3, 5)
    x_adv = x + 100 * torch.linspace(-1, 1, 60, device=device).view(4, 3, 5)
    buffers = (x_adv, torch.zeros_like(x)) if step == "momentum_linf_step_" else (x_adv,)
    getattr(ops, step)(*buffers, torch.ones_like(x), x, step_size=0.05, epsilon=0.1)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert ((x_adv - x.clamp(0, 1)).abs() <= 0.1 + 1e-6).all()


SAMPLER_NANS = ("x", "mu", "rho")


@pytest.mark.parametrize("poisoned", SAMPLER_NANS)
@dtypes
def test_nan_goes_through_the_sampler(backend, poisoned: str, dtype: torch.dtype, device: torch.device) -> None:
    """Into the element's samples and gradients, and the example's density, and nowhere else."""
    shape, where = (3, 2, 37), (1, 1, 20)
    clean = {name: torch.full(shape, 0.3, dtype=dtype, device=device) for name in SAMPLER_NANS}
    results = []
    for poison in (False, True):
        inputs = {name: tensor.clone() for name, tensor in clean.items()}
        if poison:
            inputs[poisoned][where] = math.nan
        inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        outputs = ops.tanh_gaussian_sample(*inputs.values(), noise(device), samples=2, epsilon=0.1)
        gradients = torch.autograd.grad(sum(o.sum() for o in outputs), list(inputs.values()))
        results.append((*outputs, *gradients))
    (x_adv, density, *_), (x_adv_nan, density_nan, *gradients_nan) = results
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    mask[where] = True
    assert x_adv_nan.isnan().equal(mask.expand(2, *shape))
    assert torch.equal(x_adv_nan[:, ~mask], x_adv[:, ~mask])
    if poisoned != "x":
        assert density_nan.isnan()[:, 1].all()
        assert gradients_nan[1][where].isnan() and gradients_nan[2][where].isnan()
    assert torch.equal(density_nan[:, [0, 2]], density[:, [0, 2]])
    for gradient, gradient_nan in zip(results[0][2:], gradients_nan):
        assert torch.equal(gradient[~mask], gradient_nan[~mask])


@pytest.mark.parametrize("poisoned", ["mu", "rho", "grad_x_adv"])
def test_nan_goes_through_the_ascent_step(backend, poisoned: str, device: torch.device) -> None:
    """Into the element's parameters, and nowhere else."""
    shape, where = (3, 2, 37), (1, 1, 20)
    arguments = {
        "mu": torch.full(shape, 0.3, device=device),
        "rho": torch.full(shape, 0.2, device=device),
        "grad_x_adv": torch.ones(2, *shape, device=device),
    }
    arguments[poisoned][..., where[0], where[1], where[2]] = math.nan
    ops.tanh_gaussian_ascent_step_(
        *arguments.values(), torch.full(shape, 0.5, device=device), noise(device), epsilon=0.1, step_size=0.1
    )
    for name in ("mu", "rho"):
        assert arguments[name].isnan().nonzero().tolist() == [list(where)], name


@pytest.mark.parametrize("step", ["linf_step_", "l2_step_", "momentum_linf_step_", "uniform_start_"])
def test_nan_in_the_image_goes_through_the_steps(backend, step: str, device: torch.device) -> None:
    """A NaN must not be hidden by a clamp: x_adv is NaN where x is, at least."""
    x = torch.full((3, 37), 0.5, device=device)
    x_adv = x.clone()
    x[1, 20] = math.nan
    if step == "uniform_start_":
        ops.uniform_start_(x_adv, x, noise(device), epsilon=0.1)
    else:
        buffers = (x_adv, torch.zeros_like(x)) if step == "momentum_linf_step_" else (x_adv,)
        getattr(ops, step)(*buffers, torch.ones_like(x), x, step_size=0.05, epsilon=0.1)
    assert x_adv[1, 20].isnan()
    assert torch.isfinite(x_adv[[0, 2]]).all()


@pytest.mark.parametrize("step", ["linf_step_", "l2_step_", "momentum_linf_step_"])
def test_nan_in_the_iterate_goes_through_the_steps(backend, step: str, device: torch.device) -> None:
    x = torch.full((3, 37), 0.5, device=device)
    x_adv = x.clone()
    x_adv[1, 20] = math.nan
    buffers = (x_adv, torch.zeros_like(x)) if step == "momentum_linf_step_" else (x_adv,)
    getattr(ops, step)(*buffers, torch.ones_like(x), x, step_size=0.05, epsilon=0.1)
    assert x_adv[1, 20].isnan()
    assert torch.isfinite(x_adv[[0, 2]]).all()


@pytest.mark.parametrize("step", ["l2_step_", "momentum_linf_step_"])
def test_nan_in_the_gradient_is_not_hidden(backend, step: str, device: torch.device) -> None:
    """Its norm is NaN: the example's result (for MIM, its momentum) says so, the other examples' do not."""
    x = torch.full((3, 37), 0.5, device=device)
    x_adv, grad = x.clone(), torch.ones_like(x)
    grad[1, 20] = math.nan
    buffers = (x_adv, torch.zeros_like(x)) if step == "momentum_linf_step_" else (x_adv,)
    getattr(ops, step)(*buffers, grad, x, step_size=0.05, epsilon=0.1)
    assert buffers[-1][1, 20].isnan()
    assert torch.isfinite(buffers[-1][[0, 2]]).all()


def test_sign_of_nan_is_zero(backend, device: torch.device) -> None:
    """linf_step_ is documented with torch.sign, and torch.sign(nan) is 0."""
    x = torch.full((1, 37), 0.5, device=device)
    x_adv = ops.linf_step_(x.clone(), torch.full_like(x, math.nan), x, step_size=0.05, epsilon=0.1)
    assert torch.equal(x_adv, x)


HALVES = pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16], ids=str)


def all_bit_patterns(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Every value of a 16-bit type, ``[256, 256]``."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(dtype).view(256, 256)


@HALVES
def test_every_half_value_is_read_and_written_back(storage: torch.dtype, device: torch.device) -> None:
    """A step of zero keeps all 65,536 values, subnormal, infinite and NaN ones too."""
    values = all_bit_patterns(storage, device)
    x = values.float().nan_to_num(0.0, 0.0, 0.0)  # the infinite ones are clamped to the largest float32
    x_adv = values.clone()
    ops.linf_step_(x_adv, torch.ones_like(x), x, step_size=0.0, epsilon=3.4e38, lower=-math.inf, upper=math.inf)
    assert torch.equal(x_adv.isnan(), values.isnan())
    finite = values.isfinite()
    assert torch.equal(x_adv[finite], values[finite])


@HALVES
def test_rounding_to_half_is_that_of_torch(storage: torch.dtype, device: torch.device) -> None:
    """To nearest, ties to even, into subnormals and infinities: at every value, every tie and their neighbours."""
    values = all_bit_patterns(storage, device).float()
    finite = values[values.isfinite()].sort().values
    ties = (finite[:-1].double() + finite[1:].double()).mul(0.5).float()
    exact = torch.cat([finite, ties])
    away = torch.tensor(math.inf, device=device)
    x = torch.cat([exact, exact.nextafter(away), exact.nextafter(-away), torch.tensor([math.nan], device=device)])
    x = x.view(1, -1)
    mu, options = torch.zeros_like(x), dict(epsilon=1e-45, lower=-math.inf, upper=math.inf, density=False)
    # x + 1e-45 tanh(u) is x or its neighbour: the float32 result, rounded by torch, is what is wanted.
    wide, _ = ops.tanh_gaussian_sample(x, mu, mu, noise(device), **options)
    half, _ = ops.tanh_gaussian_sample(x, mu, mu, noise(device), **options, dtype=storage)
    assert torch.equal(half.isnan(), wide.isnan())
    number = ~wide.isnan()
    assert torch.equal(half[number].view(torch.int16), wide.to(storage)[number].view(torch.int16))


@HALVES
@pytest.mark.parametrize("shape", [(5, 3, 9, 7), (2, 1000)], ids=str)
def test_half_samples_are_the_rounded_float_samples(shape, storage: torch.dtype, device: torch.device) -> None:
    x = torch.rand(shape, device=device)
    options = dict(samples=3, epsilon=0.3)
    wide, wide_density = ops.tanh_gaussian_sample(x, x, -x, noise(device), **options)
    half, half_density = ops.tanh_gaussian_sample(x, x, -x, noise(device), **options, dtype=storage)
    assert torch.equal(half, wide.to(storage))
    assert torch.equal(half_density, wide_density)
