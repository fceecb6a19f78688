"""Whether a saved state fits what it is to be loaded into; looked at before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# What optimizers of PyTorch keep for each parameter, element by element.
_LIKE_ITS_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def check_keys(what: str, state: object, keys: Iterable[str]) -> None:
    """Raises ValueError where a state is no mapping with exactly these keys. what: the state's name in messages."""
    keys = tuple(keys)
    if not isinstance(state, Mapping) or set(state) != set(keys):
        given = ", ".join(map(repr, state)) if isinstance(state, Mapping) else type(state).__name__
        wanted = " and ".join(filter(None, [", ".join(map(repr, keys[:-1])), repr(keys[-1])]))
        raise ValueError(f"{what} must have the keys {wanted}, got {given or 'none'}")


def check_network_state(name: str, mine: Mapping[str, Any], theirs: object) -> None:
    """Raises ValueError where two state dicts of networks differ in the name, shape or dtype of an entry."""
    if not isinstance(theirs, Mapping):
        raise ValueError(f"state of the {name} must be a state dict, got {type(theirs).__name__}")
    differing = [entry for entry in sorted({*mine, *theirs}) if _described(mine, entry) != _described(theirs, entry)]
    if differing:
        first = differing[0]
        raise ValueError(f"state must be of a {name} like this one, but {len(differing)} of its tensors differ in "
                         f"name, shape or dtype, the first is {first!r}: {_described(mine, first)} here, "
                         f"{_described(theirs, first)} there")


def check_optimizer_state(name: str, optimizer: Optimizer, state: object) -> None:
    """Raises ValueError where a state is of an optimizer of other parameters. name: of the network it trains."""
    sizes = _group_sizes(state)
    if sizes is None or sizes != _group_sizes(optimizer.state_dict()):
        raise ValueError(f"state of the {name}'s optimizer must be of as many parameters as this one has")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        if not isinstance(values, Mapping) or index not in range(len(parameters)):
            raise ValueError(f"state of the {name}'s optimizer must have a dict for each of {len(parameters)} "
                             f"parameters, got {type(values).__name__} for {index!r}")
        for entry in _LIKE_ITS_PARAMETER:
            value, wanted = values.get(entry), list(parameters[index].shape)
            if value is not None and (not isinstance(value, Tensor) or list(value.shape) != wanted):
                given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"state of the {name}'s optimizer must have the shape {wanted} in {entry} of "
                                 f"parameter {index}, got {given}")


def _group_sizes(state: object) -> list[int] | None:
    """How many parameters each group of an optimizer's state has; None for what is no such state."""
    try:
        sizes = [len(group["params"]) for group in state["param_groups"]]
        return sizes if isinstance(state["state"], Mapping) else None
    except (KeyError, TypeError):
        return None


def _described(state: Mapping[str, Any], entry: str) -> str:
    if entry not in state:
        return "nothing"
    value = state[entry]
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
