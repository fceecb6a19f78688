"""Whether a saved state fits what it is to be loaded into; looked at before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from .checks import dtype_name, shown

# What optimizers of PyTorch keep for each parameter, element by element.
_LIKE_ITS_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_LEFT_OPEN = ("foreach", "fused")  # which PyTorch decides where they are None
_OF_ADAM = {"step", "exp_avg", "exp_avg_sq"}


def check_keys(what: str, state: object, keys: Iterable[str]) -> None:
    """Raises ValueError where a state is no mapping with exactly these keys. what: the state's name in messages."""
    keys = tuple(keys)
    if not isinstance(state, Mapping) or set(state) != set(keys):
        given = shown(list(state)).strip("[]") if isinstance(state, Mapping) else type(state).__name__
        wanted = " and ".join(filter(None, [", ".join(map(repr, keys[:-1])), repr(keys[-1])]))
        raise ValueError(f"{what} must have the keys {wanted}, got {given or 'none'}")


def check_network_state(name: str, mine: Mapping[str, Any], theirs: object) -> None:
    """Raises ValueError where two state dicts of networks differ in the name, shape or dtype of an entry."""
    if not isinstance(theirs, Mapping):
        raise ValueError(f"state of the {name} must be a state dict, got {type(theirs).__name__}")
    names = sorted({*mine, *theirs}, key=str)
    differing = [entry for entry in names if _described(mine, entry) != _described(theirs, entry)]
    if differing:
        first = differing[0]
        raise ValueError(f"state must be of a {name} like this one, but {len(differing)} of its tensors differ in "
                         f"name, shape or dtype, the first is {shown(first)}: {_described(mine, first)} here, "
                         f"{_described(theirs, first)} there")


def check_optimizer_state(name: str, optimizer: Optimizer, state: Any) -> None:
    """Raises ValueError where a state is of an optimizer of other parameters. name: of the network it trains."""
    groups = _groups(state)
    if groups is None or groups != _groups(optimizer.state_dict()):
        raise ValueError(f"state of the {name}'s optimizer must be of as many parameters as this one has")
    for mine, theirs in zip(optimizer.param_groups, state["param_groups"]):
        if lacking := [option for option in mine if option not in theirs]:
            raise ValueError(f"state of the {name}'s optimizer lacks {', '.join(lacking)}")
        for option, value in mine.items():
            if option != "params" and not alike(None if option in _LEFT_OPEN else value, theirs[option]):
                raise ValueError(f"state of the {name}'s optimizer has {option}={shown(theirs[option])}, and this one "
                                 f"{shown(value)}, another kind of value")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        if not isinstance(values, Mapping) or type(index) is not int or index not in range(len(parameters)):
            raise ValueError(f"state of the {name}'s optimizer must have a dict for each of {len(parameters)} "
                             f"parameters, got {type(values).__name__} for {shown(index)}")
        if isinstance(optimizer, Adam) and values and not (values.keys() >= _OF_ADAM and _is_count(values["step"])):
            raise ValueError(f"state of the {name}'s optimizer must have {', '.join(sorted(_OF_ADAM))} of parameter "
                             f"{index}, the step as one number, got {shown(list(values))}")
        for entry in _LIKE_ITS_PARAMETER:
            value, wanted = values.get(entry), list(parameters[index].shape)
            if entry not in values or (value is None and entry == "momentum_buffer"):  # None before the first step
                continue
            if not isinstance(value, Tensor) or list(value.shape) != wanted:
                given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"state of the {name}'s optimizer must have the shape {wanted} in {entry} of "
                                 f"parameter {index}, got {given}")


def alike(mine: object, theirs: object) -> bool:
    """Whether a saved setting is of the kind of the present one: a number for a number, as many for as many, ..."""
    if mine is None or isinstance(mine, bool):
        return isinstance(theirs, bool) or (mine is None and theirs is None)
    if isinstance(mine, (int, float)):
        return is_number(theirs)
    if isinstance(mine, (list, tuple)):
        return isinstance(theirs, (list, tuple)) and len(mine) == len(theirs) and all(map(alike, mine, theirs))
    if isinstance(mine, Tensor):
        return isinstance(theirs, Tensor) and mine.shape == theirs.shape
    return isinstance(theirs, type(mine))


def is_number(value: object) -> bool:
    """A finite one, of 64 bits."""
    return (type(value) is int and -(2**63) <= value < 2**63) or (type(value) is float and math.isfinite(value))


def check_random_state(name: str, state: object) -> None:
    """Raises ValueError where it is no state of PyTorch's CPU generator, and perhaps one of a GPU's."""
    try:
        if not isinstance(state, Mapping) or not {"cpu"} <= state.keys() <= {"cpu", "cuda"}:
            raise TypeError(f"got {type(state).__name__}")
        torch.Generator().set_state(state["cpu"])
        if "cuda" in state and (state["cuda"].dtype, state["cuda"].dim()) != (torch.uint8, 1):
            raise TypeError("cuda is of another dtype or shape")
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{name} must be a state of PyTorch's generators: {str(error).splitlines()[0]}") from error


def _is_count(value: object) -> bool:
    return is_number(value) or (isinstance(value, Tensor) and value.dim() == 0 and bool(torch.isfinite(value)))


def _groups(state: object) -> list[list[int]] | None:
    """The numbers of the parameters in each group of an optimizer's state; None for what is no such state."""
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return None
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        return None
    numbers = [group.get("params") for group in groups]
    if not all(isinstance(group, list) and all(type(number) is int for number in group) for group in numbers):
        return None
    return numbers


def _described(state: Mapping[str, Any], entry: str) -> str:
    if entry not in state:
        return "nothing"
    value = state[entry]
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{dtype_name(value.dtype)} {list(value.shape)}"
