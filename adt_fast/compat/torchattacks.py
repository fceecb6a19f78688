"""Attacks under the names, and with the signatures and defaults, that torchattacks 3.5 has.

Use ``import adt_fast.compat.torchattacks as torchattacks``. What is the same there: ``atk = torchattacks.PGD(model,
eps=8/255, alpha=2/255, steps=10)``, ``atk(images, labels)``, and the modes. The model normalises inside, and runs in
eval mode while it is attacked. Unlike there, no gradient is left on the model, and images are within eps exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .. import attacks
from ..attacks._wrapper import AttackWrapper
from ..attacks.base import Target

__all__ = ["FGSM", "MIFGSM", "PGD", "PGDL2", "SPSA"]


class _Moded(AttackWrapper):
    """An attack whose target may be changed after it was made."""

    def __init__(self, make: Callable[..., attacks.Attack], model: nn.Module, epsilon: float, **options: Any) -> None:
        self._make = lambda target, noise: make(model, epsilon, target=target, noise=noise, **options)
        self.attack = self._make("none", None)
        """What runs, in the mode of now, with the same noise in every mode."""

    @property
    def is_black_box(self) -> bool:
        """Whether it sees no gradient of the model."""
        return self.attack.is_black_box

    def _set(self, target: Target) -> None:
        self.attack = self._make(target, self.noise)

    def set_mode_default(self) -> None:
        """The labels of a call are the true classes, to be left."""
        self._set("none")

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """The labels of a call are classes to be reached. ``quiet`` is accepted, as nothing is printed anyway."""
        self._set("given")

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """The class that the model finds least likely is to be reached; ``kth_min`` must be 1, ``quiet`` is
        accepted."""
        if kth_min != 1:
            raise ValueError(f"kth_min must be 1, the least likely class, got {kth_min}")
        self._set("least-likely")

    def get_mode(self) -> str:
        """``"default"``, ``"targeted(label)"`` or ``"targeted(least-likely)"``, as there."""
        modes = {"none": "default", "given": "targeted(label)", "least-likely": "targeted(least-likely)"}
        return modes[self.attack.target]


class FGSM(_Moded):
    """See :class:`adt_fast.attacks.FGSM`."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255) -> None:
        super().__init__(attacks.FGSM, model, eps)


class PGD(_Moded):
    """See :class:`adt_fast.attacks.PGD`; ``alpha`` is the step size."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
    ) -> None:
        super().__init__(attacks.PGD, model, eps, step_size=alpha, steps=steps, random_start=random_start)


class PGDL2(_Moded):
    """:class:`adt_fast.attacks.PGD` in the L2 ball; an image without a gradient does not move."""

    def __init__(
        self, model: nn.Module, eps: float = 1.0, alpha: float = 0.2, steps: int = 10, random_start: bool = True
    ) -> None:
        super().__init__(attacks.PGD, model, eps, norm="l2", step_size=alpha, steps=steps, random_start=random_start)


class MIFGSM(_Moded):
    """See :class:`adt_fast.attacks.MIM`."""

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, decay: float = 1.0
    ) -> None:
        super().__init__(attacks.MIM, model, eps, step_size=alpha, steps=steps, decay=decay)


class SPSA(_Moded):
    """See :class:`adt_fast.attacks.SPSA`; here an image is done once it is misclassified.

    ``nb_iter`` steps of size ``lr``; for each, ``nb_sample`` directions of size ``delta``, both ends of each evaluated;
    ``max_batch_size`` images go through the model at once.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 0.3,
        delta: float = 0.01,
        lr: float = 0.01,
        nb_iter: int = 1,
        nb_sample: int = 128,
        max_batch_size: int = 64,
    ) -> None:
        super().__init__(
            attacks.SPSA, model, eps, sigma=delta, step_size=lr, steps=nb_iter, samples=2 * nb_sample,
            query_batch=max_batch_size,
        )  # fmt: skip
