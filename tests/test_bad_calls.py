"""Hundreds of bad calls: each raises a clear error that names the argument, and changes nothing.

A good call of every operator is written down once; the bad ones are generated from it, by what each argument is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from adt_fast import NoiseStream, ops

SHAPE, SAMPLES = (2, 3, 4, 5), 3
BALL = dict(epsilon=0.1, lower=0.0, upper=1.0)
NAN, INF = math.nan, math.inf


def batch(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(0.1, 0.9, math.prod(SHAPE), dtype=dtype).view(SHAPE)


def channels() -> torch.Tensor:
    return torch.linspace(-1, 1, SHAPE[1])


def samples_of_batch() -> torch.Tensor:
    return torch.linspace(-1, 1, SAMPLES * math.prod(SHAPE)).view(SAMPLES, *SHAPE)


def noise() -> torch.Tensor:
    return NoiseStream(3, offset=5).state


def ascent_arguments() -> dict[str, Any]:
    return dict(
        mu=batch(), rho=batch(), grad_x_adv=samples_of_batch(), x=batch(), noise=noise(), **BALL, step_size=0.3,
        entropy_weight=0.01, entropy_reduction="sum", update="adam", grad_scale=1.0, log_offset=0.0,
        accumulated=(batch(), batch()), draw=1, first_example=2,
    )  # fmt: skip


def step_arguments(**more: Any) -> dict[str, Any]:
    return dict(x_adv=batch(), grad=batch(), x=batch(), step_size=0.05, **BALL, **more)


GOOD_CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "tanh_gaussian_sample": lambda: dict(
        x=batch(), mu=batch(), rho=batch(), noise=noise(), samples=SAMPLES, **BALL, draw=1, first_example=2,
        dtype=torch.float32, density=True, log_offset=1e-8,
    ),
    "tanh_gaussian_ascent_step_": ascent_arguments,
    "tanh_gaussian_ascent_step_and_sample_": lambda: ascent_arguments() | dict(
        next_draw=2, out=samples_of_batch(), density=True
    ),
    "linf_step_": step_arguments,
    "l2_step_": step_arguments,
    "momentum_linf_step_": lambda: step_arguments(momentum=batch(), decay=0.9),
    "uniform_start_": lambda: dict(x_adv=batch(), x=batch(), noise=noise(), **BALL, draw=1, first_example=2),
    "normal": lambda: dict(like=batch(), noise=noise(), samples=SAMPLES, draw=1, first_example=2),
    "affine_relu": lambda: dict(x=batch(), scale=channels(), shift=channels(), relu=True),
}  # fmt: skip

# What each argument is, in any operator.
TENSORS = {"x", "mu", "rho", "x_adv", "grad", "momentum", "like"}
SAMPLE_TENSORS = {"grad_x_adv", "out"}
CHANNEL_TENSORS = {"scale", "shift"}
WRITTEN = {
    "tanh_gaussian_ascent_step_": {"mu", "rho"},
    "tanh_gaussian_ascent_step_and_sample_": {"mu", "rho", "out"},
    "linf_step_": {"x_adv"},
    "l2_step_": {"x_adv"},
    "momentum_linf_step_": {"x_adv", "momentum"},
    "uniform_start_": {"x_adv"},
}
MAY_BE_HALF = {"x_adv", "grad", "grad_x_adv"}
FINITE = {"step_size", "entropy_weight", "grad_scale"}
NOT_NEGATIVE = {"log_offset", "decay"}
INTEGERS = {"samples": (1, 2**24), "draw": (0, 2**40 - 1), "next_draw": (0, 2**40 - 1), "first_example": (0, 2**32 - 2)}
CHOICES = {"entropy_reduction", "update"}


@dataclass
class BadCall:
    """A call with one argument (or one pair of arguments) made bad."""

    operator: str
    argument: str
    flaw: str
    change: Callable[[dict[str, Any]], None]
    named: str = ""  # other arguments that the error may name instead, separated by spaces

    def __str__(self) -> str:
        return f"{self.operator}-{self.argument}-{self.flaw}"


def replaced(argument: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    """Changes one argument of a good call."""

    def change(arguments: dict[str, Any]) -> None:
        arguments[argument] = make(arguments[argument])

    return change


NOT_TENSORS = {"None": None, "float": 0.5, "list": [[0.5]], "array": np.full(SHAPE, 0.5, np.float32), "str": "x"}


def tensor_flaws(argument: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for flaw, value in NOT_TENSORS.items():
        if not (argument == "out" and value is None):  # out=None is the default
            yield flaw, lambda _, value=value: value
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        yield str(dtype), lambda t, dtype=dtype: t.to(dtype)
    if argument not in MAY_BE_HALF:
        yield "float16", lambda t: t.half()
        yield "bfloat16", lambda t: t.bfloat16()
    if argument not in ("x", "like", "mu"):  # for these the others are wrong
        yield "float64", lambda t: t.double()
    yield "meta device", lambda t: t.to("meta")
    yield "sparse", lambda t: t.to_sparse()
    yield "quantized", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)
    yield "0-d", lambda t: t.reshape(-1)[0]
    if argument != "like":
        yield "flattened", lambda t: t.reshape(-1)
        yield "one row more", lambda t: torch.cat([t, t[:, :1]], dim=1)
        yield "one channel less", lambda t: t[..., :-1, :, :].contiguous()
        yield "transposed", lambda t: t.transpose(-1, -2)
        yield "one dimension more", lambda t: t[None]
        yield "broadcastable", lambda t: t[..., :1]
    yield "empty examples", lambda t: t[..., :0]
    if argument in SAMPLE_TENSORS:
        yield "no samples", lambda t: t[:0]
        yield "samples last", lambda t: t.movedim(0, -1)


def activation_flaws() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Of x where scale and shift say how many channels it has, and any floating dtype will do but float64."""
    for flaw, value in NOT_TENSORS.items():
        yield flaw, lambda _, value=value: value
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float64):
        yield str(dtype), lambda t, dtype=dtype: t.to(dtype)
    yield "meta device", lambda t: t.to("meta")
    yield "sparse", lambda t: t.to_sparse()
    yield "0-d", lambda t: t.reshape(-1)[0]
    yield "1-d", lambda t: t.reshape(-1)
    yield "channels elsewhere", lambda t: t.movedim(1, -1)
    yield "empty examples", lambda t: t[..., :0]


