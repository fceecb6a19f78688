"""A state dict of ours -> one of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .._support.checks import check_choice
from .._support.suggest import unknown_name_message
from .layouts import DEFAULTS, LAYOUTS, WRN, Layout

Normalization = Literal["keep", "drop"]
"""What becomes of a model's normalisation: its numbers are written as tensors, or left to the code that loads them."""

_OURS = ("normalize.mean", "normalize.std")
_DROPPED_NORMALIZATION = "the normalisation of the model, as asked for"


@dataclass(frozen=True)
class Exported:
    """A model in a layout of others."""

    tensors: dict[str, Tensor]
    """Its state dict, by their names."""
    dropped: dict[str, list[str]]
    """Why -> which tensors of the model it lacks."""
    untold: dict[str, Any]
    """What the state dict does not tell: the arguments of `from_foreign` that read it again."""


def to_foreign(
    state: Mapping[str, Tensor],
    model_name: str,
    model_kwargs: Mapping[str, Any],
    layout: str,
    *,
    normalization: Normalization | None = None,
    sub_block1: bool = False,
    module_prefix: bool = False,
) -> Exported:
    """The model in a layout of others; the arguments are those of `convert_checkpoint`.

    state, model_name, model_kwargs: a model of `create_model`. The tensors are not copied, but for `sub_block1`.

    Raises ValueError where the code behind the layout would compute another function.
    """
    if layout not in LAYOUTS:
        raise ValueError(unknown_name_message("layout", layout, ("adt_fast", *LAYOUTS)))
    target = LAYOUTS[layout]
    _check_same_function(target, model_name, model_kwargs)
    if sub_block1 and target is not WRN:
        raise ValueError(f"sub_block1 is of the layout {WRN.name!r} alone, and must be False for {layout!r}")
    normalizes = _OURS[0] in state
    if normalization is not None:
        check_choice("normalization", normalization, get_args(Normalization))
    elif normalizes or target.normalizes:
        raise ValueError(_which_normalization(target, normalizes))
    prefix = "model." if normalization == "keep" and normalizes and not target.normalizes else ""
    tensors = _kept_normalization(target, state, normalizes) if normalization == "keep" else {}
    tensors |= {prefix + target.their_name(name): tensor for name, tensor in state.items() if name not in _OURS}
    if sub_block1:
        block1 = {name: tensor for name, tensor in state.items() if name.startswith("block1.")}
        tensors |= {f"{prefix}sub_{name}": tensor.clone() for name, tensor in block1.items()}
    tensors = {("module." if module_prefix else "") + name: tensor for name, tensor in tensors.items()}
    dropped = {_DROPPED_NORMALIZATION: list(_OURS)} if normalization == "drop" and normalizes else {}
    untold = {target.open[0]: model_kwargs.get(target.open[0]) or DEFAULTS[target.open[0]]} if target.open[0] else {}
    if normalization == "drop" and (normalizes or target.normalizes):
        untold |= {name: number.flatten().tolist() for name, number in _mean_and_std(state).items()}
    return Exported(tensors, dropped, untold)


def _check_same_function(target: Layout, model_name: str, kwargs: Mapping[str, Any]) -> None:
    if not model_name.startswith(target.family):
        raise ValueError(f"layout {target.name!r} has no {model_name}: it is of a {target.describes}")
    for option, value in target.fixed.items():
        own = kwargs.get(option) or DEFAULTS[option]
        if own != value:
            raise ValueError(f"layout {target.name!r} is of networks with {option}={value!r}, and the model has "
                             f"{own!r}: the code behind the layout would compute another function")


def _which_normalization(target: Layout, normalizes: bool) -> str:
    where = "as 'mean' and 'std'" if target.normalizes else "as 'normalize.mean', before the network under 'model.'"
    why = "the model normalises" if normalizes else f"the code behind the layout {target.name!r} normalises"
    return (
        f"normalization must be 'keep' or 'drop', for {why}: 'keep' writes the numbers {where}, and with 'drop' the "
        "code that loads the file has to supply them"
    )


def _kept_normalization(target: Layout, state: Mapping[str, Tensor], normalizes: bool) -> dict[str, Tensor]:
    if target.normalizes:
        return _mean_and_std(state)
    return {f"normalize.{name}": number[None] for name, number in _mean_and_std(state).items()} if normalizes else {}


def _mean_and_std(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's normalisation [C, 1, 1]; for none, that which changes nothing."""
    if _OURS[0] in state:
        return {"mean": state[_OURS[0]], "std": state[_OURS[1]]}
    mean = state["conv1.weight"].new_zeros(state["conv1.weight"].shape[1], 1, 1)
    return {"mean": mean, "std": torch.ones_like(mean)}
