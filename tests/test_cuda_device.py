"""The GPU kernels on a GPU: the same numbers as the CPU kernels, on any stream, in graphs, at any size, every time.

What the arithmetic is worth against the truth is in test_operator_accuracy.py, which runs on a GPU too.
"""

from __future__ import annotations

from collections.abc import Callable

import layouts
import pytest
import torch

from adt_fast import NoiseStream, ops

pytestmark = pytest.mark.cuda

SHAPES = ((4, 3, 32, 32), (2, 3, 5, 5), (3, 1, 28, 28), (2, 5, 6, 6), (2, 3, 4, 4), (3, 1030), (1, 1))
STORAGE = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.float64: (torch.float64,),
}
EPSILON, SAMPLES = 8 / 255, 5

Tensors = dict[str, torch.Tensor]


def arguments(shape: tuple[int, ...], compute: torch.dtype, storage: torch.dtype, channels_last: bool) -> Tensors:
    """The arguments of every operator, on the CPU, with pixels away from the data bounds."""
    generator = torch.Generator().manual_seed(5)

    def normal(*sizes: int, dtype: torch.dtype = compute) -> torch.Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)

    arrange = layouts.channels_last if channels_last else layouts.contiguous
    return {
        "x": arrange(torch.rand(shape, generator=generator, dtype=torch.float64).mul(0.8).add(0.1).to(compute)),
        "mu": arrange(normal(*shape)),
        "rho": arrange(normal(*shape)),
        "momentum": arrange(normal(*shape)),
        "grad": arrange(normal(*shape, dtype=storage)),
        "samples_grad": layouts.by_slab(arrange, normal(SAMPLES, *shape, dtype=storage)),
    }


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.preserve_format)


def run_all(tensors: Tensors, storage: torch.dtype) -> Tensors:
    """Every operator's results; the arguments stay as they are."""
    noise = NoiseStream(3, tensors["x"].device, offset=2**33).state
    x, mu, rho = (tensors[name].requires_grad_() for name in ("x", "mu", "rho"))
    out: Tensors = {}
    for log_offset, suffix in ((0.0, ""), (1e-8, " with offset")):
        x_adv, density = ops.tanh_gaussian_sample(
            x, mu, rho, noise, samples=SAMPLES, epsilon=EPSILON, dtype=storage, log_offset=log_offset
        )
        objective = (x_adv.to(x.dtype) * tensors["samples_grad"].to(x.dtype)).sum() + 0.1 * density.sum()
        names = (name + suffix for name in ("grad x", "grad mu", "grad rho"))
        out |= dict(zip(names, torch.autograd.grad(objective, (x, mu, rho))))
        out |= {f"x_adv{suffix}": x_adv.detach(), f"density{suffix}": density.detach()}
    x, mu, rho = (tensor.detach() for tensor in (x, mu, rho))
    stepped_mu, stepped_rho = copy_of(mu), copy_of(rho)
    out["next x_adv"], out["next density"] = ops.tanh_gaussian_ascent_step_and_sample_(
        stepped_mu, stepped_rho, tensors["samples_grad"], x, noise, epsilon=EPSILON, step_size=0.3, entropy_weight=0.01,
        log_offset=1e-8, density=True,
    )  # fmt: skip
    out |= {"stepped mu": stepped_mu, "stepped rho": stepped_rho}
    out["normal"] = ops.normal(x, noise, samples=SAMPLES, draw=1)
    out["start"] = ops.uniform_start_(torch.empty_like(x, dtype=storage), x, noise, epsilon=EPSILON)
    if x.dim() > 2:
        coefficients = mu.flatten(2).movedim(1, -1).reshape(-1, x.shape[1])[:2]
        leaf = tensors["grad"].detach().clone().requires_grad_()
        out["affine"] = ops.affine_relu(leaf, *coefficients)
        (out["grad affine"],) = torch.autograd.grad(out["affine"], leaf, tensors["grad"])
        out["affine"] = out["affine"].detach()
    for step, options in ((ops.linf_step_, {}), (ops.l2_step_, {}), (ops.momentum_linf_step_, {"decay": 0.9})):
        moved, momentum = copy_of(out["start"]), copy_of(tensors["momentum"])
        written = (moved, momentum) if options else (moved,)
        step(*written, tensors["grad"], x, step_size=0.01, epsilon=EPSILON, **options)
        out |= {f"{step.__name__} {i}": tensor for i, tensor in enumerate(written)}
    return out


def on_gpu(tensors: Tensors) -> Tensors:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


@pytest.fixture
def batch() -> Tensors:
    return on_gpu(arguments((64, 3, 32, 32), torch.float32, torch.float32, channels_last=False))


def sample(batch: Tensors, noise: torch.Tensor) -> torch.Tensor:
    return ops.tanh_gaussian_sample(
        batch["x"], batch["mu"], batch["rho"], noise, samples=SAMPLES, epsilon=EPSILON, density=False
    )[0]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("compute", "storage"), [(compute, storage) for compute, all_ in STORAGE.items() for storage in all_], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_and_cpu_agree(
    shape: tuple[int, ...], compute: torch.dtype, storage: torch.dtype, channels_last: bool
) -> None:
    if channels_last and len(shape) != 4:
        pytest.skip("only images have channels")
    tensors = arguments(shape, compute, storage, channels_last)
    expected, actual = run_all(tensors, storage), run_all(on_gpu(tensors), storage)
    for name, want in expected.items():
        got = actual[name].cpu()
        assert got.dtype == want.dtype and got.stride() == want.stride(), name
        # The CPU and the GPU round apart by a few units in the last place of the largest number involved, which may
        # turn the rounding to 16 bits the other way.
        tolerance = 16 * torch.finfo(compute).eps + (torch.finfo(want.dtype).eps if want.dtype != compute else 0)
        scale = max(1.0, want.abs().max().item())
        # A gradient within rounding of zero may step either way, so a few elements may disagree.
        apart = (got.double() - want.double()).abs() > tolerance * scale
        assert apart.sum() <= max(1, 0.001 * apart.numel()), (name, apart.sum(), apart.numel())


