"""Method: how a minibatch becomes a training loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..attacks import Attack
from .outer_losses import OuterLoss

_COMMON_OPTIONS = {"model", "epsilon", "options"}


@dataclass(frozen=True)
class Method:
    """One maximizer and one outer loss.

    Args:
        maximizer: perturbs the minibatch; None trains on the images as they are.
        outer_loss: see :data:`OuterLoss`.
    """

    maximizer: Attack | None
    outer_loss: OuterLoss

    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """The images to train on ``[n, B, C, H, W]``, for a minibatch that was checked.

        The maximizer puts its model in a mode of its own, and back.
        """
        return images.unsqueeze(0) if self.maximizer is None else self.maximizer.perturb(images, labels)


@dataclass(frozen=True)
class MethodSpec:
    """A method by name, before it has a model.

    Args:
        name: as on the command line.
        summary: one line for help texts.
        maximizer: called as ``maximizer(model, epsilon, **options)``, gives an attack; None for none.
        outer_loss: see :data:`OuterLoss`.
    """

    name: str
    summary: str
    maximizer: Callable[..., Attack] | None
    outer_loss: OuterLoss

    def defaults(self) -> dict[str, Any]:
        """The maximizer's own options and their defaults; those that all attacks share are not among them."""
        if self.maximizer is None:
            return {}
        parameters = inspect.signature(self.maximizer).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters if parameter.name not in _COMMON_OPTIONS}
