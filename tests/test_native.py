"""The native module: what it says of itself, life without it, environment variables, threads, processes, sizes."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import independent_noise
import numpy as np
import pytest
import torch

import adt_fast
from adt_fast import NoiseStream, ops
from adt_fast._operators import native

pytestmark = pytest.mark.skipif(native.module is None, reason=f"no native module: {native.unavailable_because}")


def run_python(program: str, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=os.environ | environment, capture_output=True,
        timeout=timeout,
    )  # fmt: skip


# ---- the stub, by which mypy checks the calls ------------------------------------------------------------------------


def kind_of(annotation: ast.expr, aliases: dict[str, ast.expr]) -> str | tuple[str, ...]:
    """Of an argument, in the words of the stub or of any pybind11: int, float, bool or str, or a tuple of them."""
    if isinstance(annotation, ast.Name) and annotation.id in aliases:
        annotation = aliases[annotation.id]
    if isinstance(annotation, ast.Subscript):
        return tuple(kind_of(part, aliases) for part in annotation.slice.elts)
    return next(kind for kind in ("float", "bool", "str", "int") if kind in ast.unparse(annotation).lower())


def signatures(source: str) -> dict[str, list[str | tuple[str, ...]]]:
    """The arguments of each function in a stub."""
    body = ast.parse(source).body
    aliases = {node.target.id: node.value for node in body if isinstance(node, ast.AnnAssign) and node.value}
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    return {one.name: [kind_of(argument.annotation, aliases) for argument in (*one.args.posonlyargs, *one.args.args)]
            for one in functions}  # fmt: skip


def test_the_stub_has_the_names_and_arguments_of_the_native_module() -> None:
    stub = (Path(adt_fast.__file__).parent / "_C.pyi").read_text()
    public = {name: getattr(native.module, name) for name in dir(native.module) if not name.startswith("__")}
    functions = {name: value for name, value in public.items() if callable(value)}
    built = signatures("\n".join(f"def {one.__doc__.splitlines()[0]}: ..." for one in functions.values()))
    assert signatures(stub) == built
    declared = [node for node in ast.parse(stub).body if isinstance(node, ast.AnnAssign) and node.value is None]
    constants = {name: type(value).__name__ for name, value in public.items() if name not in functions}
    assert {node.target.id: ast.unparse(node.annotation) for node in declared} == constants


# ---- build_info ----------------------------------------------------------------------------------------------------

BUILD_INFO_TYPES = {
    "version": str, "commit": str, "torch": str, "python": str, "native": bool, "native_off_because": str,
    "compiler": str, "cpu_instruction_sets": list, "cpu_instruction_set": str, "threads": int, "thread_runtime": str,
    "cuda_built": bool, "cuda_architectures": list, "cuda_toolkit": str, "cuda_devices": list, "cuda_off_because": str,
}  # fmt: skip


def assert_complete(info: dict) -> None:
    """Every key, the right type, and plain enough for JSON."""
    assert set(info) == set(BUILD_INFO_TYPES)
    assert [key for key, kind in BUILD_INFO_TYPES.items() if not isinstance(info[key], kind)] == []
    assert json.loads(json.dumps(info)) == info


def test_build_info_has_every_key() -> None:
    assert_complete(adt_fast.build_info())
    for key in BUILD_INFO_TYPES:
        assert f"``{key}``" in adt_fast.build_info.__doc__, f"{key} is not documented"


def test_build_info_is_consistent() -> None:
    info = adt_fast.build_info()
    assert info["native"] and info["native_off_because"] == ""
    assert info["version"] == adt_fast.__version__ and info["torch"] == torch.__version__
    assert info["cpu_instruction_set"] in info["cpu_instruction_sets"]
    assert info["threads"] == torch.get_num_threads()
    assert bool(info["cuda_architectures"]) == bool(info["cuda_toolkit"]) == info["cuda_built"]
    if not torch.cuda.is_available():
        assert info["cuda_devices"] == [] and info["cuda_off_because"]
    else:
        assert len(info["cuda_devices"]) == torch.cuda.device_count()


def test_build_info_without_the_module_has_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    info = adt_fast.build_info()
    assert_complete(info)
    assert not info["native"] and info["cuda_off_because"]


# ---- GPUs for which nothing was built --------------------------------------------------------------------------------


class Gpus:
    """A module with GPU kernels, and GPUs of these compute capabilities, as far as Python can see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, architectures: str, *capabilities: tuple[int, int]) -> None:
        native._has_kernels_for.cache_clear()
        module = {name: getattr(native.module, name) for name in dir(native.module) if not name.startswith("__")}
        module |= {"with_cuda": True, "cuda_architectures": architectures, "cuda_toolkit": "12.8"}
        module |= {"cuda_devices": lambda: (len(capabilities), "")}
        monkeypatch.setattr(native, "module", SimpleNamespace(**module))
        self.asked = 0

        def capability(device: torch.device | int) -> tuple[int, int]:
            self.asked += 1
            return capabilities[device if isinstance(device, int) else device.index]

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Gpus]]:
    yield functools.partial(Gpus, monkeypatch)
    native._has_kernels_for.cache_clear()


