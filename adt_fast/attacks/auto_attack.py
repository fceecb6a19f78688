"""AutoAttack (Croce & Hein, 2020), run by its authors' own package."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._support.arithmetic import float32_arithmetic
from .._support.batch_check import BatchCheck
from .._support.checks import check_ball, check_choice, check_int
from .._support.model_state import check_model, frozen_parameters, model_mode, unwrap
from .._support.random_state import kept_random_state
from ._ball import Norm, confine

Version = Literal["standard", "plus", "rand"]

_INSTALL = "pip install git+https://github.com/fra31/auto-attack"
"""No extra of ours: package indices refuse packages that require sources from elsewhere."""

_NORMS = {"linf": "Linf", "l2": "L2"}


class AutoAttack:
    """AutoAttack: APGD on two losses, FAB and Square, each on the images that are still classified right.

    It is the reference of RobustBench, so nothing of it is ours: the package ``autoattack`` does the work, and its
    sources, not a release, are what it is installed from: ``pip install git+https://github.com/fra31/auto-attack``.

    Args:
        model: images ``[B, C, H, W]`` in [0, 1] -> logits; attacked in eval mode, without wrappers.
        epsilon: radius of the ball, > 0.
        norm: ``"linf"`` (default) or ``"l2"``.
        version: ``"standard"`` (default), ``"plus"`` or ``"rand"``, see the package.
        seed: of its random numbers, >= 0.

    Raises:
        ImportError: if the package is not installed.
        TypeError, ValueError: for a bad argument, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        norm: Norm = "linf",
        version: Version = "standard",
        seed: int = 0,
    ) -> None:
        check_model(model)
        check_ball(epsilon, 0.0, 1.0)
        check_choice("norm", norm, get_args(Norm))
        check_choice("version", version, get_args(Version))
        check_int("seed", seed, 0, 2**32)
        self.model = unwrap(model)
        self.epsilon = float(epsilon)
        self.norm: Norm = norm
        self.version: Version = version
        self.seed = seed
        self._package = _package()
        self._check_batch = BatchCheck(model)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The adversarial images, ``[B, C, H, W]``; an image that cannot be attacked comes back as it is.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [0, 1], on the model's device.
            labels: int64 ``[B]``, the true classes.

        Raises:
            TypeError, ValueError: for bad images or labels, by name.
        """
        self._check_batch(images, labels)
        # The package draws from PyTorch's global generators, and seeds them.
        own_numbers = kept_random_state(images.device)
        borrowed = model_mode(self.model, "eval"), frozen_parameters(self.model)
        with torch.inference_mode(False), own_numbers, borrowed[0], borrowed[1], float32_arithmetic(images.device):
            images, labels = images.clone(), labels.clone()
            attack = self._package(
                self.model, norm=_NORMS[self.norm], eps=self.epsilon, version=self.version, seed=self.seed,
                device=str(images.device), verbose=False,
            )  # fmt: skip
            self._limit_targets(attack, images)
            found = attack.run_standard_evaluation(images.contiguous(), labels, bs=len(images))
        ball = {"epsilon": self.epsilon, "lower": 0.0, "upper": 1.0}
        return confine(found.unsqueeze(0), images, norm=self.norm, **ball)[0]

    def _limit_targets(self, attack: Any, images: Tensor) -> None:
        """The package's targeted attacks go for 9 other classes; a model may have fewer."""
        with torch.no_grad():
            others = self.model(images[:1]).shape[1] - 1
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(part.n_target_classes, others)


def _package() -> Any:
    try:
        from autoattack import AutoAttack as package
    except ImportError:
        raise ImportError(f"AutoAttack needs its own package: {_INSTALL}") from None
    return package
