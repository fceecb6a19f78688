"""BatchShare: which images of a minibatch are at hand, where several processes or several passes share it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ._support.checks import check_int
from .noise import MAX_EXAMPLES


@dataclass(frozen=True)
class BatchShare:
    """A contiguous part of a whole minibatch, which an attack is given in place of the whole.

    With it (:attr:`adt_fast.attacks.Attack.share`) an image gets the noise, and the scale of the objective, that it has
    in the whole minibatch. Every share starts at the same place of the noise: processes have streams of one seed and
    offset, and passes after one another put the stream back (``noise.state.copy_(start)``) before each but the first.
    A mean over the images at hand, as outer losses and penalties are, counts ``len(images) / batch_size`` in that over
    the whole.

    Args:
        first_example: index in the whole minibatch of the first image at hand, in [0, batch_size).
        batch_size: images in the whole minibatch, 1 to 2**32.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    first_example: int
    batch_size: int

    def __post_init__(self) -> None:
        check_int("batch_size", self.batch_size, 1, MAX_EXAMPLES + 1)
        check_int("first_example", self.first_example, 0, self.batch_size)

    def check_fits(self, images: Tensor) -> None:
        """Raises ValueError where images ``[B, ...]`` go beyond the whole minibatch."""
        if self.first_example + len(images) > self.batch_size:
            raise ValueError(f"share must have room for the images: {len(images)} from example {self.first_example} on "
                             f"go beyond the whole minibatch of {self.batch_size}")
