"""The methods by name. Adding one is naming its two parts here."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from .._suggest import unknown_name_message
from ..attacks import EXP, PGD
from ..input_gradient import EngineOptions
from ..noise import NoiseStream
from .method import Method, MethodSpec
from .outer_losses import cross_entropy

_METHODS = {
    spec.name: spec
    for spec in (
        MethodSpec("adt-exp", "ADT with explicit distributions (Dong et al., 2020)", EXP, cross_entropy),
        MethodSpec("at-pgd", "training on PGD-7 examples (Madry et al., 2018)", partial(PGD, steps=7), cross_entropy),
        MethodSpec("standard", "training on the images as they are", None, cross_entropy),
    )
}


def method_names() -> tuple[str, ...]:
    """The names :func:`create_method` takes."""
    return tuple(_METHODS)


def method_spec(name: str) -> MethodSpec:
    """The parts of a method.

    Raises:
        ValueError: if there is none of that name; the message tells the nearest one.
    """
    if name not in _METHODS:
        raise ValueError(unknown_name_message("method", name, _METHODS))
    return _METHODS[name]


def create_method(
    name: str,
    model: nn.Module,
    *,
    epsilon: float = 8 / 255,
    noise: NoiseStream | None = None,
    engine: EngineOptions | None = None,
    **options: Any,
) -> Method:
    """A method for a model.

    Args:
        name: one of :func:`method_names`.
        model: the classifier to be trained; the maximizer attacks it.
        epsilon, noise, engine: of the maximizer, see :class:`adt_fast.attacks.Attack`; a method without one needs none
            of them. The engine's default is ``EngineOptions()``, whose precision is chosen for the device.
        **options: the maximizer's, for example ``steps`` and ``samples`` of "adt-exp".

    Raises:
        ValueError: if the name is unknown, or the method has no such option.
        TypeError, ValueError: what the maximizer raises for a bad value.
    """
    spec = method_spec(name)
    if spec.maximizer is None:
        if options:
            raise ValueError(f"method {name!r} has no maximizer, and so no option {', '.join(sorted(options))}")
        return Method(None, spec.outer_loss)
    engine = EngineOptions() if engine is None else engine
    return Method(spec.maximizer(model, epsilon, noise=noise, engine=engine, **options), spec.outer_loss)
