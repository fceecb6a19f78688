"""What each attack did to each image; kept on disk as an evaluation goes on, so that it can be stopped and resumed."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ..processes import Processes

WRONG, RIGHT, NOT_ATTACKED = 0, 1, -1

_SAVE_EVERY_SECONDS = 2.0


class Outcomes:
    """Outcomes batch by batch: under a name, a number for each image.

    ``labels`` int64; ``natural``, and each attack by its name, int8: :data:`WRONG`, :data:`RIGHT`, or
    :data:`NOT_ATTACKED` where it was not needed.

    Args:
        path: where they are kept, as a checkpoint file; None for nowhere.
        settings: all that they depend on, plain values. A file of other settings is not resumed.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = dict(settings)
        self.examples: dict[str, Tensor] = {}
        """A few images and what became of them, ``[E, C, H, W]`` on the CPU, by the same names."""
        self._batches: list[dict[str, Tensor]] = []
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Reads the file, where there is one.

        Raises:
            ValueError: if it is of other settings.
            CheckpointError: if it is damaged, or no file of outcomes.
        """
        if self.path is None or not self.path.exists():
            return
        tensors, metadata = load_checkpoint(self.path)
        if not isinstance(metadata.get("outcomes"), dict):
            raise CheckpointError(f"{self.path} is a checkpoint, but not of an evaluation")
        # As text, in which the order of the attacks counts: it tells which of them saw the survivors of which.
        kept = {name: json.dumps(value) for name, value in metadata["outcomes"].items()}
        differing = [name for name, value in self.settings.items() if kept.get(name) != json.dumps(value)]
        if differing:
            raise ValueError(f"state {self.path} is of another evaluation: {', '.join(differing)} differ. Give it the "
                             "same settings, or another state file")
        examples, batches = _sorted_out(self.path, tensors)
        self.examples |= examples
        for index, batch in enumerate(batches):
            self.batch(index).update(batch)

    def batch(self, index: int) -> dict[str, Tensor]:
        """The outcomes of a batch, to be added to; the batches before it have some already."""
        while len(self._batches) <= index:
            self._batches.append({})
        return self._batches[index]

    def check_same_images(self, index: int, images: Tensor, labels: Tensor) -> None:
        """Notes which images a batch has, or raises ValueError where other ones were noted before."""
        outcomes = self.batch(index)
        checksum = torch.tensor(zlib.crc32(images.cpu().contiguous().numpy().data))
        labels = labels.cpu()
        if outcomes.setdefault("checksum", checksum) != checksum or not torch.equal(
            outcomes.setdefault("labels", labels), labels
        ):
            raise ValueError(f"data must be the same, in the same order, as when the state was saved: batch {index} "
                             "has other images. Is the loader shuffled?")

    def check_no_more_than(self, count: int) -> None:
        """Raises ValueError where there are outcomes of more batches than the data have."""
        if len(self._batches) > count:
            raise ValueError(f"data must be the same as when the state was saved: it has outcomes of "
                             f"{len(self._batches)} batches, the data have {count}")

    def share(self, processes: Processes) -> None:
        """Every process gets the outcomes that each has, and the first one's examples."""
        mine = {"batches": self._batches, "examples": self.examples}
        every = processes.from_first(processes.gather(mine))
        count = max(len(one["batches"]) for one in every)
        found = [one["batches"][index : index + 1] for index in range(count) for one in every]
        self._batches = [batch for one in found for batch in one if batch]
        self.examples = every[0]["examples"]

    def joined(self, name: str) -> Tensor:
        """The outcomes under a name, of all batches that have it, ``[N]``."""
        parts = [batch[name] for batch in self._batches if name in batch]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int8)

    def save(self, force: bool = False) -> None:
        """Writes the file where there is an outcome, at most every two seconds unless it is a must."""
        if self.path is None or not self._batches:
            return
        if not force and time.monotonic() - self._saved_at < _SAVE_EVERY_SECONDS:
            return
        tensors = {f"examples.{name}": tensor for name, tensor in self.examples.items()}
        for index, batch in enumerate(self._batches):
            tensors |= {f"{index}.{name}": tensor for name, tensor in batch.items()}
        save_checkpoint(self.path, tensors, {"outcomes": self.settings})
        self._saved_at = time.monotonic()


def _sorted_out(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The examples, and the outcomes by batch. Raises CheckpointError for what :meth:`Outcomes.save` does not write."""
    examples: dict[str, Tensor] = {}
    batches: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, _, what = name.partition(".")
        if place == "examples":
            examples[what] = tensor
        elif place.isdecimal() and len(place) < 10:
            batches.setdefault(int(place), {})[what] = tensor
        else:
            raise CheckpointError(f"{path} is damaged: it has a tensor of the name {name[:80]!r}")
    if sorted(batches) != list(range(len(batches))):
        raise CheckpointError(f"{path} is damaged: it lacks outcomes of batches before others")
    for index, batch in batches.items():
        labels = batch.get("labels")
        for what, tensor in batch.items():
            dtype = torch.int64 if what in ("labels", "checksum") else torch.int8
            shape = () if what == "checksum" else None if labels is None else labels.shape
            if tensor.dtype != dtype or tensor.shape != shape or tensor.dim() > 1:
                raise CheckpointError(f"{path} is damaged: {what[:80]!r} of batch {index} is {tensor.dtype} "
                                      f"{list(tensor.shape)[:9]}")
        if not {"labels", "checksum"} <= batch.keys():
            raise CheckpointError(f"{path} is damaged: batch {index} lacks its labels or their checksum")
    return examples, [batches[index] for index in range(len(batches))]


def check_state(path: str | os.PathLike[str] | None, resume: bool) -> None:
    """Raises ValueError where a file is there that is not to be resumed, or none is named that is."""
    if resume and path is None:
        raise ValueError("state must be given with resume=True: the file to go on from")
    if not resume and path is not None and Path(path).exists():
        raise ValueError(f"state {path} is there already: resume it, or give another file")


def surviving(outcomes: Mapping[str, Tensor], attacks: Iterable[str]) -> Tensor:
    """Which images are right naturally and under every attack so far, bool ``[B]``."""
    natural = outcomes["natural"] == RIGHT
    return torch.stack([natural, *(outcomes[name] != WRONG for name in attacks if name in outcomes)]).all(0)