@pytest.mark.parametrize(
    "architectures, capability, runs",
    [
        ("75-real 80-real 120-virtual", (7, 0), False),
        ("75-real 80-real 120-virtual", (7, 5), True),
        ("75-real 80-real 120-virtual", (8, 9), True),
        ("75-real 86-real 120-virtual", (8, 0), False),
        ("75-real 80-real 120-virtual", (9, 0), False),
        ("75-real 80-real 120-virtual", (10, 0), False),
        ("75-real 80-real 120-virtual", (12, 1), True),
        ("75-real 90-virtual", (12, 0), True),
        ("80", (9, 0), True),
        ("80", (7, 5), False),
        ("90a", (10, 0), False),
        ("90a-real", (9, 0), True),
        ("100f-virtual", (10, 3), True),
        ("100f-virtual", (12, 0), False),
        ("native", (7, 0), True),
    ],
)
def test_operators_run_natively_on_the_gpus_for_which_there_are_kernels(
    architectures: str, capability: tuple[int, int], runs: bool, gpus: Callable[..., Gpus]
) -> None:
    seen = gpus(architectures, capability)
    assert [native.runs_on(torch.device("cuda", 0)) for _ in range(3)] == [runs] * 3
    assert seen.asked == 1, "not for every operator"
    assert native.runs_on(torch.device("cpu"))
    assert (adt_fast.build_info()["cuda_off_because"] == "") is runs


def test_build_info_names_the_gpus_without_kernels(gpus: Callable[..., Gpus]) -> None:
    gpus("75-real 80-real 80-virtual", (8, 6), (7, 0), (6, 1))
    assert [native.runs_on(torch.device("cuda", index)) for index in range(3)] == [True, False, False]
    because = adt_fast.build_info()["cuda_off_because"]
    assert "kernels for 75-real 80-real 80-virtual" in because and "GPU 0" not in because
    assert "GPU 1 (compute capability 7.0), GPU 2 (compute capability 6.1): plain PyTorch" in because


# ---- Without the module --------------------------------------------------------------------------------------------

SAMPLE_AND_SAVE = """
import sys, torch
import adt_fast
from adt_fast import NoiseStream, ops
assert adt_fast.build_info()["native"] is (sys.argv[1] == "native"), adt_fast.build_info()
x, mu, rho = (torch.linspace(a, b, 180).view(2, 3, 30).requires_grad_() for a, b in ((0, 1), (-1, 1), (-2, 2)))
outputs = ops.tanh_gaussian_sample(x, mu, rho, NoiseStream(5).state, samples=3, epsilon=0.3)
gradients = torch.autograd.grad(sum(o.sum() for o in outputs), (x, mu, rho))
x_adv = ops.l2_step_(x.detach().clone(), gradients[1], x.detach(), step_size=0.1, epsilon=0.3)
torch.save([*outputs, *gradients, x_adv], sys.stdout.buffer)
"""

BLOCK_THE_MODULE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "adt_fast._C":
            raise ImportError("libwanted.so: cannot open shared object file")
