"""A state dict of others -> one of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._support.checks import check_choice
from .._support.tensor_checks import COMPUTE_DTYPES, HALF_DTYPES
from ..models import create_model
from ..models.normalize import normalization
from .find import Found, find_network
from .layouts import DEFAULTS, Layout, UnknownCheckpoint

_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class ForeignModel:
    """A model in a file of others, in our terms."""

    model_name: str
    """The architecture."""
    model_kwargs: dict[str, Any]
    """With `model_name`, the arguments of `create_model`."""
    state: dict[str, Tensor]
    """The state dict of that model, in memory of its own."""
    source: dict[str, Any]
    """Plain values: what was recognised (layout, entry, prefix), dropped ({reason: names}) and added ([names]);
    and which of mean and std were converted to the dtype of the weights."""


def from_foreign(
    content: Any,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    activation: str | None = None,
    shortcut: str | None = None,
    entry: str | None = None,
) -> ForeignModel:
    """The model in what a file of others holds.

    content: what `read_file` gives: a state dict of names and tensors, or dicts around one.
    mean, std: the normalisation, one number per channel, where the file has none.
    activation, shortcut: options of `create_model` where the layout leaves them open, which are then required.
    entry: the name of the dict that the model is in, where there are several.

    Nothing is left out without a word: `source["dropped"]` says what, and why. A tensor that nothing explains is an
    error, for it may be a part of another architecture.

    Raises UnknownCheckpoint, whose message reads on from the file's name.
    """
    found = find_network(content, entry)
    layout = found.layout
    state, unknown = {}, list(found.unknown)
    for name, tensor in found.tensors.items():
        if (ours := layout.our_name(name)) is None:
            unknown.append(found.prefix + name)
        else:
            state[ours] = tensor

    def shape_of(name: str, dimensions: int) -> tuple[int, ...]:
        theirs = found.prefix + layout.their_name(name)
        if name not in state:
            raise UnknownCheckpoint(f"lacks the tensor {theirs!r}, which tells a size of the network")
        shape = tuple(state[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise UnknownCheckpoint(f"has {theirs!r} of shape {list(shape)}, where {dimensions} sizes >= 1 are wanted")
        return shape

    model_name, kwargs = layout.architecture(state.keys(), shape_of)
    kwargs |= _options(layout, {"activation": activation, "shortcut": shortcut})
    state, added = _checked(found, state, unknown, _expected_shapes(model_name, kwargs), model_name)
    converted = []
    if (numbers := _normalization(found, mean, std, kwargs["in_channels"])) is not None:
        dtype = state["conv1.weight"].dtype
        kwargs |= {name: number.to(dtype).flatten().tolist() for name, number in numbers.items()}
        state |= {f"normalize.{name}": number.to(dtype).view(-1, 1, 1) for name, number in numbers.items()}
        converted = [name for name, number in numbers.items() if found.mean_and_std and number.dtype != dtype]
    source = {
        "layout": layout.name,
        "entry": found.entry,
        "prefix": found.prefix,
        "dropped": found.dropped,
        "added": added,
        "converted": converted,
    }
    return ForeignModel(model_name, kwargs, state, source)


def _options(layout: Layout, given: Mapping[str, str | None]) -> dict[str, str]:
    """The options of `create_model` that names and shapes do not tell."""
    open_option, choices = layout.open
    for option, value in given.items():
        if option == open_option:
            if value is None:
                raise UnknownCheckpoint(
                    f"is of the layout {layout.name!r}, and such files do not tell the {option}: "
                    f"give {option}={' or '.join(map(repr, choices))}"
                )
            check_choice(option, value, choices)
        elif value is not None and value != layout.fixed.get(option):
            wanted = f"is {layout.fixed[option]!r}" if option in layout.fixed else "is no option"
            raise ValueError(f"{option} {wanted} in the layout {layout.name!r}, got {value!r}")
    options = dict(layout.fixed) | {open_option: given.get(open_option)}
    return {option: value for option, value in options.items() if value != DEFAULTS.get(option) and value is not None}


def _expected_shapes(model_name: str, kwargs: Mapping[str, Any]) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            model = create_model(model_name, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnknownCheckpoint(f"holds a {model_name} that cannot be: {error}") from error
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _checked(
    found: Found, state: Mapping[str, Tensor], unknown: list[str], expected: Mapping[str, torch.Size], model_name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the model, in memory of their own, and the names of the batch counters that were lacking."""

    def theirs(name: str) -> str:
        return found.prefix + found.layout.their_name(name)

    absent = [name for name in expected if name not in state]
    counters = [name for name in absent if name.endswith(_COUNTER)]  # PyTorch before 0.4.1 had none
    if missing := [theirs(name) for name in absent if name not in counters]:
        raise UnknownCheckpoint(f"lacks {_count(missing)} of {model_name}, the first is {missing[0]!r}")
    if wrong := [name for name in expected if name in state and state[name].shape != expected[name]]:
        shapes = f"{list(state[wrong[0]].shape)}, and {model_name} wants {list(expected[wrong[0]])}"
        raise UnknownCheckpoint(f"has {_count(wrong)} of another shape, the first is {theirs(wrong[0])!r}: {shapes}")
    if unknown := unknown + [theirs(name) for name in state if name not in expected]:
        raise UnknownCheckpoint(
            f"has {_count(unknown)} that {model_name} has not, the first is {unknown[0]!r}: it may be of another "
            "architecture. If they have no part in its logits, take them out of the file"
        )
    for name, tensor in state.items():
        _check_tensor(theirs(name), tensor, torch.int64 if name.endswith(_COUNTER) else state["conv1.weight"].dtype)
    complete = {**state, **dict.fromkeys(counters, torch.zeros((), dtype=torch.int64))}
    tensors = {name: complete[name].detach().clone().contiguous() for name in expected}
    return tensors, [theirs(name) for name in counters]


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or dtype not in (*COMPUTE_DTYPES, *HALF_DTYPES, torch.int64):
        raise UnknownCheckpoint(f"has {name!r} of {tensor.dtype}, {tensor.layout}, on {tensor.device}; wanted are "
                                "dense floating-point numbers of 16 to 64 bits")
    if tensor.dtype != dtype:
        raise UnknownCheckpoint(f"has {name!r} of {tensor.dtype}, where the other tensors would have it of {dtype}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UnknownCheckpoint(f"has {name!r} of more elements than it has numbers for")


def _normalization(
    found: Found, mean: Sequence[float] | None, std: Sequence[float] | None, in_channels: int
) -> dict[str, Tensor] | None:
    """The mean and std [in_channels] of the file, or of the arguments; None for none."""
    if found.mean_and_std is None:
        if mean is None and std is None:
            if found.layout.normalizes:
                raise UnknownCheckpoint(
                    f"is of the layout {found.layout.name!r}, whose code always normalises, and the numbers are not in "
                    "the file: give mean and std. For CIFAR-10 those of DeepMind's models are (0.4914, 0.4822, 0.4465) "
                    "and (0.2471, 0.2435, 0.2616); zeros and ones change nothing"
                )
            return None
        normalization(mean, std, in_channels)  # raises for numbers that will not do
        assert mean is not None and std is not None  # one alone will not do
        return {"mean": torch.tensor(list(mean), dtype=torch.float64),
                "std": torch.tensor(list(std), dtype=torch.float64)}
    if mean is not None or std is not None:
        raise UnknownCheckpoint("has a mean and std of its own: leave these out")
    numbers = dict(zip(("mean", "std"), found.mean_and_std))
    for name, tensor in numbers.items():
        _check_tensor(name, tensor, tensor.dtype)
        if tuple(tensor.shape) not in {(in_channels,), (in_channels, 1, 1), (1, in_channels, 1, 1)}:
            raise UnknownCheckpoint(f"has a {name} of shape {list(tensor.shape)} for {in_channels} channels")
    numbers = {name: tensor.detach().flatten().clone() for name, tensor in numbers.items()}
    try:
        normalization(numbers["mean"].tolist(), numbers["std"].tolist(), in_channels)
    except ValueError as error:
        raise UnknownCheckpoint(f"has a normalisation that cannot be: {error}") from error
    return numbers


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
