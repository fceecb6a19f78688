"""The methods by name. Adding one is naming its parts here: a maximizer and an outer loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .._support.checks import check_ball
from .._support.model_state import ModelMode, check_mode, check_model
from .._support.suggest import unknown_name_message
from ..attacks import EXP, FGSM, PGD, FeatureScatter
from ..input_gradient import EngineOptions
from ..losses import KLFromNatural
from ..noise import NoiseStream
from .generators import ImageShape, exp_am, imp_am, l2l
from .joint import JointTraining
from .method import Method, MethodSpec, part_defaults
from .outer_losses import CrossEntropy, HalfClean, Trades

_METHODS = {
    spec.name: spec
    for spec in (
        MethodSpec("standard", "training on the images as they are", None, CrossEntropy),
        MethodSpec(
            "at-fgsm", "training on targeted FGSM examples, half clean (Kurakin et al., 2017)",
            partial(FGSM, target="least-likely"), HalfClean,
        ),
        MethodSpec("at-pgd", "training on PGD-7 examples (Madry et al., 2018)", partial(PGD, steps=7), CrossEntropy),
        MethodSpec(
            "alp", "adversarial logit pairing (Kannan et al., 2018)",
            partial(PGD, steps=7), partial(HalfClean, logit_weight=0.5),
        ),
        MethodSpec(
            "feascatter", "feature scattering (Zhang & Wang, 2019)",
            FeatureScatter, partial(CrossEntropy, label_smoothing=0.5),
        ),
        MethodSpec("trades", "TRADES (Zhang et al., 2019)", partial(PGD, steps=10), Trades, inner_loss=KLFromNatural),
        MethodSpec("l2l", "learning to attack (Chen et al., 2018)", l2l, CrossEntropy, joint=JointTraining),
        MethodSpec("adt-exp", "ADT with explicit distributions (Dong et al., 2020)", EXP, CrossEntropy),
        MethodSpec(
            "adt-exp-am", "ADT with a generator of explicit distributions", exp_am, CrossEntropy, joint=JointTraining
        ),
        MethodSpec(
            "adt-imp-am", "ADT with a generator of implicit distributions", imp_am, CrossEntropy, joint=JointTraining
        ),
        MethodSpec("adt-exp-trades", "ADT-EXP on the TRADES loss", EXP, Trades, inner_loss=KLFromNatural),
        MethodSpec("adt-exp-am-trades", "ADT-EXP-AM on the TRADES loss", exp_am, Trades, joint=JointTraining),
        MethodSpec("adt-imp-am-trades", "ADT-IMP-AM on the TRADES loss", imp_am, Trades, joint=JointTraining),
    )
}  # fmt: skip


def method_names() -> tuple[str, ...]:
    """The names :func:`create_method` takes."""
    return tuple(_METHODS)


def method_spec(name: str) -> MethodSpec:
    """The parts of a method.

    Raises:
        ValueError: if there is none of that name; the message tells the nearest one.
    """
    if not isinstance(name, str) or name not in _METHODS:
        raise ValueError(unknown_name_message("method", name, _METHODS))
    return _METHODS[name]


def create_method(
    name: str,
    model: nn.Module,
    *,
    epsilon: float = 8 / 255,
    image_shape: ImageShape | None = None,
    model_mode: ModelMode = "eval",
    noise: NoiseStream | None = None,
    engine: EngineOptions | None = None,
    **options: Any,
) -> Method:
    """A method for a model.

    The TRADES loss depends on the perturbation through the KL divergence alone, which is what its maximizers raise.
    Generators learn from the training loss itself; their two gradients are of the cross entropy in any case, for the
    divergence has none at the image.

    Args:
        name: one of :func:`method_names`.
        model: the classifier to be trained; the maximizer attacks it.
        epsilon, model_mode, noise, engine: of the maximizer, see :class:`adt_fast.attacks.Attack`; a method without one
            needs none of them. The engine's default is ``EngineOptions()``, whose precision is chosen for the device.
        image_shape: (C, H, W) of the images, for the methods that train a generator, whose initial weights are drawn
            from PyTorch's global generator; others need none.
        **options: of the method's parts, for example ``steps`` and ``samples`` of "adt-exp"; see
            :meth:`MethodSpec.defaults`.

    Raises:
        ValueError: if the name is unknown, the method has no such option, or ``image_shape`` is missing.
        TypeError, ValueError: what the parts raise for a bad value.
    """
    spec = method_spec(name)
    check_model(model)
    check_ball(epsilon, 0.0, 1.0)
    check_mode("model_mode", model_mode)
    check_options(spec, options)

    def build(part: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        mine = {option: value for option, value in options.items() if option in part_defaults(part)}
        return part(*arguments, **mine, **more)

    outer_loss = build(spec.outer_loss)
    if spec.maximizer is None:
        return Method(None, outer_loss)
    engine = EngineOptions() if engine is None else engine
    more: dict[str, Any] = {"model_mode": model_mode, "noise": noise, "engine": engine}
    if spec.inner_loss is not None:
        more["loss"] = build(spec.inner_loss)
    if spec.joint is not None:
        more["image_shape"] = _checked_image_shape(name, image_shape)
    maximizer = build(spec.maximizer, model, epsilon, **more)
    return Method(maximizer, outer_loss, None if spec.joint is None else build(spec.joint, maximizer))


def check_options(spec: MethodSpec, options: dict[str, Any]) -> None:
    """Raises ValueError where the method of ``spec`` lacks one of the ``options``; the message lists those it has."""
    known = spec.defaults()
    if foreign := sorted(options.keys() - known.keys()):
        raise ValueError(f"{foreign[0]} is no option of method {spec.name!r}, which has {', '.join(known)}")


def _checked_image_shape(name: str, image_shape: ImageShape | None) -> ImageShape:
    if image_shape is None:
        raise ValueError(f"image_shape must be given, as (C, H, W), for method {name!r} trains a generator")
    if not isinstance(image_shape, (tuple, list)):
        raise TypeError(f"image_shape must be (C, H, W), got {type(image_shape).__name__}")
    if len(image_shape) != 3 or not all(type(size) is int and size >= 1 for size in image_shape):
        raise ValueError(f"image_shape must be (C, H, W), three ints of at least 1, got {image_shape!r}")
    return image_shape