def channel_flaws() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for flaw, value in NOT_TENSORS.items():
        yield flaw, lambda _, value=value: value
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16, torch.float64):
        yield str(dtype), lambda t, dtype=dtype: t.to(dtype)
    yield "meta device", lambda t: t.to("meta")
    yield "sparse", lambda t: t.to_sparse()
    yield "0-d", lambda t: t[0]
    yield "one number", lambda t: t[:1]
    yield "one number more", lambda t: torch.cat([t, t[:1]])
    yield "broadcastable", lambda t: t.view(-1, 1, 1)
    yield "requires grad", lambda t: t.requires_grad_()
    yield "not a leaf", lambda t: t.requires_grad_() * 1


def written_flaws() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    yield "sliced", lambda t: torch.cat([t, t], dim=-1)[..., ::2]
    yield "expanded", lambda t: t[..., :1, :].expand(t.shape)
    yield "permuted", lambda t: t.transpose(-1, -3).contiguous().transpose(-1, -3)
    yield "requires grad", lambda t: t.requires_grad_()
    yield "not a leaf", lambda t: t.requires_grad_() * 1


NOISE_FLAWS: dict[str, Callable[[Any], Any]] = {
    "stream": lambda _: NoiseStream(3),
    "None": lambda _: None,
    "int": lambda _: 3,
    "float": lambda n: n.double(),
    "int32": lambda n: n.int(),
    "one number": lambda n: n[:1],
    "three numbers": lambda n: torch.cat([n, n[:1]]),
    "0-d": lambda n: n[0],
    "2-d": lambda n: n[None],
    "strided": lambda n: torch.stack([n, n], dim=1)[:, 0],
    "meta device": lambda n: n.to("meta"),
    "sparse": lambda n: n.to_sparse(),
}

