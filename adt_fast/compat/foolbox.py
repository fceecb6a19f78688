"""Attacks under the names, and with the signatures, defaults and call, that foolbox 3.3 has.

Use ``import adt_fast.compat.foolbox as fb`` and ``fb.LinfPGD(steps=20)(model, images, labels, epsilons=8/255)``. The
model is an ``nn.Module`` that takes images in [0, 1] and normalises inside: there is no wrapper to put around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import attacks
from .._support.model_state import model_mode

__all__ = ["FGSM", "LinfPGD", "L2PGD", "LinfMomentumIterativeFastGradientMethod"]  # noqa: RUF022


class _Attack:
    """An attack that meets its model, and its radii, when it is called."""

    def __init__(self, make: Callable[..., attacks.Attack], **options: Any) -> None:
        self._make, self._options = make, options
        self._relative: float | None = None

    def _with_step_size(self, relative: float, absolute: float | None) -> None:
        """The step size as a number, or as a share of epsilon."""
        if absolute is None:
            self._relative = relative
        else:
            self._options["step_size"] = absolute

    def __call__(
        self, model: nn.Module, inputs: Tensor, criterion: Any, *, epsilons: float | Iterable[float]
    ) -> tuple[Any, Any, Tensor]:
        """Runs the attack for each radius.

        Args:
            model: images in [0, 1] -> logits, in eval mode while it is attacked.
            inputs: ``[B, C, H, W]``, float32 or float64, in [0, 1], on the model's device.
            criterion: int64 ``[B]``, the true classes; or an object that has them as ``labels``, or classes to be
                reached as ``target_classes``, such as foolbox' Misclassification and TargetedMisclassification.
            epsilons: a radius, or several; a tensor or an array of them too.

        Returns:
            (images, clipped images, success): the images twice, as they are inside the ball anyway; ``[B, C, H, W]``
            and bool ``[B]`` for one radius, for several a list of them and bool ``[K, B]``.

        Raises:
            TypeError, ValueError: for a bad argument, by name.
        """
        labels, target = _classes_of(criterion)
        if isinstance(epsilons, (Tensor, np.ndarray)):
            epsilons = epsilons.tolist()  # a number where there is one
        several = isinstance(epsilons, Iterable)
        radii: Iterable[float] = epsilons if isinstance(epsilons, Iterable) else [epsilons]
        found, success = [], []
        for epsilon in radii:
            step_size = {} if self._relative is None else {"step_size": self._relative * epsilon}
            attack = self._make(model, epsilon, target=target, **self._options, **step_size)
            found.append(attack(inputs, labels))
            with model_mode(attack.model, "eval"), torch.no_grad():
                reached = attack.model(found[-1]).argmax(1) == labels
            success.append(reached if target == "given" else ~reached)
        if not several:
            return found[0], found[0], success[0]
        return found, list(found), torch.stack(success)


class FGSM(_Attack):
    """See :class:`adt_fast.attacks.FGSM`; with a random start, a step of epsilon of :class:`adt_fast.attacks.PGD`."""

    def __init__(self, *, random_start: bool = False) -> None:
        if not random_start:
            super().__init__(attacks.FGSM)
            return
        super().__init__(attacks.PGD, steps=1)
        self._with_step_size(1.0, None)


class LinfPGD(_Attack):
    """See :class:`adt_fast.attacks.PGD`; its step size is ``abs_stepsize``, or else ``rel_stepsize`` * epsilon."""

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.01 / 0.3,
        abs_stepsize: float | None = None,
        steps: int = 40,
        random_start: bool = True,
    ) -> None:
        super().__init__(attacks.PGD, steps=steps, random_start=random_start)
        self._with_step_size(rel_stepsize, abs_stepsize)


class L2PGD(_Attack):
    """:class:`adt_fast.attacks.PGD` in the L2 ball; ``rel_stepsize`` and ``abs_stepsize`` as in :class:`LinfPGD`."""

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.025,
        abs_stepsize: float | None = None,
        steps: int = 50,
        random_start: bool = True,
    ) -> None:
        super().__init__(attacks.PGD, norm="l2", steps=steps, random_start=random_start)
        self._with_step_size(rel_stepsize, abs_stepsize)


class LinfMomentumIterativeFastGradientMethod(_Attack):
    """See :class:`adt_fast.attacks.MIM`, whose decay ``momentum`` is; ``rel_stepsize`` and ``abs_stepsize`` as in
    :class:`LinfPGD`."""

    def __init__(
        self, *, momentum: float = 1.0, rel_stepsize: float = 0.2, abs_stepsize: float | None = None, steps: int = 10
    ) -> None:
        super().__init__(attacks.MIM, steps=steps, decay=momentum)
        self._with_step_size(rel_stepsize, abs_stepsize)


def _classes_of(criterion: Any) -> tuple[Tensor, str]:
    """The classes, and whether they are to be left ("none") or reached ("given")."""
    for attribute, target in (("target_classes", "given"), ("labels", "none")):
        classes = getattr(criterion, attribute, None)
        if classes is not None:
            return getattr(classes, "raw", classes), target  # foolbox keeps eagerpy tensors
    if not isinstance(criterion, Tensor):
        raise TypeError("criterion must be labels, or have labels or target_classes, "
                        f"got {type(criterion).__name__}")
    return criterion, "none"
