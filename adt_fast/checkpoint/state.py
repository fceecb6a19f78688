"""Nested states, such as an optimizer's: into what a checkpoint takes, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._support.checks import LONGEST_REASON
from .file import CheckpointError, load_checkpoint


def pack_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """A nested state, such as an optimizer's, as what `save_checkpoint` takes: (tensors, plain structure).

    state: dicts (with str or int keys), lists and tuples of tensors and of plain values, at any depth. Tensors are
        named by their path, for example "generator/optimizer/state/0/exp_avg".
    """
    tensors: dict[str, Tensor] = {}

    def pack(path: tuple[str, ...], value: Any) -> Any:
        if isinstance(value, Tensor):
            name = "/".join(path)
            while name in tensors:  # the paths ("a/b",) and ("a", "b"), or keys 0 and "0"
                name += "'"
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[key, pack((*path, str(key)), item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [pack((*path, str(index)), item) for index, item in enumerate(value)]}
        return value

    return tensors, pack((), state)


def unpack_state(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """The state that `pack_state` was given; tuples come back as lists.

    Raises CheckpointError where the structure is not of `pack_state`, or names a tensor that is not there.
    """
    if not isinstance(structure, dict):
        if isinstance(structure, list):
            raise CheckpointError("the structure of a state must be of dicts and plain values, it holds a list")
        return structure
    try:
        ((kind, content),) = structure.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "list" and isinstance(content, list):
            return [unpack_state(tensors, item) for item in content]
        if kind == "dict" and isinstance(content, list):
            return {key: unpack_state(tensors, item) for key, item in content}
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        raise CheckpointError(f"the structure of a state is not as adt_fast writes it ({what})") from error
    raise CheckpointError(f"the structure of a state is not as adt_fast writes it: it has {str(kind)[:80]!r}")


def load_state(path: str | os.PathLike[str], entry: str, what: str) -> tuple[Any, dict[str, Any]]:
    """A state that was packed and saved with its structure in the metadata; and all of these.

    path: the file.
    entry: the name that the structure has there.
    what: it holds, in words, for messages.

    Raises OSError and CheckpointError, see `load_checkpoint`.
    """
    tensors, metadata = load_checkpoint(path)
    if entry not in metadata:
        raise CheckpointError(f"{path} is a checkpoint, but not of {what}")
    try:
        return unpack_state(tensors, metadata[entry]), metadata
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