NOT_NUMBERS = {"None": None, "str": "0.1", "list": [0.1], "bool": True, "complex": 0.1j, "tensor": torch.tensor(0.1)}
NOT_FINITE = {"nan": NAN, "inf": INF, "-inf": -INF}
HUGE = {"beyond float64": 10**400, "beyond -float64": -(10**400), "beyond float32": 1e39, "beyond -float32": -1e39}


def scalar_flaws(argument: str) -> dict[str, Any]:
    if argument == "epsilon":
        return NOT_NUMBERS | NOT_FINITE | HUGE | {"zero": 0.0, "negative": -0.1}
    if argument in ("lower", "upper"):
        huge = {flaw: value for flaw, value in HUGE.items() if "float64" in flaw}
        return NOT_NUMBERS | huge | {"nan": NAN} | ({"inf": INF} if argument == "lower" else {"-inf": -INF})
    if argument in FINITE:
        return NOT_NUMBERS | NOT_FINITE | HUGE
    if argument in NOT_NEGATIVE:
        return NOT_NUMBERS | NOT_FINITE | HUGE | {"negative": -1e-9}
    if argument in CHOICES:
        return {"None": None, "other": "maximum", "case": "SUM", "int": 1, "empty": "", "list": ["sum"]}
    lowest, highest = INTEGERS[argument]
    not_ints = NOT_NUMBERS | NOT_FINITE | {"float": 1.0, "array": np.int64(1)}
    if argument == "next_draw":
        del not_ints["None"]  # the default
    return not_ints | {"too small": lowest - 1, "too large": highest + 1, "far too large": 10**400}


