"""Every operator against an independent computation in extended precision, beside plain PyTorch (see tolerance.py).

The grid crosses operators, dtypes, memory layouts and shapes; numbers of samples, balls and options are drawn.
Elements whose clamp or sign rounding alone decides are left out of gradients, and counted.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import independent_noise
import independent_operators as truth
import layouts
import numpy as np
import plain_operators as plain
import pytest
import torch
from independent_operators import Ball, TanhGaussian
from tolerance import as_real, assert_as_accurate_as_plain, ulp

from adt_fast import NoiseStream, ops
from adt_fast._operators import native

# Far into the stream, so that every word of the counter is in use.
SEED, OFFSET, DRAW, FIRST_EXAMPLE = -20200214, 2**34 + 3, 2, 2**32 - 100

SHAPES = (
    (1,), (5,),  # [B]: one element an example
    (3, 7), (1, 1), (2, 2050),
    (2, 3, 11), (3, 20, 1),
    (2, 3, 8, 8), (2, 3, 5, 5), (1, 1, 6, 7), (2, 5, 3, 3), (2, 20, 4, 4), (3, 3, 1, 1), (1, 3, 33, 31),
    (2, 3, 2, 3, 5),
)  # fmt: skip
LARGE = (4, 3, 32, 32)  # with k = 5, shared between threads
SAMPLES = (1, 2, 5, 17)

BALLS = (
    Ball(8 / 255),
    Ball(0.3),
    Ball(2.0, -math.inf, math.inf),
    Ball(0.3, -math.inf, 0.6),
    Ball(0.1, 0.25, math.inf),
)


class Dtypes(NamedTuple):
    """What an operator computes in, and what x_adv and its gradient are stored in."""

    compute: torch.dtype
    storage: torch.dtype


DTYPES = (
    Dtypes(torch.float32, torch.float32),
    Dtypes(torch.float64, torch.float64),
    Dtypes(torch.float32, torch.bfloat16),
    Dtypes(torch.float32, torch.float16),
)


class Layout(NamedTuple):
    """How the arguments lie in memory; ``written`` is for those changed in place."""

    x: object
    mu: object
    rho: object
    grad: object
    written: object


LAYOUTS = {
    "contiguous": Layout(*[layouts.contiguous] * 5),
    "channels_last": Layout(*[layouts.channels_last] * 5),
    "unaligned": Layout(*[layouts.unaligned] * 5),
    "strided": Layout(
        layouts.sliced, layouts.expanded, layouts.transposed, grad=layouts.expanded, written=layouts.unaligned
    ),
    "mixed": Layout(
        layouts.channels_last,
        layouts.contiguous,
        layouts.sliced,
        grad=layouts.transposed,
        written=layouts.channels_last,
    ),
}


def layouts_of(shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(LAYOUTS) if len(shape) in layouts.CHANNELS_LAST else ("contiguous", "unaligned", "strided")


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    shape: tuple[int, ...]
    layout: str
    dtypes: Dtypes
    samples: int
    ball: Ball
    log_offset: float = 0.0

    def __str__(self) -> str:
        compute, storage = (str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        dtypes = compute if compute == storage else f"{compute}/{storage}"
        bounds = f"{self.ball.epsilon:.2g} in [{self.ball.lower:g},{self.ball.upper:g}]"
        offset = f" offset {self.log_offset:g}" if self.log_offset else ""
        return f"{'x'.join(map(str, self.shape))} {self.layout} {dtypes} k={self.samples} {bounds}{offset}"

    @property
    def seed(self) -> int:
        return zlib.crc32(str(self).encode())

    def arguments(self, device: torch.device) -> RandomTensors:
        return RandomTensors(self.seed, self.dtypes.compute, device)

    @property
    def arrange(self) -> Layout:
        return LAYOUTS[self.layout]

    @property
    def ulp(self) -> float:
        return ulp(self.dtypes.compute)

    def noise(self, device: torch.device) -> torch.Tensor:
        return NoiseStream(SEED, device, OFFSET).state

    def normals(self, draw: int) -> np.ndarray:
        return independent_noise.normals(
            self.shape, seed=SEED, offset=OFFSET + draw, samples=self.samples, first_example=FIRST_EXAMPLE
        )

    def as_tensor(self, values: np.ndarray, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float64)).to(device, self.dtypes.compute)


class RandomTensors:
    """Seeded arguments of the sizes met in practice."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype, self._device = dtype, device

    def _to(self, values: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return values.to(self._device, dtype or self._dtype)

    def images(self, shape: tuple[int, ...]) -> torch.Tensor:
        """In [0, 1], many exactly black or white, as images are."""
        return self._to((torch.rand(shape, generator=self._generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1))

    def normal(self, shape: tuple[int, ...], scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._to(scale * torch.randn(shape, generator=self._generator, dtype=torch.float64), dtype)


def points(*shapes: tuple[int, ...]) -> Iterator[tuple]:
    """(shape, layout, dtypes), crossed."""
    for shape in shapes:
        yield from itertools.product([shape], layouts_of(shape), DTYPES)


def sampler_cases() -> list[Case]:
    """Every k in float32, one of them in the other dtypes; each point once more with an offset."""
    choose = Random(1)
    cases = []
    for point in points(*SHAPES):
        ks = SAMPLES if point[-1] == DTYPES[0] else [choose.choice(SAMPLES)]
        cases += [Case(*point, k, choose.choice(BALLS)) for k in ks]
    cases += [Case(*point, 5, choose.choice(BALLS)) for point in points(LARGE)]
    return cases + [
        Case(*point, choose.choice(SAMPLES), choose.choice(BALLS), choose.choice((1e-8, 1e-2)))
        for point in points(*SHAPES, LARGE)
    ]


def batch_cases() -> list[Case]:
    """For operators that know no k."""
    choose = Random(2)
    return [Case(*point, 1, choose.choice(BALLS)) for point in points(*SHAPES, LARGE)]


@dataclass(frozen=True, kw_only=True)
class AscentCase(Case):
    """One point of the ascent step's grid."""

    update: str
    entropy_weight: float
    entropy_reduction: str
    grad_scale: float
    accumulated: bool

    def __str__(self) -> str:
        entropy = f"{self.entropy_reduction} {self.entropy_weight:g}"
        return (
            f"{super().__str__()} {self.update} {entropy} scale {self.grad_scale:g}"
            f"{' accumulated' if self.accumulated else ''}"
        )


def ascent_cases() -> list[AscentCase]:
    choose = Random(3)
    return [
        AscentCase(
            *point,
            samples=5 if point[0] == LARGE else choose.choice(SAMPLES),
            ball=choose.choice(BALLS),
            update=choose.choice(("adam", "sign")),
            entropy_weight=choose.choice((0.0, 0.01, 1.0)),
            entropy_reduction=choose.choice(("sum", "mean")),
            log_offset=choose.choice((0.0, 1e-8)),
            grad_scale=choose.choice((1.0, 1 / 64)),
            accumulated=choose.choice((False, True)),
        )
        for point in points(*SHAPES, LARGE)
    ]


def affine_cases() -> list[Case]:
    """For what knows neither k nor a ball, but channels: of every number, one channel and one pixel among them."""
    shapes = (*(shape for shape in SHAPES if len(shape) > 1), (3, 8, 6, 6), (2, 64, 5, 7), (2, 700, 2, 2), LARGE)
    return [Case(*point, 1, BALLS[0]) for point in points(*shapes)]


SAMPLER_CASES, BATCH_CASES, ASCENT_CASES = sampler_cases(), batch_cases(), ascent_cases()
AFFINE_CASES = affine_cases()
STEPS = ("linf_step_", "l2_step_", "momentum_linf_step_")


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def test_the_grid_is_large_enough() -> None:
    """At least 1,056 forward and backward cases (DESIGN.md, section 11)."""
    sampler = 2 * len(SAMPLER_CASES)
    ascent = 2 * len(ASCENT_CASES)
    batch = (len(STEPS) + 2) * len(BATCH_CASES) + 2 * len(AFFINE_CASES)
    assert sampler + ascent + batch >= 1056, (sampler, ascent, batch)
    assert len({str(case) for case in SAMPLER_CASES}) == len(SAMPLER_CASES)
    assert len({str(case) for case in ASCENT_CASES}) == len(ASCENT_CASES)


class SamplerArguments:
    """x, mu and rho, and the options they are sampled with."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.random = case.arguments(device)
        self.tensors = (
            case.arrange.x(self.random.images(case.shape)),
            case.arrange.mu(self.random.normal(case.shape)),
            case.arrange.rho(self.random.normal(case.shape, scale=1.5)),
        )
        self.noise = case.noise(device)
        self.options = dict(
            **case.ball._asdict(), samples=case.samples, draw=DRAW, first_example=FIRST_EXAMPLE,
            dtype=case.dtypes.storage, log_offset=case.log_offset,
        )  # fmt: skip


@over(SAMPLER_CASES)
def test_sample(case: Case, device: torch.device) -> None:
    arguments = SamplerArguments(case, device)
    drawn = ops.tanh_gaussian_sample(*arguments.tensors, arguments.noise, **arguments.options)
    check_draw(case, drawn, arguments.tensors, DRAW)


def check_draw(
    case: Case, drawn: tuple[torch.Tensor, torch.Tensor], inputs: tuple[torch.Tensor, ...], draw: int
) -> None:
    """That (x_adv, -log p) are right for inputs (x, mu, rho)."""
    assert drawn[0].dtype == case.dtypes.storage and drawn[1].dtype == case.dtypes.compute
    r = case.normals(draw)
    expected = TanhGaussian(*map(as_real, inputs), r, case.ball, case.log_offset)
    eager = plain.sample(*inputs, case.as_tensor(r, inputs[0].device), case.ball, case.log_offset)
    magnitudes = expected.magnitudes()
    for i, name in enumerate(("x_adv", "neg_log_density")):
        assert_as_accurate_as_plain(
            name, drawn[i], eager[i].to(drawn[i].dtype), getattr(expected, name)(), case.dtypes.compute,
            magnitudes[name],
        )  # fmt: skip


@over(SAMPLER_CASES)
def test_sample_backward(case: Case, device: torch.device) -> None:
    arguments = SamplerArguments(case, device)
    grad_x_adv = layouts.by_slab(
        case.arrange.grad, arguments.random.normal((case.samples, *case.shape), dtype=case.dtypes.storage)
    )
    grad_density = arguments.random.normal((case.samples, case.shape[0]), scale=0.1)
    inputs = [tensor.detach().requires_grad_() for tensor in arguments.tensors]
    outputs = ops.tanh_gaussian_sample(*inputs, arguments.noise, **arguments.options)
    gradients = dict(zip(("x", "mu", "rho"), torch.autograd.grad(outputs, inputs, (grad_x_adv, grad_density))))

    r = case.normals(DRAW)
    draw = TanhGaussian(*map(as_real, arguments.tensors), r, case.ball, case.log_offset)
    upstream = grad_x_adv, grad_density
    expected, magnitudes = draw.gradients(*map(as_real, upstream)), draw.magnitudes(*map(as_real, upstream))
    eager = plain.sample_gradients(*arguments.tensors, case.as_tensor(r, device), case.ball, *upstream, case.log_offset)
    undecided = draw.clamp_is_undecided(case.ulp)
    for name, gradient in gradients.items():
        assert_as_accurate_as_plain(
            f"d/d{name}", gradient, eager[name], expected[name], case.dtypes.compute, magnitudes[name], undecided
        )


class AscentRun:
    """An ascent step and its check: first the gradient, then the step that was made of it.

    Adam's g / (|g| + 1e-8) is too steep, and the sign too, to be judged together with the gradient: the running
    sums show the gradient as the kernel computed it. A step without them must be the step with sums of zero.
    """

    STEP_SIZE = 0.3

    def __init__(self, case: AscentCase, device: torch.device) -> None:
        random, arrange = case.arguments(device), case.arrange
        self.case = case
        self.mu = arrange.written(random.normal(case.shape))
        self.rho = arrange.written(random.normal(case.shape, scale=1.5))
        self.x = (layouts.contiguous if case.layout == "mixed" else arrange.x)(random.images(case.shape))
        # Small enough that the 1e-8 of Adam's denominator shows.
        self.grad = layouts.by_slab(
            arrange.grad, random.normal((case.samples, *case.shape), scale=1e-4, dtype=case.dtypes.storage)
        )
        self.sums = tuple(arrange.written(random.normal(case.shape, scale=1e-5) * case.accumulated) for _ in range(2))
        self.sums_before = [tensor.clone() for tensor in self.sums]
        self.before = [tensor.clone() for tensor in (self.x, self.mu, self.rho)]
        self.arguments = (self.grad, self.x, case.noise(device))
        self.options = dict(
            **case.ball._asdict(), step_size=self.STEP_SIZE, entropy_weight=case.entropy_weight,
            entropy_reduction=case.entropy_reduction, update=case.update, grad_scale=case.grad_scale,
            log_offset=case.log_offset, draw=DRAW, first_example=FIRST_EXAMPLE,
        )  # fmt: skip

    def step(self, operator, **options) -> object:
        """Runs the operator with the running sums and, unless they are part of the case, without."""
        if not self.case.accumulated:
            alone = [tensor.clone() for tensor in (self.mu, self.rho)]
            operator(*alone, *self.arguments, **self.options, **options)
        result = operator(self.mu, self.rho, *self.arguments, **self.options, **options, accumulated=self.sums)
        if not self.case.accumulated:
            assert torch.equal(self.mu, alone[0]) and torch.equal(self.rho, alone[1]), "sums of zero change the step"
        return result

    def check(self) -> None:
        """That the sums grew by the gradient, and that mu and rho moved along the sums."""
        case, compute = self.case, self.case.dtypes.compute
        weight = case.entropy_weight / (self.mu.numel() if case.entropy_reduction == "mean" else 1)
        weights = torch.full((case.samples, case.shape[0]), weight, dtype=compute, device=self.mu.device)
        before, grad = tuple(map(as_real, self.before)), as_real(self.grad) * case.grad_scale
        r = case.normals(DRAW)
        draw = TanhGaussian(*before, r, case.ball, case.log_offset)
        expected, magnitudes = draw.gradients(grad, weight), draw.magnitudes(grad, weight)
        undecided = draw.clamp_is_undecided(case.ulp)
        eager = plain.sample_gradients(
            *self.before, case.as_tensor(r, self.mu.device), case.ball, self.grad.to(compute) * case.grad_scale,
            weights, case.log_offset,
        )  # fmt: skip
        for i, (name, after) in enumerate((("mu", self.mu), ("rho", self.rho))):
            total, total_before = self.sums[i], self.sums_before[i]
            assert_as_accurate_as_plain(
                f"sum_{name}", total, total_before + eager[name], as_real(total_before) + expected[name], compute,
                magnitudes[name] + np.abs(as_real(total_before)), undecided,
            )  # fmt: skip
            assert_as_accurate_as_plain(
                name, after, self.before[1 + i] + self.STEP_SIZE * plain.direction(total, case.update),
                before[1 + i] + self.STEP_SIZE * truth.direction(as_real(total), case.update), compute,
            )  # fmt: skip


@over(ASCENT_CASES)
def test_ascent_step(case: AscentCase, device: torch.device) -> None:
    run = AscentRun(case, device)
    assert run.step(ops.tanh_gaussian_ascent_step_) is None
    run.check()


@over(ASCENT_CASES)
def test_ascent_step_and_sample(case: AscentCase, device: torch.device) -> None:
    run, next_draw = AscentRun(case, device), DRAW + 7
    drawn = run.step(ops.tanh_gaussian_ascent_step_and_sample_, next_draw=next_draw, density=True)
    run.check()
    # The samples are judged from the parameters as they now are.
    check_draw(case, drawn, (run.x, run.mu, run.rho), next_draw)


@pytest.mark.parametrize("step", STEPS)
@over(BATCH_CASES)
def test_projected_step(case: Case, step: str, device: torch.device) -> None:
    random, arrange, compute = case.arguments(device), case.arrange, case.dtypes.compute
    x = (layouts.contiguous if case.layout == "mixed" else arrange.x)(random.images(case.shape))
    x_adv = arrange.written((x + random.normal(case.shape, scale=case.ball.epsilon / 2)).to(case.dtypes.storage))
    gradient_dtypes = (torch.float64,) if compute == torch.float64 else (torch.float32, torch.bfloat16, torch.float16)
    grad = random.normal(case.shape, dtype=gradient_dtypes[case.seed % len(gradient_dtypes)])
    grad = arrange.grad(torch.where(grad.abs() < 0.1, 0, grad))  # a gradient of zero must not move anything
    momentum, decay = arrange.written(random.normal(case.shape, scale=0.1)), 0.9
    step_size = case.ball.epsilon * (0.4, -0.4)[case.seed // 3 % 2]  # up or down
    options = dict(step_size=step_size, **case.ball._asdict())
    before = as_real(x_adv), as_real(grad), as_real(x)
    eager_before, undecided = (x_adv.clone(), grad, x), None

    if step == "momentum_linf_step_":
        expected_momentum = truth.accumulate_momentum(as_real(momentum), before[1], decay)
        eager_momentum = plain.accumulate_momentum(momentum, grad, decay)
        assert ops.momentum_linf_step_(x_adv, momentum, grad, x, decay=decay, **options) is x_adv
        assert_as_accurate_as_plain("momentum", momentum, eager_momentum, expected_momentum, compute)
        # The step is judged along the momentum's sign, where rounding does not decide it.
        undecided = np.abs(expected_momentum) <= 16 * case.ulp * np.abs(expected_momentum).max()
        before, eager_before = (before[0], expected_momentum, before[2]), (eager_before[0], eager_momentum, x)
        step = "linf_step_"
    else:
        assert getattr(ops, step)(x_adv, grad, x, **options) is x_adv

    expected = getattr(truth, step[:-1])(*before, step_size, case.ball)
    eager = getattr(plain, step[:-1])(*eager_before, step_size, case.ball)
    assert_as_accurate_as_plain("x_adv", x_adv, eager.to(case.dtypes.storage), expected, compute, undecided=undecided)


@over(BATCH_CASES)
def test_uniform_start(case: Case, device: torch.device) -> None:
    random = case.arguments(device)
    x = case.arrange.x(random.images(case.shape))
    x_adv = case.arrange.written(torch.full(case.shape, math.nan, dtype=case.dtypes.storage, device=device))
    uniform = independent_noise.uniforms(case.shape, seed=SEED, offset=OFFSET + DRAW, first_example=FIRST_EXAMPLE)
    returned = ops.uniform_start_(
        x_adv, x, case.noise(device), **case.ball._asdict(), draw=DRAW, first_example=FIRST_EXAMPLE
    )
    assert returned is x_adv
    eager = plain.uniform_start(x, case.as_tensor(uniform, device), case.ball).to(case.dtypes.storage)
    expected = truth.uniform_start(as_real(x), uniform, case.ball)
    assert_as_accurate_as_plain("x_adv", x_adv, eager, expected, case.dtypes.compute)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@over(AFFINE_CASES)
def test_affine_relu(case: Case, relu: bool, device: torch.device) -> None:
    random, (compute, storage) = case.arguments(device), case.dtypes
    scale, shift = random.normal(case.shape[1:2]), random.normal(case.shape[1:2])
    x = case.arrange.x(random.normal(case.shape, dtype=storage)).requires_grad_()
    grad_y = case.arrange.grad(random.normal(case.shape, dtype=storage))
    y = ops.affine_relu(x, scale, shift, relu=relu)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    assert y.dtype == grad_x.dtype == storage

    eager_x = x.detach().clone().requires_grad_()
    eager_y = plain.affine_relu(eager_x, scale, shift, relu)
    (eager_grad,) = torch.autograd.grad(eager_y, eager_x, grad_y)
    exact_x, exact_scale, exact_shift = map(as_real, (x, scale, shift))
    magnitude = truth.affine_relu(np.abs(exact_x), np.abs(exact_scale), np.abs(exact_shift), relu)
    expected = truth.affine_relu(exact_x, exact_scale, exact_shift, relu)
    assert_as_accurate_as_plain("y", y, eager_y, expected, compute, magnitude)

    unclipped = truth.affine_relu(exact_x, exact_scale, exact_shift, False)
    passes = unclipped > 0 if relu else np.full(case.shape, True)
    expected_grad = as_real(grad_y) * truth.per_channel(exact_scale, exact_x) * passes
    undecided = np.abs(unclipped) <= 8 * case.ulp * magnitude if relu else None
    assert_as_accurate_as_plain("d/dx", grad_x, eager_grad, expected_grad, compute, undecided=undecided)


@over([case for case in SAMPLER_CASES if case.dtypes.compute == case.dtypes.storage])
def test_normal(case: Case, device: torch.device) -> None:
    like = case.arrange.x(torch.empty(case.shape, dtype=case.dtypes.compute, device=device))
    r = ops.normal(like, case.noise(device), samples=case.samples, draw=DRAW, first_example=FIRST_EXAMPLE)
    words = independent_noise.words(
        case.shape, seed=SEED, offset=OFFSET + DRAW, samples=case.samples, first_example=FIRST_EXAMPLE
    )
    by_lane = plain.box_muller([torch.from_numpy(word.astype(np.int64)) for word in words], case.dtypes.compute)
    eager = torch.from_numpy(independent_noise.lanes_to_elements(by_lane.numpy(), case.shape))
    assert_as_accurate_as_plain("r", r, eager, case.normals(DRAW), case.dtypes.compute)


REFERENCE_CASES = [
    case for case in SAMPLER_CASES if case.layout in ("contiguous", "channels_last") and case.samples == 2
]


@over(REFERENCE_CASES)
def test_the_reference_is_as_right(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """adt_fast.reference, the fallback, by the same tests."""
    monkeypatch.setattr(native, "module", None)
    cpu = torch.device("cpu")
    test_sample(case, cpu)
    test_sample_backward(case, cpu)
    for step in STEPS:
        test_projected_step(case, step, cpu)
    test_uniform_start(case, cpu)
    if case.dtypes.compute == case.dtypes.storage:
        test_normal(case, cpu)


@over([case for case in AFFINE_CASES if case.layout in ("contiguous", "channels_last")])
def test_the_reference_of_affine_relu_is_as_right(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    for relu in (True, False):
        test_affine_relu(case, relu, torch.device("cpu"))


@over([case for case in ASCENT_CASES if case.layout in ("contiguous", "channels_last")])
def test_the_reference_ascends_as_right(case: AscentCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    test_ascent_step_and_sample(case, torch.device("cpu"))
