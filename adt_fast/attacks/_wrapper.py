"""AttackWrapper: an attack run by another name."""

from __future__ import annotations

from torch import Tensor

from ..noise import NoiseStream
from .base import Attack


class AttackWrapper:
    """What runs an :class:`Attack`, its ``attack``, and shares its noise."""

    attack: Attack

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