sys.meta_path.insert(0, Blocked())
"""


def saved(run: subprocess.CompletedProcess) -> list[torch.Tensor]:
    assert run.returncode == 0, run.stderr.decode()
    return torch.load(io.BytesIO(run.stdout))


@pytest.fixture(scope="module")
def native_results() -> list[torch.Tensor]:
    run = run_python(SAMPLE_AND_SAVE, "native")
    assert run.stderr == b""
    return saved(run)


def test_without_the_module_the_numbers_are_the_same(native_results: list[torch.Tensor]) -> None:
    """And one warning names the cause and the cure."""
    check_reason = "assert 'libwanted.so' in adt_fast.build_info()['native_off_because']"
    blocked = run_python(BLOCK_THE_MODULE + SAMPLE_AND_SAVE + check_reason, "plain")
    for from_kernels, from_plain in zip(native_results, saved(blocked), strict=True):
        torch.testing.assert_close(from_plain, from_kernels, rtol=3e-6, atol=3e-6)
    message = blocked.stderr.decode()
    assert message.count("NativeUnavailableWarning") == 1
    assert "libwanted.so: cannot open shared object file" in message
    assert "pip install" in message and "plain PyTorch" in message


def test_the_reference_backend_is_chosen_without_a_warning(native_results: list[torch.Tensor]) -> None:
    chosen = run_python(SAMPLE_AND_SAVE, "plain", ADT_FAST_BACKEND="reference", PYTHONWARNINGS="error")
    for from_kernels, from_plain in zip(native_results, saved(chosen), strict=True):
        torch.testing.assert_close(from_plain, from_kernels, rtol=3e-6, atol=3e-6)


# ---- Environment variables, as the import reads them ---------------------------------------------------------------


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Loads the module again under other environment variables."""
    in_use = native.module.instruction_set()

    def load(**environment: str) -> tuple[ModuleType | None, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return native._load()

    yield load
    native.module.use_instruction_set(in_use)


def test_the_backend_can_be_chosen(load: Callable) -> None:
    module, because = load(ADT_FAST_BACKEND="reference")
    assert module is None and "ADT_FAST_BACKEND" in because
    assert load(ADT_FAST_BACKEND="auto") == (native.module, "")


@pytest.mark.parametrize("value", ["cuda", "native", "REFERENCE", ""])
def test_an_unknown_backend_is_an_error(value: str, load: Callable) -> None:
    with pytest.raises(ValueError, match=r"ADT_FAST_BACKEND.*'auto'.*'reference'") as error:
        load(ADT_FAST_BACKEND=value)
    assert repr(value) in str(error.value)


def test_an_unknown_backend_fails_the_import() -> None:
    run = run_python("import adt_fast", ADT_FAST_BACKEND="cuda")
    assert run.returncode != 0
    assert run.stderr.decode().splitlines()[-1].startswith("ValueError: ADT_FAST_BACKEND")


@pytest.mark.parametrize("value", ["avx", "AVX2", "neon512"])
def test_an_unknown_instruction_set_is_an_error(value: str, load: Callable) -> None:
    with pytest.raises(ValueError, match="ADT_FAST_CPU_ISA") as error:
        load(ADT_FAST_CPU_ISA=value)
    for choice in (value, *adt_fast.build_info()["cpu_instruction_sets"]):
        assert choice in str(error.value)


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


@pytest.mark.parametrize("name", supported_instruction_sets())
def test_the_instruction_set_can_be_chosen(name: str, load: Callable) -> None:
    assert load(ADT_FAST_CPU_ISA=name) == (native.module, "")
    assert adt_fast.build_info()["cpu_instruction_set"] == name


def test_the_best_instruction_set_is_the_default() -> None:
    run = run_python("import adt_fast; print(adt_fast.build_info()['cpu_instruction_set'])", ADT_FAST_CPU_ISA="")
    assert run.stdout.decode().strip() == supported_instruction_sets()[0]


# ---- Threads and instruction sets ----------------------------------------------------------------------------------


def run_everything(
    shape: tuple[int, ...] = (5, 3, 61, 59), dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Every kernel once, on tensors large enough for several threads and of no round size."""
    layout = torch.channels_last if dtype == torch.float32 else torch.contiguous_format
    generator = torch.Generator().manual_seed(8)
    k, noise = 3, NoiseStream(5, offset=2**33).state
    x, mu, rho, sum_mu, sum_rho, momentum = (
        torch.randn(shape, generator=generator, dtype=dtype).contiguous(memory_format=layout) for _ in range(6)
    )
    options = dict(epsilon=0.3, lower=-1.0, upper=1.5)
    results = {"normal": ops.normal(x, noise, samples=k)}

    leaves = [tensor.clone().requires_grad_() for tensor in (x, mu, rho)]
    x_adv, density = ops.tanh_gaussian_sample(*leaves, noise, samples=k, **options)
    gradients = torch.autograd.grad(x_adv.square().sum() + 0.1 * density.sum(), leaves)
    results |= {"x_adv": x_adv.detach(), "density": density.detach()}
    results |= dict(zip(("d/dx", "d/dmu", "d/drho"), gradients))

    grad = torch.sin(20 * results["x_adv"])
    next_x_adv, next_density = ops.tanh_gaussian_ascent_step_and_sample_(
        mu, rho, grad, x, noise, step_size=0.3, entropy_weight=0.01, accumulated=(sum_mu, sum_rho), density=True,
        **options,
    )  # fmt: skip
    results |= {"mu": mu, "rho": rho, "sum_mu": sum_mu, "sum_rho": sum_rho, "next x_adv": next_x_adv}
    results["next density"] = next_density
    for step in (ops.linf_step_, ops.l2_step_):
        results[step.__name__] = step(x_adv[0].detach().clone(), grad[0], x, step_size=0.05, **options)
    results["momentum_linf_step_"] = ops.momentum_linf_step_(
        x_adv[0].detach().clone(), momentum, grad[0], x, step_size=0.05, **options
    )
    scale, shift = x[0, :, 0, 0].contiguous(), x[0, :, 1, 1].contiguous()
    for storage in (dtype,) if dtype == torch.float64 else (dtype, torch.bfloat16, torch.float16):
        for relu in (True, False):
            leaf = x.detach().to(storage, copy=True).requires_grad_()
            y = ops.affine_relu(leaf, scale, shift, relu=relu)
            (gradient,) = torch.autograd.grad(y, leaf, grad[0].to(storage))
            results |= {f"affine {storage} {relu}": y.detach(), f"d/d affine {storage} {relu}": gradient}
    results |= {"momentum": momentum, "uniform_start_": ops.uniform_start_(torch.empty_like(x), x, noise, **options)}
    return results


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_number_of_threads_does_not_show(dtype: torch.dtype, restored_threads) -> None:
    results = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        results.append(run_everything(dtype=dtype))
    for other in results[1:]:
        assert_same_bits(results[0], other)


def test_runs_are_repeatable() -> None:
    first = run_everything()
    for _ in range(3):
        assert_same_bits(first, run_everything())


def test_calls_from_several_python_threads_do_not_meet() -> None:
    """The module lets go of the interpreter lock while it works."""
    alone = run_everything()
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: run_everything(), range(8)):
            assert_same_bits(alone, together)


# Sums over an example run over as many lanes as a register has.
SUMMED_OVER_LANES = {"density", "next density", "l2_step_", "momentum_linf_step_", "momentum"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_instruction_set_does_not_show(dtype: torch.dtype) -> None:
    """x_adv, gradients and steps are the same bits; what sums over an example is the same to rounding."""
    in_use, results = native.module.instruction_set(), {}
    try:
        for name in supported_instruction_sets():
            native.module.use_instruction_set(name)
            results[name] = run_everything(dtype=dtype)
    finally:
        native.module.use_instruction_set(in_use)
    best = results.pop(in_use)
    for other in results.values():
        assert_same_bits(*({n: t for n, t in r.items() if n not in SUMMED_OVER_LANES} for r in (best, other)))
        for name in SUMMED_OVER_LANES:
            epsilon = torch.finfo(dtype).eps
            torch.testing.assert_close(other[name], best[name], rtol=4 * epsilon, atol=4 * epsilon)


@pytest.mark.parametrize("name", supported_instruction_sets())
@pytest.mark.parametrize("flush", [False, True])
def test_subnormals_of_float16_are_read_as_they_are(name: str, flush: bool, load: Callable) -> None:
    """Every finite float16, times one and plus zero; whatever torch.set_flush_denormal says of float32."""
    load(ADT_FAST_CPU_ISA=name)
    numbers = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)
    x = torch.cat([numbers, -numbers]).view(1, 1, 2, -1)
    one, zero = torch.ones(1), torch.zeros(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the flag is this thread's
    try:
        torch.set_flush_denormal(flush)
        same = ops.affine_relu(x, one, zero, relu=False)
        # All but the last few, which are not a whole vector, and then one at a time.
        single = [ops.affine_relu(x[..., at : at + 1], one, zero, relu=False) for at in (1, 2, 0x3FF, 0x400)]
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert torch.equal(same, x)
    assert torch.equal(torch.cat(single, 3), x[..., [1, 2, 0x3FF, 0x400]])


# ---- Processes -----------------------------------------------------------------------------------------------------

FORK = """
import os, resource, sys, torch
from adt_fast import NoiseStream, ops

torch.set_num_threads(2)
x, noise = torch.zeros(64, 3072), NoiseStream(1).state
expected = ops.normal(x, noise, samples=5)  # starts the worker threads, which a child of fork does not have
child = os.fork()
if child == 0:
    torch.set_num_threads(int(sys.argv[1]))
    if sys.argv[2:]:  # memory for the result and the stacks of a few threads, in bytes
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
    drawn = ops.normal(x, noise, samples=5)
    torch.set_num_threads(1)  # torch's own operators would wait for the parent's threads
    os._exit(0 if torch.equal(drawn, expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="not Linux")
@pytest.mark.parametrize("threads", ["1", "2", "12"])
@pytest.mark.parametrize("memory", [[], [str(32 * 2**20)]], ids=["", "too few threads to be had"])
def test_an_operator_runs_in_a_forked_child(threads: str, memory: list[str]) -> None:
    """With one thread, as in a DataLoader's workers, and with several, also where some cannot be started."""
    program = subprocess.Popen([sys.executable, "-c", FORK, threads, *memory], start_new_session=True)
    try:
        assert program.wait(timeout=30) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, 9)  # the child too, if it hangs


def test_operators_run_without_torch_threads() -> None:
    """OMP_NUM_THREADS=1 and a first call from a thread other than the main one."""
    run = run_python(
        "import threading, torch; from adt_fast import NoiseStream, ops\n"
        "draw = lambda: print(ops.normal(torch.zeros(64, 3072), NoiseStream(1).state).isfinite().all())\n"
        "t = threading.Thread(target=draw)\n"
        "t.start(); t.join()",
        OMP_NUM_THREADS="1",
    )
    assert run.stdout.decode().strip() == "tensor(True)", run.stderr.decode()


# ---- Sizes ---------------------------------------------------------------------------------------------------------


def test_an_empty_batch_is_fine(device: torch.device) -> None:
    x, noise = torch.empty(0, 3, 4, 5, device=device), NoiseStream(1, device).state
    x_adv, density = ops.tanh_gaussian_sample(x, x, x, noise, samples=2, epsilon=0.1)
    assert x_adv.shape == (2, 0, 3, 4, 5) and density.shape == (2, 0)
    ops.tanh_gaussian_ascent_step_(
        x.clone(), x.clone(), x_adv, x, noise, epsilon=0.1, step_size=0.1, entropy_weight=1.0, entropy_reduction="mean"
    )
    for step in (ops.linf_step_, ops.l2_step_):
        assert step(x.clone(), x, x, step_size=0.1, epsilon=0.1).shape == x.shape
    assert ops.momentum_linf_step_(x.clone(), x.clone(), x, x, step_size=0.1, epsilon=0.1).shape == x.shape
    assert ops.uniform_start_(x.clone(), x, noise, epsilon=0.1).shape == x.shape
    assert ops.normal(x, noise, samples=2).shape == (2, *x.shape)
    y = ops.affine_relu(x.clone().requires_grad_(), *torch.ones(2, 3, device=device))
    y.sum().backward()
    assert y.shape == x.shape


def available_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


BEYOND_INT32 = 2**31 + 5
needs_memory = pytest.mark.skipif(available_memory() < 14 * 2**30, reason="needs 14 GiB of free memory")


def first_normals_of_block(block: int, *, example: int = 0, sample: int = 0) -> torch.Tensor:
    """The four normals of a block of seed 6."""
    words = independent_noise.philox4x32((np.array([block]), example, 0, sample), (6, 0))
    return torch.from_numpy(independent_noise.box_muller(words)[0].astype(np.float32))


@pytest.mark.slow
@needs_memory
def test_more_than_2_31_elements_in_an_example() -> None:
    like = torch.zeros(1).expand(1, BEYOND_INT32)  # gives the shape, takes no memory
    r = ops.normal(like, NoiseStream(6).state)[0, 0]
    for block in (0, 2**29 - 1, BEYOND_INT32 // 4):  # first, at the edge of int32, last
        found = r[4 * block : 4 * block + 4]
        torch.testing.assert_close(found, first_normals_of_block(block)[: len(found)], atol=4e-6, rtol=0)


@pytest.mark.slow
@needs_memory
def test_more_than_2_31_elements_in_all_samples() -> None:
    """The last sample lies where it belongs, and a gradient at the last element moves that one alone."""
    shape, noise = (3, 3, 384, 384), NoiseStream(6).state
    k = BEYOND_INT32 // (3 * 3 * 384 * 384) + 1
    x, mu, rho = (torch.full(shape, value) for value in (0.5, 0.1, -0.1))
    x_adv, _ = ops.tanh_gaussian_sample(x, mu, rho, noise, samples=k, epsilon=0.3, dtype=torch.bfloat16, density=False)
    assert x_adv.numel() > 2**31
    sigma = torch.nn.functional.softplus(rho[0, 0, 0, :4])
    expected = 0.5 + 0.3 * torch.tanh(0.1 + sigma * first_normals_of_block(0, example=2, sample=k - 1))
    torch.testing.assert_close(x_adv[-1, 2, 0, 0, :4], expected.bfloat16(), atol=4e-3, rtol=0)

    gradient, before = x_adv.zero_(), mu.clone()
    gradient[-1, -1, -1, -1, -1] = 1.0
    ops.tanh_gaussian_ascent_step_(mu, rho, gradient, x, noise, epsilon=0.3, step_size=0.1, update="sign")
    assert (mu != before).nonzero().tolist() == [[2, 2, 383, 383]]
