"""The Winograd convolution against torch's: values, gradients, edges, and what it must not depend on.

The bound on errors is stated for standard normal input and weights, relative to the root of the sum of the squares of
an output's terms, x * w: with Cin input channels, the error may be ``eps * (8 + 1.5 * sqrt(Cin))`` in the 2-norm over
all outputs, and six times that in the largest. Torch's own is a third to a half of the bound. For 64 channels it is
2.4e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from adt_fast._operators import native, winograd

pytestmark = pytest.mark.skipif(native.module is None, reason=f"no native module: {native.unavailable_because}")

IMAGES = [(1, 1, 1), (2, 4, 4), (1, 3, 9), (3, 8, 8), (2, 9, 6), (5, 2, 17), (1, 32, 31)]
CHANNELS = [(1, 1), (3, 16), (5, 3), (16, 17), (17, 33), (64, 64), (64, 5), (1, 48)]


def new(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(images: tuple[int, int, int], in_channels: int, out_channels: int) -> tuple[torch.Tensor, ...]:
    """x, channels_last; weight; bias."""
    batch, height, width = images
    x = new(batch, in_channels, height, width).contiguous(memory_format=torch.channels_last)
    return x, new(out_channels, in_channels, 3, 3, seed=1), new(out_channels, seed=2)


def run(x: torch.Tensor, weight: torch.Tensor, **options) -> torch.Tensor:
    return winograd.conv3x3(x, winograd.transform_weights(weight), weight.shape[0], **options)


def assert_accurate(actual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """By the bound above."""
    x, weight = x.double(), weight.double()
    truth = F.conv2d(x, weight, padding=1)
    terms = F.conv2d(x.square(), weight.square(), padding=1).sqrt()
    assert actual.shape == truth.shape and actual.dtype == torch.float32
    assert actual.is_contiguous(memory_format=torch.channels_last)
    error, bound = actual.double() - truth, torch.finfo(torch.float32).eps * (8 + 1.5 * math.sqrt(x.shape[1]))
    assert error.norm() <= bound * terms.norm(), f"{error.norm() / terms.norm():.3g} > {bound:.3g}"
    assert error.abs().max() <= 6 * bound * terms.max(), f"{error.abs().max() / terms.max():.3g} > {6 * bound:.3g}"


def supported_instruction_sets() -> list[str]:
    """Those of the module that this CPU has."""
    if native.module is None:
        return []
    names, in_use = [], native.module.instruction_set()
    for name in native.module.instruction_sets().split(","):
        try:
            native.module.use_instruction_set(name)
            names.append(name)
        except ValueError:
            pass  # built, but this CPU lacks it
    native.module.use_instruction_set(in_use)
    return names


@pytest.fixture(params=supported_instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    in_use = native.module.instruction_set()
    native.module.use_instruction_set(request.param)
    yield request.param
    native.module.use_instruction_set(in_use)


# ---- Values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_it_is_the_convolution(channels: tuple[int, int], instruction_set: str) -> None:
    for images in IMAGES:
        x, weight, _ = case(images, *channels)
        assert_accurate(run(x, weight), x, weight)


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_transposed_it_is_the_gradient_of_the_input(channels: tuple[int, int], instruction_set: str) -> None:
    for images in IMAGES:
        x, weight, _ = case(images, *channels)
        grad = new(*F.conv2d(x, weight, padding=1).shape, seed=3)
        actual = winograd.conv3x3(grad, winograd.transform_weights(weight, transposed=True), x.shape[1])
        assert_accurate(actual, grad, weight.transpose(0, 1).flip(2, 3))
        x.requires_grad_()
        (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), x, grad)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize("channels, size", [(64, 32), (128, 16), (256, 8)], ids=str)
def test_the_error_is_at_most_three_times_that_of_torch(channels: int, size: int) -> None:
    x, weight, _ = case((4, size, size), channels, channels)
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    actual, torchs = ((y - truth).norm().item() for y in (run(x, weight), F.conv2d(x, weight, padding=1)))
    assert actual <= 3 * torchs


def test_one_weight_at_a_time() -> None:
    """Each of the nine weights, forward and backward, moves the image by its offset."""
    x = new(1, 1, 11, 10)
    padded = F.pad(x, (1, 1, 1, 1))
    for i, j, transposed in product(range(3), range(3), (False, True)):
        weight = torch.zeros(1, 1, 3, 3)
        weight[0, 0, i, j] = 1
        actual = winograd.conv3x3(x, winograd.transform_weights(weight, transposed), 1)
        top, left = (2 - i, 2 - j) if transposed else (i, j)
        torch.testing.assert_close(actual, padded[:, :, top : top + 11, left : left + 10], rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [(3, 5), (17, 33), (16, 64)], ids=str)
@pytest.mark.parametrize("images", [(1, 1, 1), (2, 6, 7), (2, 8, 8)], ids=str)
def test_bias_and_relu(images: tuple[int, int, int], channels: tuple[int, int], instruction_set: str) -> None:
    x, weight, bias = case(images, *channels)
    plain, biased = run(x, weight), run(x, weight) + bias[:, None, None]
    assert torch.equal(run(x, weight, bias=bias), biased)
    assert torch.equal(run(x, weight, relu=True), plain.relu())
    assert torch.equal(run(x, weight, bias=bias, relu=True), biased.relu())
    assert (plain < 0).any() and (plain > 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_of_16_bit_only_input_and_output_are_rounded(dtype: torch.dtype, instruction_set: str) -> None:
    for channels in ((5, 3), (17, 33), (64, 64)):
        x, weight, bias = case((2, 9, 8), *channels)
        x = x.to(dtype)
        actual = run(x, weight, bias=bias)
        assert actual.dtype == dtype
        assert torch.equal(actual, run(x.float(), weight, bias=bias).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_come_in_any_layout_and_dtype(dtype: torch.dtype) -> None:
    weight = new(33, 17, 3, 3).to(dtype)
    for transposed in (False, True):
        expected = winograd.transform_weights(weight.float().contiguous(), transposed)
        assert torch.equal(
            winograd.transform_weights(weight.contiguous(memory_format=torch.channels_last), transposed), expected
        )
        backwards = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        assert torch.equal(winograd.transform_weights(backwards, transposed), expected)


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_and_stays_where_it_is(relu: bool, instruction_set: str) -> None:
    x, weight, _ = case((2, 16, 16), 5, 33)
    expected = run(x, weight, relu=relu)
    x[1, 2, 5, 5] = math.nan
    actual = run(x, weight, relu=relu)
    assert actual[1, :, 4:7, 4:7].isnan().all()
    outside = torch.ones(2, 16, 16, dtype=torch.bool)
    outside[1, 4:8, 4:8] = False  # its tile
    assert torch.equal(actual.movedim(1, -1)[outside], expected.movedim(1, -1)[outside])


# ---- What it must not depend on ------------------------------------------------------------------------------------


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_does_not_show(instruction_set: str, restored_threads: None) -> None:
    for images, channels in [((7, 19, 23), (17, 33)), ((3, 8, 8), (64, 64)), ((1, 33, 65), (16, 48))]:
        x, weight, bias = case(images, *channels)
        results = []
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append((winograd.transform_weights(weight), run(x, weight, bias=bias)))
        for transformed, y in results[1:]:
            assert torch.equal(transformed, results[0][0]) and torch.equal(y, results[0][1])


def test_the_rest_of_the_batch_does_not_show(instruction_set: str) -> None:
    x, weight, _ = case((9, 10, 11), 17, 33)
    together = run(x, weight)
    for index in range(9):
        assert torch.equal(run(x[index : index + 1], weight), together[index : index + 1])
    assert run(x[:0], weight).shape == (0, 33, 10, 11)


def test_transformed_weights_serve_every_instruction_set() -> None:
    x, weight, _ = case((2, 9, 10), 17, 70)
    transformed, in_use = winograd.transform_weights(weight), native.module.instruction_set()
    try:
        for name in supported_instruction_sets():
            native.module.use_instruction_set(name)
            assert_accurate(winograd.conv3x3(x, transformed, 70), x, weight)
    finally:
        native.module.use_instruction_set(in_use)


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values and strides, at an address that is a multiple of the element size only."""
    buffer = tensor.new_empty(tensor.numel() + 1)
    return buffer[1:].as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_alignment_does_not_show(dtype: torch.dtype, instruction_set: str) -> None:
    x, weight, bias = case((2, 8, 9), 17, 64)
    x, transformed = x.to(dtype), winograd.transform_weights(weight)
    assert torch.equal(winograd.transform_weights(unaligned(weight)), transformed)
    expected = winograd.conv3x3(x, transformed, 64, bias)
    assert torch.equal(winograd.conv3x3(*map(unaligned, (x, transformed)), 64, unaligned(bias)), expected)