def argument_flaws(operator: str, argument: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    if operator == "affine_relu" and argument == "x":
        yield from activation_flaws()
    elif argument in CHANNEL_TENSORS:
        yield from channel_flaws()
    elif argument in ("relu", "density"):
        for value in (None, 1, 0.0, "relu", torch.tensor(True)):
            yield str(value), lambda _, value=value: value
    elif argument in TENSORS | SAMPLE_TENSORS:
        yield from tensor_flaws(argument)
        if argument in WRITTEN.get(operator, ()):
            yield from written_flaws()
    elif argument == "noise":
        yield from NOISE_FLAWS.items()
    elif argument == "accumulated":
        for flaw, value in {"tensor": batch(), "int": 3, "triple": (batch(),) * 3, "single": (batch(),)}.items():
            yield flaw, lambda _, value=value: value
        yield "half missing", lambda pair: (pair[0], None)
        yield "twice the same", lambda pair: (pair[0], pair[0])
        for i in (0, 1):
            for flaw, make in (*tensor_flaws("momentum"), *written_flaws()):
                yield (
                    f"[{i}] {flaw}",
                    lambda pair, i=i, make=make: tuple(
                        make(tensor) if j == i else tensor for j, tensor in enumerate(pair)
                    ),
                )
    elif argument == "dtype":
        for value in (torch.float64, torch.int32, torch.float8_e4m3fn, "float32", 16):
            yield str(value), lambda _, value=value: value
    else:
        for flaw, value in scalar_flaws(argument).items():
            yield flaw, lambda _, value=value: value


# x (or mu, or like) sets the shape and dtype that the others must have, so these may be the ones an error names.
SETS_THE_SHAPE = {"x": "mu x_adv scale", "mu": "rho", "x_adv": "", "like": ""}


def single_argument_flaws() -> Iterator[BadCall]:
    for operator, make in GOOD_CALLS.items():
        for argument in make():
            named = SETS_THE_SHAPE.get(argument, "")
            for flaw, change in argument_flaws(operator, argument):
                yield BadCall(operator, argument, flaw, replaced(argument, change), named)


def aliases() -> Iterator[BadCall]:
    """A written tensor that shares memory, wholly or in part, with another argument."""
    for operator, written in WRITTEN.items():
        tensors = [a for a in GOOD_CALLS[operator]() if a in TENSORS | SAMPLE_TENSORS]
        for mine in sorted(written):
            for other in tensors:
                if other == mine or (other in written and other < mine):
                    continue
                yield BadCall(operator, mine, f"is {other}", share(mine, other, 0), other)
                yield BadCall(operator, mine, f"overlaps {other}", share(mine, other, 7), other)
    for operator in ("tanh_gaussian_ascent_step_", "tanh_gaussian_ascent_step_and_sample_"):
        for other in ("mu", "rho", "x"):
            yield BadCall(operator, "accumulated", f"holds {other}", hold(other), other)


def share(mine: str, other: str, shift: int) -> Callable[[dict[str, Any]], None]:
    """Lays two tensors into one buffer, ``shift`` elements apart."""

    def change(arguments: dict[str, Any]) -> None:
        shapes = arguments[mine].shape, arguments[other].shape
        sizes = [shape.numel() for shape in shapes]
        buffer = torch.linspace(0.1, 0.9, max(sizes) + shift)
        arguments[mine] = buffer[: sizes[0]].view(shapes[0])
        arguments[other] = buffer[shift : shift + sizes[1]].view(shapes[1])

    return change


def hold(other: str) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        arguments["accumulated"] = (arguments["accumulated"][0], arguments[other])

    return change


def combinations() -> Iterator[BadCall]:
    """Each argument is fine, the combination is not."""
    channels_last = dict(memory_format=torch.channels_last)
    for operator, make in GOOD_CALLS.items():
        good = make()
        if "lower" in good:
            for flaw, lower, upper in (("crossed", 1.0, 0.0), ("equal", 0.5, 0.5), ("nowhere", INF, INF),
                                       ("nowhere below", -INF, -INF), ("both nan", NAN, NAN)):  # fmt: skip
                yield BadCall(
                    operator, "lower", flaw, lambda a, lo=lower, hi=upper: a.update(lower=lo, upper=hi), "upper"
                )
        if "first_example" in good:
            end = 2**32 - SHAPE[0] + 1
            yield BadCall(
                operator, "first_example", "batch beyond the end", replaced("first_example", lambda _, e=end: e)
            )
    for operator in ("tanh_gaussian_ascent_step_", "tanh_gaussian_ascent_step_and_sample_"):
        yield BadCall(operator, "rho", "other layout", replaced("rho", lambda t: t.contiguous(**channels_last)))
        for i in (0, 1):
            yield BadCall(
                operator, "accumulated", f"[{i}] other layout",
                replaced("accumulated", lambda pair, i=i: tuple(
                    t.contiguous(**channels_last) if j == i else t for j, t in enumerate(pair)
                )),
            )  # fmt: skip
    yield BadCall(
        "momentum_linf_step_", "momentum", "other layout", replaced("momentum", lambda t: t.contiguous(**channels_last))
    )
    and_sample = "tanh_gaussian_ascent_step_and_sample_"
    for flaw, value in scalar_flaws("draw").items():  # from which the default of next_draw follows
        change = lambda arguments, value=value: arguments.update(draw=value, next_draw=None)  # noqa: E731
        yield BadCall(and_sample, "draw", f"{flaw}, next_draw by default", change)
    yield BadCall(and_sample, "out", "slabs apart", replaced("out", lambda t: torch.cat([t, t], dim=1)[:, : SHAPE[0]]))
    yield BadCall(
        and_sample, "out", "other layout",
        replaced("out", lambda t: t.flatten(0, 1).contiguous(**channels_last).unflatten(0, t.shape[:2])),
    )  # fmt: skip
    yield BadCall(and_sample, "out", "other dtype", replaced("out", lambda t: t.bfloat16()))
    yield BadCall(and_sample, "out", "more samples", replaced("out", lambda t: torch.cat([t, t])))
    for operator in ("linf_step_", "l2_step_", "momentum_linf_step_", "uniform_start_"):
        yield BadCall(operator, "x_adv", "half for double", lambda a: a.update(
            {name: t.double() for name, t in a.items() if isinstance(t, torch.Tensor) and name != "noise"},
            x_adv=a["x_adv"].half(),
        ))  # fmt: skip
    yield BadCall("tanh_gaussian_sample", "dtype", "half for double", lambda a: a.update(
        x=a["x"].double(), mu=a["mu"].double(), rho=a["rho"].double(), dtype=torch.bfloat16
    ))  # fmt: skip


BAD_CALLS = [*single_argument_flaws(), *aliases(), *combinations()]


def raw_bytes(value: Any) -> Any:
    """Everything in the memory behind the tensors of an argument."""
    if isinstance(value, (tuple, list)):
        return [raw_bytes(item) for item in value]
    if isinstance(value, NoiseStream):
        return raw_bytes(value.state)
    if not isinstance(value, torch.Tensor) or value.device.type == "meta":
        return None
    if value.layout != torch.strided:
        return raw_bytes([value.indices(), value.values()])
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).numpy().tobytes()


