"""What a reviewer of a robustness claim would look at first (Carlini et al., 2019; Athalye et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..input_gradient import FLOAT32, InputGradient
from .report import RobustReport

_MODES_MATTER_TO = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
_MUCH_BETTER = 0.2
"""By how much normalised images have to be classified better before the model is suspected to want them so."""
_MANY_ZERO_GRADIENTS = 0.1
_NOISE = 0.005
"""A difference of accuracies that random starts can make."""


@torch.no_grad()
def suspicious_model(model: nn.Module, images: Tensor, labels: Tensor, *, was_training: bool) -> list[str]:
    """What is odd about a model in eval mode, seen on one batch ``[B, C, H, W]``.

    Args:
        was_training: whether it was in train mode when it was given.
    """
    warnings = []
    if was_training and any(isinstance(module, _MODES_MATTER_TO) for module in model.modules()):
        warnings.append("The model was given in train mode, with batch norm or dropout in it. It was evaluated in eval "
                        "mode; if it was attacked elsewhere as it was, those results are of another function.")
    logits = model(images)
    if not torch.equal(logits, model(images)):
        warnings.append("The model gives different logits for the same images. Against randomness, gradients have to "
                        "be averaged over many passes, which none of these attacks does.")
    if not bool(torch.isfinite(logits).all()):
        warnings.append("Some logits of natural images are not finite; such images count as misclassified.")
    warnings += _normalised_outside(model, images, labels, logits)
    warnings += _without_gradient(model, images, labels, logits)
    return warnings


def suspicious_results(report: RobustReport, attacks: Mapping[str, Any]) -> list[str]:
    """What is odd about accuracies that belong together."""
    if report.settings["survivors_only"]:
        return []  # an attack's own accuracy is not known
    accuracy = {name: float(report.accuracy(name)) for name in attacks}
    return [*_weaker_with_more_steps(attacks, accuracy), *_black_box_is_stronger(report, attacks, accuracy)]


def _normalised_outside(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> list[str]:
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    normalised = model((images - mean) / std.clamp(min=1e-6))
    as_they_are, better = (float((given.argmax(1) == labels).double().mean()) for given in (logits, normalised))
    if better < as_they_are + _MUCH_BETTER:
        return []
    return [f"The model classifies {as_they_are:.0%} of the first batch as it is, and {better:.0%} once each channel "
            "has mean 0 and standard deviation 1: it seems to expect images that were normalised outside of it. Put "
            "adt_fast.models.Normalize(mean, std) in front, so that epsilon is in the images' units."]


def _without_gradient(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> list[str]:
    right = logits.argmax(1) == labels
    if not bool(right.any()):
        return []
    gradient = InputGradient(model, options=FLOAT32, check_finite=False)
    try:
        grad = gradient(images[right], labels[right]).grad
    except RuntimeError as error:
        return [f"The model has no gradient with respect to its input ({error}). Attacks that follow it cannot work, "
                "and what they leave is no sign of robustness."]
    share = float((grad.flatten(1).abs().amax(1) == 0).double().mean())
    if share <= _MANY_ZERO_GRADIENTS:
        return []
    return [f"The gradient of the cross entropy is exactly zero for {share:.0%} of the images of the first batch that "
            "are classified right, so attacks that follow it stand still. Saturated logits or a masked gradient may be "
            "the reason: look at C&W's margin and at SPSA."]


def _weaker_with_more_steps(attacks: Mapping[str, Any], accuracy: Mapping[str, float]) -> list[str]:
    warnings = []
    for name, attack in attacks.items():
        for other, longer in attacks.items():
            same = type(attack) is type(longer) and _but_steps(attack) == _but_steps(longer)
            if not same or getattr(attack, "steps", 0) >= getattr(longer, "steps", 0):
                continue
            if accuracy[other] > accuracy[name] + _NOISE:
                warnings.append(f"{other} leaves {accuracy[other]:.2%}, more than {name} with fewer steps "
                                f"({accuracy[name]:.2%}): more iterations should not make an attack weaker.")
    return warnings


def _but_steps(attack: Any) -> dict[str, Any]:
    values = getattr(attack, "__dict__", {}).items()
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in values if name != "steps" and isinstance(value, plain)}


def _black_box_is_stronger(
    report: RobustReport, attacks: Mapping[str, Any], accuracy: Mapping[str, float]
) -> list[str]:
    black = [name for name, attack in attacks.items() if getattr(attack, "is_black_box", False)]
    white = [name for name in attacks if name not in black]
    if not black or not white:
        return []
    together = float(report.robust_accuracy_under(white))
    return [
        f"{name}, which sees no gradient, leaves {accuracy[name]:.2%}, less than all attacks that follow the gradient "
        f"together ({together:.2%}): the gradient may be masked."
        for name in black
        if accuracy[name] < together - _NOISE
    ]