def test_the_layout_does_not_show() -> None:
    x, weight, _ = case((2, 6, 8), 5, 16)
    wide = new(2, 5, 6, 17)
    wide[..., 1::2] = x
    for same in (x.contiguous(), wide[..., 1::2]):
        assert torch.equal(run(same, weight), run(x, weight))


# ---- Bad calls -----------------------------------------------------------------------------------------------------

X, TRANSFORMED, BIAS = torch.zeros(2, 5, 4, 4), torch.zeros(2, 36, 5, 32), torch.zeros(40)

BAD_CONVOLUTIONS = {
    "x a list": (TypeError, "x", dict(x=[1.0])),
    "x float64": (TypeError, "x", dict(x=X.double())),
    "x without batch": (ValueError, "x", dict(x=X[0])),
    "x without pixels": (ValueError, "x", dict(x=X[..., :0])),
    "x without memory": (ValueError, "x", dict(x=X.to("meta"))),
    "x with other channels": (ValueError, "transformed", dict(x=X[:, :4])),
    "transformed None": (TypeError, "transformed", dict(transformed=None)),
    "transformed bfloat16": (TypeError, "transformed", dict(transformed=TRANSFORMED.bfloat16())),
    "transformed not transformed": (ValueError, "transformed", dict(transformed=torch.zeros(40, 5, 3, 3))),
    "transformed strided": (ValueError, "transformed", dict(transformed=torch.zeros(2, 36, 32, 5).transpose(2, 3))),
    "out_channels beyond the panels": (ValueError, "transformed", dict(out_channels=65, bias=None)),
    "out_channels 0": (ValueError, "out_channels", dict(out_channels=0)),
    "out_channels a float": (TypeError, "out_channels", dict(out_channels=40.0)),
    "bias short": (ValueError, "bias", dict(bias=BIAS[:39])),
    "bias strided": (ValueError, "bias", dict(bias=torch.zeros(80)[::2])),
    "bias float64": (TypeError, "bias", dict(bias=BIAS.double())),
}


