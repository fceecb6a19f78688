"""The noise is a function of (seed, offset, sample, example, element) and of nothing else, and it is Philox4x32-10."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import independent_noise
import layouts
import numpy as np
import pytest
import torch

from adt_fast import NoiseStream, ops, reference
from adt_fast._operators import native as _native

TESTS = Path(__file__).parent

FLOAT32_ERROR = 4e-6  # of a normal, absolute; test_operator_accuracy.py asks for more

# kat_vectors of Random123 (Salmon et al.): counter, key, words of philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
known_answers = pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])


def parse(words: str) -> list[int]:
    return [int(word, 16) for word in words.split()]


# ---- Known answers -------------------------------------------------------------------------------------------------


@known_answers
def test_independent_philox(counter: str, key: str, words: str) -> None:
    """The yardstick of the other tests."""
    assert [int(word) for word in independent_noise.philox4x32(parse(counter), parse(key))] == parse(words)


@known_answers
def test_reference_philox(counter: str, key: str, words: str) -> None:
    as_tensors = [tuple(torch.tensor([word]) for word in parse(text)) for text in (counter, key)]
    assert [int(word) for word in reference.philox(*as_tensors)] == parse(words)


@pytest.fixture(scope="session")
def noise_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """noise_probe.cpp, compiled against the headers that the kernels are made of."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("noise_probe") / "noise_probe"
    native = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []
    options = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", *native]
    subprocess.run(
        [compiler, *options, "-I", str(TESTS.parent / "csrc"), str(TESTS / "noise_probe.cpp"), "-o", str(program)],
        check=True,
    )
    return program


@known_answers
def test_native_philox(counter: str, key: str, words: str, noise_probe: Path) -> None:
    """Scalar and vector, from the header that CPU and CUDA kernels share."""
    printed = subprocess.run(
        [noise_probe, "philox", *counter.split(), *key.split()], check=True, capture_output=True, text=True
    ).stdout
    assert [line.split() for line in printed.splitlines()] == [words.split()] * 2


def test_every_radial_word_gives_a_finite_normal(noise_probe: Path) -> None:
    """All 2^32 of them: the uniform lies in (0, 1], the radius is finite."""
    printed = subprocess.run([noise_probe, "radial"], check=True, capture_output=True, text=True).stdout
    not_finite, outside, least, largest = map(float, printed.split())
    assert not_finite == outside == 0
    assert least == 0  # at u = 1
    assert largest == pytest.approx(np.sqrt(2 * 33 * np.log(2)), rel=1e-6)  # at u = 2^-33


@known_answers
def test_normals_of_known_words(counter: str, key: str, words: str, device: torch.device) -> None:
    """Through the operator: Box-Muller of the published words, where a counter can be reached by one.

    The first block of example 0 is; of the others the key, the example and the offset are, at block 0 of sample 0.
    """
    _, example, offset_low, _ = parse(counter)
    key0, key1 = parse(key)
    seed = int(np.array(key0 | key1 << 32, dtype=np.uint64).view(np.int64))
    r = ops.normal(
        torch.empty(1, 4, dtype=torch.float64, device=device), NoiseStream(seed, device, offset_low).state,
        first_example=example,
    )  # fmt: skip
    if example == 0:
        expected_words = parse(words)
    else:
        expected_words = independent_noise.philox4x32((0, example, offset_low, 0), (key0, key1))
    expected = independent_noise.box_muller(expected_words).reshape(1, 1, 4)
    np.testing.assert_allclose(r.cpu().numpy(), expected.astype(np.float64), rtol=0, atol=4e-15)


# ---- The counter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
@pytest.mark.parametrize("offset", [0, 2**32 - 1, 2**32, 2**40 - 2])
@pytest.mark.parametrize("first_example", [0, 2**31, 2**32 - 3])
def test_coordinates_become_counter_words(seed: int, offset: int, first_example: int, device: torch.device) -> None:
    """seed is the key; example, offset and sample fill their words to the last bit."""
    shape = (3, 2, 7)
    r = ops.normal(
        torch.empty(shape, dtype=torch.float64, device=device), NoiseStream(seed, device, offset).state, samples=3,
        draw=1, first_example=first_example,
    )  # fmt: skip
    expected = independent_noise.normals(shape, seed=seed, offset=offset + 1, samples=3, first_example=first_example)
    np.testing.assert_allclose(r.cpu().numpy(), expected.astype(np.float64), rtol=0, atol=4e-15)


@pytest.mark.parametrize(
    ("shape", "samples"),
    [((1, 1), 70_000), ((1, 300_001), 1), ((1, 66_000, 2, 1), 1), ((70_000, 1), 1)],
    ids=["samples", "pixels", "channels", "examples"],
)
def test_each_coordinate_goes_beyond_16_bits(shape: tuple[int, ...], samples: int, device: torch.device) -> None:
    r = ops.normal(torch.empty(shape, device=device), NoiseStream(3, device).state, samples=samples)
    expected = independent_noise.normals(shape, seed=3, samples=samples)
    np.testing.assert_allclose(r.cpu().numpy(), expected.astype(np.float32), rtol=0, atol=FLOAT32_ERROR)