def test_there_are_at_least_500() -> None:
    assert len({str(call) for call in BAD_CALLS}) == len(BAD_CALLS)
    assert len(BAD_CALLS) >= 500
    print(f"{len(BAD_CALLS)} bad calls")


@pytest.mark.parametrize("operator", GOOD_CALLS)
def test_the_good_call_is_good(operator: str) -> None:
    getattr(ops, operator)(**GOOD_CALLS[operator]())


def test_parts_of_one_buffer_may_be_written() -> None:
    """Side by side is not overlapping."""
    arguments = ascent_arguments()
    buffer = torch.zeros(5, *SHAPE)
    arguments |= dict(mu=buffer[0], rho=buffer[1], x=buffer[2], accumulated=(buffer[3], buffer[4]))
    ops.tanh_gaussian_ascent_step_(**arguments)
    assert not buffer[2].any() and buffer[0].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("call", BAD_CALLS, ids=str)
def test_a_bad_call_is_refused(call: BadCall) -> None:
    arguments = GOOD_CALLS[call.operator]()
    call.change(arguments)
    before = {name: raw_bytes(value) for name, value in arguments.items()}
    with pytest.raises((TypeError, ValueError)) as error:
        getattr(ops, call.operator)(**arguments)
    names = "|".join([call.argument, *call.named.split()])
    assert re.search(rf"\b({names})\b", str(error.value)), f"{call.argument} is not named in: {error.value}"
    assert before == {name: raw_bytes(value) for name, value in arguments.items()}


# ---- NoiseStream ---------------------------------------------------------------------------------------------------

NOT_INTS = dict(NOT_NUMBERS) | NOT_FINITE | {"float": 1.0, "array": np.int64(1)}
STREAM_FLAWS = {
    "seed": NOT_INTS | {"too small": -(2**63) - 1, "too large": 2**63, "far too large": 10**400},
    "offset": NOT_INTS | {"negative": -1, "too large": 2**40, "far too large": 10**400},
    "draws": NOT_INTS | {"negative": -1, "too large": 2**40},
    "state": {
        "None": None, "list": ["seed", "offset"], "tensor": torch.tensor([1, 2]), "empty": {}, "missing": {"seed": 1},
        "more": {"seed": 1, "offset": 2, "draw": 3}, "int": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        pytest.param(argument, value, id=f"{argument}-{flaw}")
        for argument, flaws in STREAM_FLAWS.items()
        for flaw, value in flaws.items()
    ],
)
def test_a_bad_stream_call_is_refused(argument: str, value: Any) -> None:
    stream = NoiseStream(3, offset=5)
    calls = {
        "seed": [lambda: NoiseStream(value), lambda: stream.load_state_dict({"seed": value, "offset": 0})],
        "offset": [
            lambda: NoiseStream(0, offset=value),
            lambda: stream.load_state_dict({"seed": 0, "offset": value}),
        ],
        "draws": [lambda: stream.advance(value)],
        "state": [lambda: stream.load_state_dict(value)],
    }
    for call in calls[argument]:
        with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
            call()
        assert stream.state.tolist() == [3, 5]
