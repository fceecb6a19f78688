"""The images of an analysis: those of an evaluation, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from tqdm import tqdm

from ..evaluation.batches import Batches, checked_batches, in_batches

_BATCH_SIZE = 256


def shown_batches(model: nn.Module, data: Batches, label: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on the model's device, each looked at; an ``ImageData`` in batches of 256.

    Args:
        label: of the progress bar, which is shown where stderr is a terminal.

    Raises:
        TypeError, ValueError: for bad images or labels, by name, or if there are no data.
    """
    batches = in_batches(model, data, _BATCH_SIZE)
    return checked_batches(model, tqdm(batches, desc=label, unit="batch", leave=False, disable=None))