def test_all_coordinates_give_different_words() -> None:
    """No two of a few thousand (sample, example, block) share a counter, whatever the shape of the batch."""
    seen = np.stack(independent_noise.words((9, 5, 31), seed=1, samples=11), axis=-1).reshape(-1, 4)
    assert len(np.unique(seen, axis=0)) == len(seen)


# ---- What it must not depend on ------------------------------------------------------------------------------------

SHAPES = [(5,), (3, 7), (2, 1037), (2, 3, 70), (2, 3, 9, 11), (2, 5, 1, 1), (2, 20, 4, 4), (2, 3, 2, 3, 5)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def supported_instruction_sets() -> list[str]:
    if _native.module is None:
        return []
    names = []
    in_use = _native.module.instruction_set()
    for name in _native.module.instruction_sets().split(","):
        try:
            _native.module.use_instruction_set(name)
        except ValueError:  # built, but this CPU lacks it
            continue
        names.append(name)
    _native.module.use_instruction_set(in_use)
    return names


@pytest.fixture(params=supported_instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU has."""
    in_use = _native.module.instruction_set()
    _native.module.use_instruction_set(request.param)
    yield request.param
    _native.module.use_instruction_set(in_use)


def normal(shape, device="cpu", arrange=layouts.contiguous, dtype=torch.float32, **options):
    like = arrange(torch.zeros(shape, dtype=dtype, device=device))
    return ops.normal(like, NoiseStream(-7, device, offset=2**33).state, **({"samples": 3} | options))


@shapes
@pytest.mark.parametrize("arrange", ["channels_last", "sliced", "transposed", "expanded", "unaligned"])
def test_layout_does_not_matter(shape, arrange: str, device: torch.device) -> None:
    if arrange == "channels_last" and len(shape) not in layouts.CHANNELS_LAST:
        shape = (*shape, *[1] * (4 - len(shape)))  # [B, D, 1, 1] is both layouts at once
    assert torch.equal(normal(shape, device, getattr(layouts, arrange)), normal(shape, device))


@shapes
def test_dtype_does_not_matter(shape, device: torch.device) -> None:
    torch.testing.assert_close(
        normal(shape, device), normal(shape, device, dtype=torch.float64).float(), rtol=0, atol=FLOAT32_ERROR
    )


@shapes
def test_batch_split_does_not_matter(shape, device: torch.device) -> None:
    batch = shape[0]
    parts = [normal((1, *shape[1:]), device, first_example=example) for example in range(batch)]
    assert torch.equal(torch.cat(parts, dim=1), normal(shape, device))


@shapes
def test_number_of_samples_does_not_matter(shape, device: torch.device) -> None:
    assert torch.equal(normal(shape, device, samples=5)[:2], normal(shape, device, samples=2))


@shapes
def test_offset_and_draw_are_one_number(shape, device: torch.device) -> None:
    like = torch.zeros(shape, device=device)
    for offset, draw in ((0, 9), (4, 5), (9, 0)):
        r = ops.normal(like, NoiseStream(1, device, offset).state, draw=draw)
        assert torch.equal(r, ops.normal(like, NoiseStream(1, device, 9).state))
    assert torch.equal(
        ops.normal(like, NoiseStream(1, device, 2**32 - 1).state, draw=1),
        ops.normal(like, NoiseStream(1, device, 2**32).state),
    )


def test_threads_do_not_matter(threads) -> None:
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(normal((7, 3, 67, 41), samples=5))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@shapes
def test_instruction_set_does_not_matter(shape, instruction_set: str) -> None:
    expected = independent_noise.normals(shape, seed=-7, offset=2**33, samples=3)
    np.testing.assert_allclose(normal(shape).numpy(), expected.astype(np.float32), rtol=0, atol=FLOAT32_ERROR)


def test_instruction_sets_give_the_same_bits() -> None:
    in_use, results = _native.module.instruction_set(), []
    try:
        for name in supported_instruction_sets():
            _native.module.use_instruction_set(name)
            results.append([normal(shape, dtype=dtype) for shape in SHAPES for dtype in (torch.float32, torch.float64)])
    finally:
        _native.module.use_instruction_set(in_use)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_reference_draws_the_same(shape, dtype: torch.dtype, device: torch.device) -> None:
    like = torch.zeros(shape, dtype=dtype, device=device)
    options = dict(samples=3, draw=2, first_example=5)
    state = NoiseStream(-7, device, offset=2**33).state
    torch.testing.assert_close(
        reference.normal(like, state, **options), ops.normal(like, state, **options),
        rtol=0, atol=FLOAT32_ERROR if dtype == torch.float32 else 4e-15,
    )  # fmt: skip


@shapes
def test_uniforms_are_the_same_words(shape, device: torch.device) -> None:
    x = torch.zeros(shape, device=device)
    start = ops.uniform_start_(
        torch.empty_like(x), x, NoiseStream(-7, device, offset=2**33).state, epsilon=1.0, lower=-1.0, draw=1,
        first_example=5,
    )  # fmt: skip
    expected = independent_noise.uniforms(shape, seed=-7, offset=2**33 + 1, first_example=5)
    assert np.array_equal(start.cpu().numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("arrange", [layouts.contiguous, layouts.channels_last], ids=lambda f: f.__name__)
def test_every_operator_draws_these_normals(arrange, device: torch.device) -> None:
    """With mu = 0, sigma = softplus(rho) and a vast epsilon, the sample is atanh-invertible: r comes back."""
    shape = (2, 3, 9, 11)
    zeros = arrange(torch.zeros(shape, dtype=torch.float64, device=device))
    rho = torch.full_like(zeros, -3.0)
    state = NoiseStream(4, device).state
    options = dict(epsilon=1.0, lower=-1.0, upper=1.0, first_example=6)
    sampled, _ = ops.tanh_gaussian_sample(zeros, zeros, rho, state, samples=3, draw=5, **options)
    after_step, _ = ops.tanh_gaussian_ascent_step_and_sample_(
        zeros.clone(), rho.clone(), torch.zeros(3, *shape, dtype=torch.float64, device=device), zeros, state,
        step_size=0.0, draw=1, next_draw=5, **options,
    )  # fmt: skip
    r = ops.normal(zeros, state, samples=3, draw=5, first_example=6)
    for x_adv in (sampled, after_step):
        torch.testing.assert_close(torch.atanh(x_adv) / torch.nn.functional.softplus(rho), r, rtol=0, atol=1e-12)


# ---- Independence of what differs ----------------------------------------------------------------------------------


def test_draws_samples_examples_and_seeds_differ(device: torch.device) -> None:
    shape = (2, 50)
    like, states = torch.zeros(shape, device=device), [NoiseStream(seed, device).state for seed in (0, 1, 2**32, -1)]
    rows = [
        r[sample, example]
        for state, draw in itertools.product(states, (0, 1, 2**32))
        for r in [ops.normal(like, state, samples=2, draw=draw)]
        for sample, example in itertools.product(range(2), range(2))
    ]
    for a, b in itertools.combinations(rows, 2):
        assert not (a == b).any()


# ---- NoiseStream ---------------------------------------------------------------------------------------------------


def test_stream_reads_back(device: torch.device) -> None:
    stream = NoiseStream(-3, device, offset=2**39)
    assert (stream.seed, stream.offset, stream.device) == (-3, 2**39, device)
    assert stream.state.dtype == torch.int64 and stream.state.tolist() == [-3, 2**39]
    assert "seed=-3" in repr(stream) and f"offset={2**39}" in repr(stream)


def test_advance_moves_the_offset_in_place(device: torch.device) -> None:
    stream = NoiseStream(3, device, offset=2**32 - 1)
    state, address = stream.state, stream.state.data_ptr()
    stream.advance()
    assert (stream.seed, stream.offset) == (3, 2**32)
    stream.advance(0)
    stream.advance(41)
    assert stream.offset == 2**32 + 41
    assert stream.state is state and stream.state.data_ptr() == address


def test_advance_and_draw_agree(device: torch.device) -> None:
    like, stream = torch.zeros(2, 9, device=device), NoiseStream(3, device)
    ahead = ops.normal(like, stream.state, draw=6)
    stream.advance(6)
    assert torch.equal(ops.normal(like, stream.state), ahead)


def test_an_operator_does_not_advance_the_stream(device: torch.device) -> None:
    stream = NoiseStream(3, device)
    ops.normal(torch.zeros(2, 9, device=device), stream.state, samples=4)
    assert stream.offset == 0


def test_state_dict_restores_in_place(device: torch.device) -> None:
    stream = NoiseStream(-5, device, offset=17)
    saved = stream.state_dict()
    assert saved == {"seed": -5, "offset": 17} and all(type(value) is int for value in saved.values())
    other = NoiseStream(0, device)
    address = other.state.data_ptr()
    other.load_state_dict(saved)
    assert other.state.tolist() == [-5, 17] and other.state.data_ptr() == address


def test_to_another_device_is_a_copy(device: torch.device) -> None:
    stream = NoiseStream(-5, offset=17)
    moved = stream.to(device)
    assert moved.device == device and moved.state_dict() == stream.state_dict()
    moved.advance()
    assert stream.offset == 17


def test_a_stream_made_in_inference_mode_is_one_like_others(device: torch.device) -> None:
    """An evaluation loop may make it there, and an attack advance it outside."""
    with torch.inference_mode():
        stream = NoiseStream(-5, device, offset=17)
    stream.advance()
    assert stream.offset == 18


def test_streams_of_equal_state_agree_across_devices(device: torch.device) -> None:
    """CPU and GPU draw the same normals."""
    like, stream = torch.zeros(2, 3, 9, 11), NoiseStream(-5, offset=17)
    on_cpu = ops.normal(like, stream.state, samples=2)
    on_device = ops.normal(like.to(device), stream.to(device).state, samples=2).cpu()
    torch.testing.assert_close(on_device, on_cpu, rtol=0, atol=FLOAT32_ERROR)
