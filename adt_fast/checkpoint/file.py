"""The file: tensors and plain metadata in safetensors, with a digest of both.

It is an ordinary safetensors file, so `safetensors.torch.load_file` reads its tensors too. Its header's metadata has
one entry, "adt_fast": a JSON object with `format_version`, `metadata`, and `sha256`, the digest of that metadata and of
every tensor. The digest tells a bit that flipped on disk from a number that was trained.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .._support.atomic_file import atomic_file
from ..checkpoint_layouts import is_torch_file

FORMAT_VERSION = 1
"""Of the files written; newer ones are refused."""

_ENTRY = "adt_fast"
_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip


class CheckpointError(ValueError):
    """A file that is damaged, foreign, or another kind of checkpoint. The message names the file and a cure."""


def save_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a checkpoint.

    path: the file; at every moment it is the old one or the new one, whole.
    tensors: by name; any shape, strides and device; floating-point (16 to 64 bits), integer or bool. Tensors that share
        memory are saved once for each name.
    metadata: a dict with str keys, of such dicts, lists, tuples (which come back as lists), str, int, float, bool and
        None.

    Raises TypeError or ValueError that names the entry, before anything is written; OSError where writing fails, and
    the old file is then as it was.
    """
    _check_tensors(tensors)
    check_metadata(metadata)
    # Each in memory of its own and contiguous, for safetensors takes no others.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    entry = {"format_version": FORMAT_VERSION, "sha256": digest(tensors, metadata), "metadata": metadata}
    content = safetensors.torch.save(tensors, {_ENTRY: json.dumps(entry)})
    with atomic_file(path) as file:
        file.write(content)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The (tensors, metadata) that `save_checkpoint` was given; the tensors are contiguous, on the CPU.

    path: the file.

    Raises OSError (FileNotFoundError, ...) where the file cannot be read; CheckpointError where it is damaged, was not
    written by `save_checkpoint`, or was written by a newer version.
    """
    path = Path(path)
    return parse(path, path.read_bytes())


def parse(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `load_checkpoint` gives for a file of this content."""
    if is_torch_file(content):
        raise CheckpointError(
            f"{path} is a file of torch.save or pickle, and adt_fast writes safetensors only. If it is a model, "
            "load_model reads it; otherwise torch.load(path, weights_only=True) may"
        )
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # the reader's own error, and struct, JSON and dtype errors beside it
        raise CheckpointError(
            f"{path} is no safetensors file, or is damaged or cut short. Use another copy, or an earlier checkpoint "
            f"({error})"
        ) from error
    entry = _read_entry(path, content)
    metadata = entry.get("metadata")
    if not isinstance(metadata, dict) or entry.get("sha256") != digest(tensors, metadata):
        raise CheckpointError(
            f"{path} is damaged: its contents do not match the checksum saved with them. "
            "Use another copy, or an earlier checkpoint"
        )
    return tensors, metadata


def is_foreign(content: bytes) -> bool:
    """Whether the file is of torch.save, or of safetensors without our entry; one that is damaged may be ours."""
    if is_torch_file(content):
        return True
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _ENTRY not in header.get("__metadata__", {})
    except (AttributeError, TypeError, ValueError, RecursionError):
        return False


def digest(tensors: Mapping[str, Tensor], metadata: object) -> str:
    """SHA-256 of the metadata and of each tensor's name, dtype, shape and bytes.

    The tensors are contiguous, on the CPU.
    """
    sha256 = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _read_entry(path: Path, content: bytes) -> dict[str, Any]:
    """Our entry in the header of a file that safetensors has found to be well formed."""
    header_length = int.from_bytes(content[:8], "little")
    try:
        entry = json.loads(json.loads(content[8 : 8 + header_length])["__metadata__"][_ENTRY])
        version = entry["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is a safetensors file that adt_fast did not write, or its header is damaged. "
            "If it is a model, load_model reads it; safetensors.torch.load_file reads its tensors"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, and this version of adt_fast reads "
            f"{FORMAT_VERSION}: read it with the adt_fast that wrote it, or a newer one"
        )
    return entry


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a dict of names and tensors, got {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"tensors must have str names, got {name!r}")
        if name == "__metadata__":
            raise ValueError("tensors must not use the name '__metadata__', which safetensors keeps for itself")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors[{name!r}] must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(
                f"tensors[{name!r}] must be dense, in memory, of floating-point, integer or bool dtype; "
                f"got {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            )


def check_metadata(metadata: object) -> None:
    """Raises TypeError that names the entry, where they are not such as `save_checkpoint` takes."""
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(metadata).__name__}")
    _check_plain("metadata", metadata)


def _check_plain(where: str, value: object) -> None:
    """Refuse what JSON cannot hold, or would change without a word. where: what error messages call the value."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} must have str keys, got {key!r}")
            _check_plain(f"{where}[{key!r}]", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(f"{where}[{index}]", item)
    elif not (value is None or isinstance(value, (str, int, float))):
        raise TypeError(f"{where} must be a str, int, float, bool, None, list or dict, got {type(value).__name__}")
