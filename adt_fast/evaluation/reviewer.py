"""What a reviewer of a robustness claim would look at first (Carlini et al., 2019; Athalye et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..input_gradient import FLOAT32, InputGradient
from .outcomes import RIGHT
from .report import RobustReport

_MODES_MATTER_TO = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
_MUCH_BETTER = 0.2
"""By how much normalised images have to be classified better before the model is suspected to want them so."""
_MANY_ZERO_GRADIENTS = 0.1
_NOISE = 0.005
"""A difference of accuracies that is not worth a warning."""


def in_train_mode(model: nn.Module) -> bool:
    """Whether a model computes another function than in eval mode, by its batch norm or dropout."""
    return any(module.training for module in model.modules() if isinstance(module, _MODES_MATTER_TO))


@torch.no_grad()
def suspicious_model(model: nn.Module, images: Tensor, labels: Tensor, *, was_training: bool) -> list[str]:
    """What is odd about a model in eval mode, seen on one batch ``[B, C, H, W]``.

    Args:
        was_training: whether :func:`in_train_mode` when it was given.
    """
    warnings = []
    if was_training:
        warnings.append("The model was given in train mode, its batch norm or dropout at least. It was evaluated in "
                        "eval mode; if it was attacked elsewhere as it was, those results are of another function.")
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
    warnings = _another_ball(report)
    if report.settings["survivors_only"]:
        return warnings  # an attack's own accuracy is not known
    accuracy = {name: float(report.accuracy(name)) for name in attacks}
    return [*warnings, *_weaker_with_more_steps(report, accuracy), *_black_box_is_stronger(report, attacks, accuracy)]


def _normalised_outside(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> list[str]:
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    try:
        normalised = model((images - mean) / std.clamp(min=1e-6))
    except Exception:  # a model that refuses such images does not expect them
        return []
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
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return [f"The model has no gradient with respect to its input ({error}). Attacks that follow it cannot work, "
                "and what they leave is no sign of robustness."]
    share = float((grad.flatten(1).abs().amax(1) == 0).double().mean())
    if share <= _MANY_ZERO_GRADIENTS:
        return []
    return [f"The gradient of the cross entropy is exactly zero for {share:.0%} of the images of the first batch that "
            "are classified right, so attacks that follow it stand still. Saturated logits or a masked gradient may be "
            "the reason: look at C&W's margin and at SPSA."]


def _another_ball(report: RobustReport) -> list[str]:
    warnings = []
    epsilon, norm = report.settings["epsilon"], report.settings["norm"]
    for name, settings in report.settings["attacks"].items():
        while isinstance(settings.get("attack"), dict):  # what a transfer runs
            settings = settings["attack"]
        own, own_norm = settings.get("epsilon", epsilon), settings.get("norm", norm)
        if not isinstance(own, (int, float)):
            continue
        if own < epsilon * (1 - 1e-6) or own_norm != norm:
            warnings.append(f"{name} stays in a ball of radius {own:.5g} ({own_norm}), and the report is of radius "
                            f"{epsilon:.5g} ({norm}): the attack does less than it may.")
    return warnings


def _weaker_with_more_steps(report: RobustReport, accuracy: Mapping[str, float]) -> list[str]:
    warnings = []
    settings = report.settings["attacks"]
    for name in report.attacks:
        for longer in report.attacks:
            same = _but_steps(settings[name]) == _but_steps(settings[longer])
            if not same or settings[name].get("steps", 0) >= settings[longer].get("steps", 0):
                continue
            if _clearly_more(report.outcomes[longer] == RIGHT, report.outcomes[name] == RIGHT):
                warnings.append(f"{longer} leaves {accuracy[longer]:.2%}, more than {name} with fewer steps "
                                f"({accuracy[name]:.2%}): more iterations should not make an attack weaker.")
    return warnings


def _but_steps(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "steps"}


def _black_box_is_stronger(
    report: RobustReport, attacks: Mapping[str, Any], accuracy: Mapping[str, float]
) -> list[str]:
    black = [name for name, attack in attacks.items() if getattr(attack, "is_black_box", False)]
    white = [name for name in attacks if name not in black]
    if not black or not white:
        return []
    together = report.is_robust_under(white)
    return [
        f"{name}, which sees no gradient, leaves {accuracy[name]:.2%}, less than all attacks that follow the gradient "
        f"together ({float(together.double().mean()):.2%}): the gradient may be masked."
        for name in black
        if _clearly_more(together, report.outcomes[name] == RIGHT)
    ]


def _clearly_more(right: Tensor, others: Tensor) -> bool:
    """Whether more images are right than in the other case, and more than random starts would make: half a percent,
    and two standard deviations of a coin that is thrown for each image on which the two differ."""
    gained, lost = int((right & ~others).sum()), int((others & ~right).sum())
    return gained - lost > max(_NOISE * len(right), 2 * math.sqrt(gained + lost))