def test_unaligned_tensors_give_the_same_bits(batch: Tensors) -> None:
    noise = NoiseStream(1, "cuda").state
    unaligned = {name: layouts.unaligned(tensor) for name, tensor in batch.items() if name in ("x", "mu", "rho")}
    assert unaligned["x"].data_ptr() % 16 != 0
    torch.testing.assert_close(sample(unaligned, noise), sample(batch, noise), rtol=0, atol=2e-7)


def test_layouts_agree(batch: Tensors) -> None:
    noise = NoiseStream(1, "cuda").state
    channels_last = {name: layouts.channels_last(batch[name]) for name in ("x", "mu", "rho")}
    torch.testing.assert_close(sample(channels_last, noise), sample(batch, noise), rtol=0, atol=2e-7)


def test_results_are_the_same_bits_from_run_to_run(batch: Tensors) -> None:
    first = run_all(batch, torch.float32)
    for _ in range(3):
        again = run_all(batch, torch.float32)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_density_does_not_change_the_samples(batch: Tensors) -> None:
    noise = NoiseStream(1, "cuda").state
    with_density, _ = ops.tanh_gaussian_sample(
        batch["x"], batch["mu"], batch["rho"], noise, samples=SAMPLES, epsilon=EPSILON
    )
    torch.testing.assert_close(with_density, sample(batch, noise), rtol=0, atol=2e-7)


def test_kernels_run_on_the_current_stream(batch: Tensors) -> None:
    """Inputs are written late on a side stream: a kernel elsewhere would read them too early."""
    noise = NoiseStream(1, "cuda").state
    expected = sample(batch, noise)
    late = {name: torch.zeros_like(batch[name]) for name in ("x", "mu", "rho")}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for name, tensor in late.items():
            tensor.copy_(batch[name])
        result = sample(late, noise)
    side.synchronize()
    assert torch.equal(result, expected)


def capture(work: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        work()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


def test_a_graph_draws_new_noise_on_every_replay(batch: Tensors) -> None:
    stream = NoiseStream(1, "cuda")

    def draw_and_advance() -> torch.Tensor:
        drawn = sample(batch, stream.state)
        stream.advance()
        return drawn

    graph, result = capture(draw_and_advance)
    stream.load_state_dict({"seed": 1, "offset": 10})
    for offset in range(10, 14):
        graph.replay()
        assert torch.equal(result, sample(batch, NoiseStream(1, "cuda", offset).state))
    assert stream.offset == 14


def test_a_graph_of_inner_steps_equals_eager(batch: Tensors) -> None:
    noise = NoiseStream(1, "cuda").state

    def two_steps(mu: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        x_adv = sample({**batch, "mu": mu, "rho": rho}, noise)
        for draw in range(2):
            x_adv, _ = ops.tanh_gaussian_ascent_step_and_sample_(
                mu, rho, x_adv - 0.5, batch["x"], noise, epsilon=EPSILON, step_size=0.3, entropy_weight=0.01, draw=draw
            )
        return x_adv

    mu, rho = batch["mu"].clone(), batch["rho"].clone()
    graph, result = capture(lambda: two_steps(mu, rho))
    mu.copy_(batch["mu"])
    rho.copy_(batch["rho"])
    graph.replay()
    expected_mu, expected_rho = batch["mu"].clone(), batch["rho"].clone()
    assert torch.equal(two_steps(expected_mu, expected_rho), result)
    assert torch.equal(expected_mu, mu) and torch.equal(expected_rho, rho)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_tensor_elsewhere_leaves_the_current_device_as_it_was(batch: Tensors) -> None:
    expected = sample(batch, NoiseStream(1, "cuda:0").state)
    with torch.cuda.device(0):
        elsewhere = sample(
            {name: tensor.to("cuda:1") for name, tensor in batch.items()}, NoiseStream(1, "cuda:1").state
        )
        assert torch.cuda.current_device() == 0
    assert elsewhere.device.index == 1
    assert torch.equal(elsewhere.cpu(), expected.cpu())


def free_gigabytes() -> float:
    return torch.cuda.mem_get_info()[0] / 2**30 if torch.cuda.is_available() else 0.0


@pytest.mark.skipif(free_gigabytes() < 12, reason="needs 12 GiB of free GPU memory")
def test_more_elements_than_32_bits_count() -> None:
    """k * B * D > 2^31, and more examples than a grid has rows in y: first and last rows agree with small calls."""
    samples, batch, size = 8, 70_000, 4096
    noise = NoiseStream(1, "cuda").state
    x = torch.full((1, 1), 0.5, device="cuda").expand(batch, size).contiguous()
    mu, rho = torch.zeros_like(x), torch.zeros_like(x)
    x_adv, _ = ops.tanh_gaussian_sample(
        x, mu, rho, noise, samples=samples, epsilon=EPSILON, dtype=torch.bfloat16, density=False
    )
    assert x_adv.numel() > 2**31
    for first in (0, batch // 2, batch - 2):
        rows = slice(first, first + 2)
        few, _ = ops.tanh_gaussian_sample(
            x[rows], mu[rows], rho[rows], noise, samples=samples, epsilon=EPSILON, dtype=torch.bfloat16, density=False,
            first_example=first,
        )  # fmt: skip
        assert torch.equal(x_adv[:, rows], few)