@pytest.mark.parametrize("error, name, change", BAD_CONVOLUTIONS.values(), ids=BAD_CONVOLUTIONS.keys())
def test_bad_convolutions_are_refused(error: type, name: str, change: dict) -> None:
    arguments = dict(x=X, transformed=TRANSFORMED, out_channels=40, bias=BIAS)
    winograd.conv3x3(**arguments)
    with pytest.raises(error, match=f"^{name} must"):
        winograd.conv3x3(**arguments | change)


@pytest.mark.parametrize(
    "error, weight",
    [
        (TypeError, None),
        (TypeError, torch.zeros(4, 4, 3, 3, dtype=torch.float64)),
        (ValueError, torch.zeros(4, 4, 5, 5)),
        (ValueError, torch.zeros(4, 4, 3)),
        (ValueError, torch.zeros(4, 0, 3, 3)),
        (ValueError, torch.zeros(4, 4, 3, 3, device="meta")),
    ],
    ids=["None", "float64", "5x5", "3d", "empty", "meta"],
)
def test_bad_weights_are_refused(error: type, weight: object) -> None:
    with pytest.raises(error, match=r"^weight must"):
        winograd.transform_weights(weight)


@pytest.mark.parametrize(
    "call",
    [lambda: winograd.transform_weights(torch.zeros(4, 4, 3, 3)), lambda: winograd.conv3x3(X, TRANSFORMED, 40)],
)
def test_without_the_module_it_is_not_supported(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert winograd.supported()
    monkeypatch.setattr(native, "module", None)
    assert not winograd.supported()
    with pytest.raises(RuntimeError, match="native module"):
        call()
