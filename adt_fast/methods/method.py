"""Method: how a minibatch becomes a training loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..attacks import AmortizedAttack, Attack
from ..losses import PerExampleLoss
from .joint import JointTraining, reverse_gradient
from .outer_losses import OuterLoss

# What create_method gives to every part by itself, and what attacks share.
_COMMON_OPTIONS = {"model", "epsilon", "image_shape", "maximizer", "options"}


class Perturbed(NamedTuple):
    """A perturbed minibatch."""

    images: Tensor
    """``[n, B, C, H, W]``. Where networks are trained jointly, its graph leads to them, with the gradient reversed: one
    backward pass of the training loss makes the classifier lower it and the networks raise it."""
    penalty: Tensor | None
    """A number that the jointly trained networks lower besides, to be added to the loss; None where there is none. A
    mean over the images at hand, see :class:`adt_fast.attacks.AmortizedSample`."""


@dataclass(frozen=True)
class Method:
    """One maximizer and one outer loss.

    Args:
        maximizer: perturbs the minibatch; None trains on the images as they are.
        outer_loss: see :data:`OuterLoss`.
        joint: the training of the maximizer's own networks; None for a maximizer that has none, or whose networks are
            to stay as they are.

    Raises:
        TypeError: if maximizer is no attack, or ``joint`` is given for one without networks.
        ValueError: if ``joint`` trains other networks than the maximizer's.
    """

    maximizer: Attack | None
    outer_loss: OuterLoss
    joint: JointTraining | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.maximizer, (Attack, type(None))):
            raise TypeError(f"maximizer must be an Attack or None, got {type(self.maximizer).__name__}")
        if self.joint is None:
            return
        if not isinstance(self.maximizer, AmortizedAttack):
            raise TypeError(f"joint must be None for a maximizer without networks, {type(self.maximizer).__name__}")
        if self.joint.networks != self.maximizer.networks:
            raise ValueError("joint must train the networks of this maximizer, not of another")

    def perturb(self, images: Tensor, labels: Tensor) -> Perturbed:
        """The images to train on, for a minibatch that was checked.

        The maximizer puts its model in a mode of its own, and back.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [0, 1], on the model's device.
            labels: int64 ``[B]``, the true classes.
        """
        if self.maximizer is None:
            return Perturbed(images.unsqueeze(0), None)
        if self.joint is None:
            return Perturbed(self.maximizer.perturb(images, labels), None)
        assert isinstance(self.maximizer, AmortizedAttack)  # or there is nothing to train jointly
        x_adv, penalty = self.maximizer.sample(images, labels)
        return Perturbed(reverse_gradient(x_adv), penalty)


@dataclass(frozen=True)
class MethodSpec:
    """A method by name, before it has a model: its parts, each with options of its own.

    An option that two parts have by the same name is given to both.

    Args:
        name: as on the command line.
        summary: one line for help texts.
        maximizer: called as ``maximizer(model, epsilon, **options)``, gives an attack; None for none.
        outer_loss: called as ``outer_loss(**options)``, see :data:`OuterLoss`.
        inner_loss: called as ``inner_loss(**options)``: the per-example loss that the maximizer raises; None for its
            default.
        joint: called as ``joint(maximizer, **options)``; None where the maximizer has no networks to train.
    """

    name: str
    summary: str
    maximizer: Callable[..., Attack] | None
    outer_loss: Callable[..., OuterLoss]
    inner_loss: Callable[..., PerExampleLoss] | None = None
    joint: Callable[..., JointTraining] | None = None

    @property
    def parts(self) -> list[Callable[..., Any]]:
        """Those it has, maximizer first."""
        parts = (self.maximizer, self.inner_loss, self.outer_loss, self.joint)
        return [part for part in parts if part is not None]

    def defaults(self) -> dict[str, Any]:
        """The parts' options and their defaults; those that all attacks share are not among them."""
        return {name: value for part in self.parts for name, value in part_defaults(part).items()}


def part_defaults(part: Callable[..., Any]) -> dict[str, Any]:
    """The options of one part of a method, and their defaults."""
    parameters = inspect.signature(part).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in _COMMON_OPTIONS}
