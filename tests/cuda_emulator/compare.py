"""Runs every operator's GPU kernels, emulated, beside its CPU kernels, and compares all they write.

    python compare.py MODULE [--operators sample l2_step ...]

MODULE is a built `_emulated` extension. Prints the number of cases and exits with 0, or prints what differs and exits
with 1. It needs NumPy alone, so that sanitizers watch the kernels and little else. Buffers have their exact size (a
sanitizer sees one element too far), and outputs start as NaN (an element that nobody writes shows).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np

# The codes of adt::DType (csrc/kernels.h), and the type that holds the bits in NumPy.
CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
HOLDERS = {"float32": np.float32, "float64": np.float64, "bfloat16": np.uint16, "float16": np.float16}

CPU_DEVICE, EMULATED_DEVICE, MISSING_DEVICE = -1, 0, 3
BALL = (0.3, 0.0, 1.0)  # epsilon, lower, upper; so wide that many elements are clamped
DRAW, NEXT_DRAW, FIRST_EXAMPLE = 3, 4, 2
LOG_OFFSET = 1e-8
STEP = 0.05

# Sums over an example are added up in another order: how far their results may differ, relative to the magnitude of the
# numbers added up. Everything else must be equal in bits.
ROUNDING = {"float32": 4e-6, "float64": 1e-13, "bfloat16": 2**-8, "float16": 2**-11}


@dataclass(frozen=True)
class Case:
    operator: str
    shape: tuple[int, int, int, bool]  # B, C, P, channels_last
    dtype: str = "float32"
    storage: str = "float32"
    gradient: str = "float32"  # of the projected steps
    samples: int = 1
    option: str = ""
    shifted: str = ""  # the buffer that starts one element past an aligned address, or "all"

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


# ---- Buffers -------------------------------------------------------------------------------------------------------


class Buffers:
    """The arrays of one call, kept alive and addressed."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.outputs: dict[str, np.ndarray] = {}

    def empty(self, name: str, size: int, dtype: str) -> np.ndarray:
        """NaN everywhere; ends where its memory does."""
        holder = np.dtype(HOLDERS[dtype])
        shift = holder.itemsize * (self._case.shifted in ("all", name))
        memory = np.full(shift + size * holder.itemsize, 0xFF, np.uint8)
        assert memory.ctypes.data % 16 == 0, "NumPy's memory is aligned to 16 bytes"
        return memory[shift:].view(holder)

    def output(self, name: str, size: int, dtype: str) -> int:
        self.outputs[name] = self.empty(name, size, dtype)
        return self.outputs[name].ctypes.data

    def updated(self, name: str, values: np.ndarray, dtype: str) -> int:
        address = self.output(name, values.size, dtype)
        self.outputs[name][:] = stored(values, dtype)
        return address

    def input(self, name: str, values: np.ndarray, dtype: str) -> int:
        array = self.empty(name, values.size, dtype)
        array[:] = stored(values, dtype)
        setattr(self, name, array)  # alive as long as the call's buffers
        return array.ctypes.data


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values in a dtype; bfloat16, which NumPy lacks, as bits, cut off."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(HOLDERS[dtype])


