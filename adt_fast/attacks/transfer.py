"""Transfer: adversarial images of one model, to be tried on another (paper, Section 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..noise import NoiseStream
from .base import Attack
from .pgd import PGD


class Transfer:
    """A black-box attack: images made on a source model. The model that they are tried on is never asked.

    Args:
        source: a model of the same classes, see :class:`Attack`.
        attack: what is run on it, called as ``attack(source, epsilon, **options)``: :class:`PGD` (default),
            :class:`MIM`, or another.
        epsilon, **options: of the attack.

    Raises:
        TypeError, ValueError: what the attack raises for a bad argument.
    """

    is_black_box = True

    def __init__(
        self, source: nn.Module, attack: Callable[..., Attack] = PGD, epsilon: float = 8 / 255, **options: Any
    ) -> None:
        self.attack = attack(source, epsilon, **options)

    @property
    def epsilon(self) -> float:
        """The radius of the ball."""
        return self.attack.epsilon

    @property
    def noise(self) -> NoiseStream:
        """Where random numbers come from."""
        return self.attack.noise

    @noise.setter
    def noise(self, noise: NoiseStream) -> None:
        self.attack.noise = noise

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The adversarial images ``[B, C, H, W]``, see :meth:`Attack.__call__`."""
        return self.attack(images, labels)
