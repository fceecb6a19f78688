"""Transfer: adversarial images of one model, to be tried on another (paper, Section 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ._wrapper import AttackWrapper
from .base import Attack
from .pgd import PGD


class Transfer(AttackWrapper):
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