def real(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


class Values:
    """Named random inputs, the same in every call of a case."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._random = np.random.default_rng(case.elements + case.samples)

    def image(self) -> np.ndarray:
        return self._random.random(self._case.elements)

    def normal(self, repeats: int = 1, scale: float = 1.0) -> np.ndarray:
        return self._random.normal(scale=scale, size=repeats * self._case.elements)

    def channels(self) -> np.ndarray:
        return self._random.normal(size=self._case.shape[1])


# ---- The operators: each makes its buffers and calls the module; the outputs stay in the buffers ------------------


def noise(buffers: Buffers) -> tuple[int, int, int]:
    buffers.state = np.array([0x1234_5678_9ABC_DEF0, (1 << 33) - 4], np.int64)
    return buffers.state.ctypes.data, DRAW, FIRST_EXAMPLE


def density(module: ModuleType, case: Case, buffers: Buffers, wanted: bool) -> tuple[int, int]:
    """Addresses of the output and of the partial sums."""
    if not wanted:
        return 0, 0
    rows = case.samples * case.shape[0]
    buffers.partials = buffers.empty("partials", rows * module.density_partials(case.shape), case.dtype)
    return buffers.output("neg_log_density", rows, case.dtype), buffers.partials.ctypes.data


def head(case: Case) -> tuple:
    return CODES[case.dtype], CODES[case.storage], case.shape, BALL


def log_offset(case: Case) -> float:
    return LOG_OFFSET if "offset" in case.option else 0.0


def sample(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    x, mu, rho = values.image(), values.normal(), values.normal(scale=2.0) - 1
    module.tanh_gaussian_sample(
        target, *head(case), noise(buffers), case.samples, log_offset(case),
        *(buffers.input(*named, case.dtype) for named in (("x", x), ("mu", mu), ("rho", rho))),
        buffers.output("x_adv", case.samples * case.elements, case.storage),
        *density(module, case, buffers, "density" in case.option),
    )  # fmt: skip


def sample_backward(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    x, mu, rho, grad = values.image(), values.normal(), values.normal(scale=2.0) - 1, values.normal(case.samples)
    weight = np.linspace(-1, 1, case.samples * case.shape[0])
    wanted = ("grad_x", "grad_mu", "grad_rho")
    module.tanh_gaussian_sample_backward(
        target, *head(case), noise(buffers), case.samples, log_offset(case),
        buffers.input("grad_x_adv", grad, case.storage),
        buffers.input("weight", weight, case.dtype) if case.option != "no density" else 0,
        *(buffers.input(*named, case.dtype) for named in (("x", x), ("mu", mu), ("rho", rho))),
        *(buffers.output(name, case.elements, case.dtype) if case.option in ("", "no density", "offset", name) else 0
          for name in wanted),
    )  # fmt: skip


def ascent(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    x, mu, rho, grad = values.image(), values.normal(), values.normal(scale=2.0) - 1, values.normal(case.samples)
    accumulated = "accumulated" in case.option
    samples_too = "sample" in case.option
    module.tanh_gaussian_ascent(
        target, *head(case), noise(buffers), case.samples, int("sign" in case.option), STEP, 1.7, 0.01,
        log_offset(case), buffers.input("grad_x_adv", grad, case.storage),
        buffers.input("x", x, case.dtype), buffers.updated("mu", mu, case.dtype),
        buffers.updated("rho", rho, case.dtype),
        *(buffers.updated(name, values.normal(), case.dtype) if accumulated else 0 for name in ("sum_mu", "sum_rho")),
        NEXT_DRAW, buffers.output("x_adv", case.samples * case.elements, case.storage) if samples_too else 0,
        *density(module, case, buffers, "density" in case.option),
    )  # fmt: skip


def projected_step(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    x, x_adv, grad = values.image(), values.image(), values.normal()
    if case.option == "zero gradient":
        grad[: grad.size // max(case.shape[0], 1)] = 0
    momentum = case.operator == "momentum_linf_step"
    getattr(module, case.operator)(
        target, CODES[case.dtype], CODES[case.storage], CODES[case.gradient], case.shape, BALL, STEP,
        *((0.9,) if momentum else ()), buffers.input("grad", grad, case.gradient), buffers.input("x", x, case.dtype),
        buffers.updated("x_adv", x_adv, case.storage),
        *((buffers.updated("momentum", values.normal(scale=0.01), case.dtype),) if momentum else ()),
    )  # fmt: skip


def uniform_start(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    module.uniform_start(
        target, *head(case), noise(buffers), buffers.input("x", values.image(), case.dtype),
        buffers.output("x_adv", case.elements, case.storage),
    )  # fmt: skip


def normal(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    module.normal(
        target, CODES[case.dtype], case.shape, noise(buffers), case.samples,
        buffers.output("r", case.samples * case.elements, case.dtype),
    )  # fmt: skip


def affine_relu(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    x = values.normal()
    module.affine_relu(
        target, CODES[case.dtype], CODES[case.storage], case.shape, case.option != "no relu",
        buffers.input("x", x, case.storage),
        *(buffers.input(name, values.channels(), case.dtype) for name in ("scale", "shift")),
        buffers.output("y", case.elements, case.storage),
    )  # fmt: skip


def affine_relu_backward(module: ModuleType, target: tuple, case: Case, buffers: Buffers, values: Values) -> None:
    grad, y = values.normal(), np.maximum(values.normal(), 0)
    module.affine_relu_backward(
        target, CODES[case.dtype], CODES[case.storage], case.shape, buffers.input("grad_y", grad, case.storage),
        buffers.input("y", y, case.storage) if case.option != "no relu" else 0,
        buffers.input("scale", values.channels(), case.dtype), buffers.output("grad_x", case.elements, case.storage),
    )  # fmt: skip


@dataclass(frozen=True)
class Operator:
    run: Callable[[ModuleType, tuple, Case, Buffers, Values], None]
    buffers: tuple[str, ...]  # those that packs of four are read from or written to
    options: tuple[str, ...] = ("",)
    rounded: dict[str, Callable[[Case], float]] = field(default_factory=dict)  # magnitudes, beside the output itself
    has_samples: bool = True
    has_gradient: bool = False


DENSITY = {"neg_log_density": lambda case: case.shape[1] * case.shape[2]}
ASCENT_BUFFERS = ("grad_x_adv", "x", "mu", "rho", "sum_mu", "sum_rho", "x_adv")
OPERATORS = {
    "sample": Operator(sample, ("x", "mu", "rho", "x_adv"), ("density", "", "offset density"), DENSITY),
    "sample_backward": Operator(
        sample_backward,
        ("grad_x_adv", "x", "mu", "rho", "grad_x", "grad_mu", "grad_rho"),
        ("", "no density", "offset", "grad_x", "grad_mu", "grad_rho"),
        {"grad_rho": lambda case: case.samples},  # the CPU adds the samples' weights in double
    ),
    "ascent": Operator(
        ascent,
        ASCENT_BUFFERS,
        ("accumulated sample density", "", "sign sample", "offset accumulated", "offset sample density"),
        DENSITY,
    ),
    "linf_step": Operator(
        projected_step, ("grad", "x", "x_adv"), ("", "zero gradient"), has_samples=False, has_gradient=True
    ),
    "l2_step": Operator(
        projected_step,
        ("grad", "x", "x_adv"),
        ("", "zero gradient"),
        {"x_adv": lambda case: 1.0},
        has_samples=False,
        has_gradient=True,
    ),
    "momentum_linf_step": Operator(
        projected_step,
        ("grad", "x", "x_adv", "momentum"),
        ("", "zero gradient"),
        {"momentum": lambda case: 0.01},
        has_samples=False,
        has_gradient=True,
    ),
    "uniform_start": Operator(uniform_start, ("x", "x_adv"), has_samples=False),
    "normal": Operator(normal, ("r",)),
    "affine_relu": Operator(affine_relu, ("x", "y"), ("", "no relu"), has_samples=False),
    "affine_relu_backward": Operator(
        affine_relu_backward, ("grad_y", "y", "grad_x"), ("", "no relu"), has_samples=False
    ),
}

# ---- The cases -----------------------------------------------------------------------------------------------------

# The emulated grid has at most 5 blocks (CMakeLists.txt) of 128 tiles or 256 runs: the last seven need more than that.
SHAPES = (
    (0, 3, 4, False),
    (1, 1, 1, False),
    (3, 1, 1, False),
    (1, 1, 7, False),
    (3, 1, 64, True),
    (2, 3, 16, False),
    (2, 3, 16, True),
    (2, 3, 15, False),
    (2, 3, 15, True),
    (2, 5, 12, True),
    (2, 5, 9, True),
    (1, 20, 8, True),
    (2, 20, 6, True),
    (2, 20, 6, False),
    (7, 3, 8, False),
    (7, 3, 8, True),
    (6, 1, 5, False),
    (2, 1, 1200, False),
    (3, 3, 800, False),
    (3, 3, 820, True),
    (11, 20, 60, True),
)
VECTOR_SHAPES = ((2, 1, 12, False), (2, 3, 12, True), (2, 8, 3, True))
TYPES = (("float32", "float32"), ("float32", "bfloat16"), ("float32", "float16"), ("float64", "float64"))


def cases(name: str) -> Iterator[Case]:
    operator = OPERATORS[name]
    for dtype, storage in TYPES:
        if name == "normal" and storage != dtype:
            continue
        gradients = dict.fromkeys((storage, dtype)) if operator.has_gradient else ("float32",)
        for gradient in gradients:
            base = Case(name, (0, 0, 0, False), dtype, storage, gradient)
            for shape in SHAPES:
                for option in operator.options:
                    samples = 5 if operator.has_samples else 1
                    yield replace(base, shape=shape, option=option, samples=samples)
                yield replace(base, shape=shape, option=operator.options[0], shifted="all")
            for shape in VECTOR_SHAPES:
                for buffer in operator.buffers:
                    yield replace(base, shape=shape, option=operator.options[0], shifted=buffer)
                if operator.has_samples:
                    yield replace(base, shape=shape, option=operator.options[0], samples=33)


# ---- The comparison ------------------------------------------------------------------------------------------------


def outputs(module: ModuleType, device: int, case: Case) -> dict[str, np.ndarray]:
    buffers = Buffers(case)
    OPERATORS[case.operator].run(module, (device, 0, 1), case, buffers, Values(case))
    return buffers.outputs


def refused(module: ModuleType, device: int, case: Case) -> bool:
    try:
        outputs(module, device, case)
    except RuntimeError:
        return True
    return False


def differences(case: Case, emulated: dict[str, np.ndarray], cpu: dict[str, np.ndarray]) -> Iterator[str]:
    for name, expected in cpu.items():
        actual = emulated[name]
        if not np.isfinite(real(expected)).all():
            yield f"{name}: the CPU kernel's is not finite"
        if magnitude := OPERATORS[case.operator].rounded.get(name):
            rounding = ROUNDING[case.storage if name == "x_adv" else case.dtype]
            allowed = rounding * (np.abs(real(expected)) + magnitude(case))
            wrong = ~(np.abs(real(actual) - real(expected)) <= allowed)
        else:
            bits = f"u{actual.itemsize}"
            wrong = actual.view(bits) != expected.view(bits)
        if wrong.any():
            first = int(wrong.argmax())
            yield (
                f"{name}: {wrong.sum()} of {wrong.size} differ, first [{first}]: {real(actual)[first]!r} "
                f"instead of {real(expected)[first]!r}"
            )


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", type=Path)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    arguments = parser.parse_args()
    module = load(str(arguments.module))
    count = 0
    for name in arguments.operators:
        # Whose error is the call's own: the next one, below, must not be blamed for it.
        if not refused(module, MISSING_DEVICE, next(case for case in cases(name) if case.elements)):
            print(f"{name} ran on a device that is not there")
            return 1
        for case in cases(name):
            cpu = outputs(module, CPU_DEVICE, case)
            for order in ("forward", "reverse"):
                os.environ["ADT_EMULATED_ORDER"] = order
                count += 1
                try:
                    found = list(differences(case, outputs(module, EMULATED_DEVICE, case), cpu))
                except RuntimeError as error:
                    found = [str(error)]
                if found:
                    print(f"{case}, {order} order", *found, sep="\n  ")
                    return 1
    print(f"{count} cases agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
