"""What an evaluation depends on, as plain values: for its report, and to tell whether a state is its own."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from typing import Any

from torch import nn

from .._support.model_state import unwrap
from ..attacks import AmortizedAttack, Attack
from ..checkpoint import digest_of_model
from .named_attacks import AttackLike


def model_summary(model: nn.Module) -> dict[str, Any]:
    """Class, size and state of a model."""
    model = unwrap(model)
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": digest_of_model(model),
    }


def attack_settings(attack: AttackLike, model: nn.Module) -> dict[str, Any]:
    """What an attack on a model is, as far as its public attributes tell; networks of its own among them."""
    settings: dict[str, Any] = {"class": getattr(attack, "__qualname__", type(attack).__name__)}
    if (inner := _inner(attack)) is not None:
        settings["attack"] = attack_settings(inner, model)
    if isinstance(attack, Attack):
        gradient = attack.input_gradient
        settings |= {"loss": _text_of(gradient.loss), "engine": _text_of(gradient.options)}
        settings |= {"model_mode": gradient.model_mode, "check_finite": gradient.check_finite}
    settings |= {name: model_summary(network) for name, network in _own_networks(attack, model).items()}
    for name, value in sorted(getattr(attack, "__dict__", {}).items()):
        if not name.startswith("_") and isinstance(value, (bool, int, float, str)):
            settings[name] = value
        elif not name.startswith("_") and is_dataclass(value):
            settings[name] = _text_of(value)
    return settings


def innermost(attack: AttackLike) -> AttackLike:
    """What an attack that holds another one, as Transfer does, runs in the end."""
    while (inner := _inner(attack)) is not None:
        attack = inner
    return attack


def _inner(attack: AttackLike) -> AttackLike | None:
    inner = getattr(attack, "attack", None)
    return inner if callable(inner) and not inspect.ismethod(inner) else None


def _own_networks(attack: AttackLike, model: nn.Module) -> dict[str, nn.Module]:
    """Networks other than the model: a generator, or the source of a transfer."""
    networks = dict(attack.networks) if isinstance(attack, AmortizedAttack) else {}
    attacked = getattr(attack, "model", None)
    if isinstance(attacked, nn.Module) and unwrap(attacked) is not unwrap(model):
        networks["model"] = attacked
    return networks


def _text_of(value: Any) -> str:
    """The same in every process: without addresses in memory."""
    return re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))
