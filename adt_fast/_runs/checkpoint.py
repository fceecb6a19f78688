"""The state of a run that is not finished: last.safetensors in its folder, and the one before it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .._support.atomic_file import sync_folder
from ..checkpoint import CheckpointError, load_state, pack_state, save_checkpoint
from .machine import versions

_ENTRY = "training_run"

_MUST_BE_SAME = {"adt_fast", "commit", "torch", "device", "threads", "instruction_set"}
"""Those of a state's versions on which the bits of what follows depend."""
_WORDS = {"commit": "adt_fast's commit", "threads": "number of threads", "instruction_set": "instruction set"}


class RunCheckpoint:
    """Keeps the last two states of a run: at every moment one of them is there, whole.

    A save first gives ``last.safetensors`` the name ``last.previous.safetensors``, and then writes the new state, which
    takes its name once it is on the disk.

    Args:
        folder: the run's.
        device: where it trains, which is noted in the states.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self.path = folder / "last.safetensors"
        self.previous = folder / "last.previous.safetensors"
        self.warnings: list[str] = []
        """What :meth:`load` has to tell the user."""
        self.loaded_from = self.path
        """The file that :meth:`load` took."""
        self._last_is_whole = True

    def save(self, state: dict[str, Any]) -> None:
        """Writes a state: nested dicts and lists of tensors and plain values.

        Raises:
            OSError: if it cannot be written; the state before is there then.
        """
        tensors, structure = pack_state(state)
        if self._last_is_whole and self.path.exists():  # a damaged one must not take the place of a whole one
            os.replace(self.path, self.previous)
            sync_folder(self.path.parent)
        save_checkpoint(self.path, tensors, {_ENTRY: structure, "versions": versions(self._device)})
        self._last_is_whole = True

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None if there is none and never was.

        Raises:
            CheckpointError: if all that is there is damaged.
        """
        damages = []
        for path in (self.path, self.previous):
            with suppress(FileNotFoundError):
                try:
                    state = self._read(path)
                except CheckpointError as error:
                    damages.append(str(error))
                    continue
                self.loaded_from = path
                if damages:
                    self.warnings.append(f"{damages[0]}. Going on from {path.name}, the state before")
                return state
        if damages:
            raise CheckpointError(f"there is no whole state to go on from: {'; '.join(damages)}")
        return None

    def remove(self) -> None:
        """Of no use once the run has its results. What killed writers of any of its files have left goes too."""
        self.previous.unlink(missing_ok=True)  # first: what is left must be the newest
        self.path.unlink(missing_ok=True)
        for abandoned in self.path.parent.glob(".*.safetensors.*.tmp"):
            abandoned.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state, metadata = load_state(path, _ENTRY, "a training run under way")
            if not isinstance(state, dict) or not isinstance(metadata.get("versions"), dict):
                raise CheckpointError(f"{path} is damaged: it has no state, or not the versions that saved it")
        except CheckpointError:
            if path == self.path:
                self._last_is_whole = False
            raise
        self._compare_versions(path, metadata["versions"])
        return state

    def _compare_versions(self, path: Path, saved: dict[str, Any]) -> None:
        here = versions(self._device)
        # What a GPU computes does not depend on the CPU beside it.
        names = _MUST_BE_SAME if self._device.type == "cpu" else _MUST_BE_SAME - {"threads", "instruction_set"}
        for name in here:
            if name in names and name in saved and saved[name] != here[name]:
                self.warnings.append(f"{path} was saved with {_WORDS.get(name, name)} {saved[name]}, and this is "
                                     f"{here[name]}: the run may differ from an unbroken one")
