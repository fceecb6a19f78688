"""Checkpoints: tensors and plain metadata in one safetensors file, written whole or not at all, read without pickle.

A file is an ordinary safetensors file, so `safetensors.torch.load_file` reads its tensors too. Its header's metadata
has one entry, "adt_fast": a JSON object with `format_version`, `metadata`, and `sha256`, the digest of that metadata
and of every tensor. The digest tells a bit that flipped on disk from a number that was trained.

`load_model` reads the files of others as well, whose layouts are in `checkpoint_layouts`; what is in a pickle is read
by torch.load(weights_only=True) alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ._atomic_file import atomic_file
from .checkpoint_layouts import UnknownCheckpoint, from_foreign, is_torch_file, read_file
from .model_state import check_model
from .models import create_model

FORMAT_VERSION = 1
"""Of the files written; newer ones are refused."""

_ENTRY = "adt_fast"
_LONGEST_REASON = 500
"""Characters of a message that may come from a hostile file."""
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
    _check_metadata(metadata)
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
    return _parse(path, path.read_bytes())


def _parse(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
        what = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        raise CheckpointError(f"the structure of a state is not as adt_fast writes it ({what})") from error
    raise CheckpointError(f"the structure of a state is not as adt_fast writes it: it has {str(kind)[:80]!r}")


def load_state(path: str | os.PathLike[str], entry: str, what: str) -> tuple[Any, dict[str, Any]]:
    """A state that was packed and saved with its structure under `entry` of the metadata; and all of these.

    path: the file.
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


def save_model(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    model_name: str,
    model_kwargs: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a model so that `load_model` can build it again: its state and how `create_model` makes it.

    path: the file, see `save_checkpoint`.
    model: without wrappers.
    model_name, model_kwargs: the arguments of `create_model`.
    extra: any plain metadata, see `save_checkpoint`.

    Raises TypeError or ValueError, before anything is written, for a bad argument, by name, and where
    create_model(model_name, **model_kwargs) makes another model than this one; and what `create_model` and
    `save_checkpoint` raise.
    """
    check_model(model)
    for argument, value in (("model_kwargs", model_kwargs), ("extra", extra)):
        if not isinstance(value, (dict, type(None))):
            raise TypeError(f"{argument} must be a dict or None, got {type(value).__name__}")
    metadata = {"model_name": model_name, "model_kwargs": model_kwargs or {}, "extra": extra or {}}
    _check_metadata(metadata)
    state = model.state_dict()
    made = _create_untrained(metadata).state_dict()
    if _shapes(state) != _shapes(made):
        differing = sorted({name for name, _ in _shapes(state).items() ^ _shapes(made).items()})
        raise ValueError(
            f"model is not what create_model({model_name!r}, **{metadata['model_kwargs']}) makes: "
            f"{len(differing)} entries of the state differ, the first is {differing[0]!r}. "
            "Give the arguments that made it, and pass the model without wrappers"
        )
    save_checkpoint(path, state, metadata)


def load_model(
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    activation: str | None = None,
    shortcut: str | None = None,
    entry: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The model that `save_model` or the code of others wrote, on the CPU, in eval mode and in the dtype it had.

    With it come the metadata: model_name, model_kwargs and extra. PyTorch's random state is left alone.

    path: the file. One of others, by torch.save or safetensors, has one of the layouts in docs/checkpoints.md;
        `extra["source"]` then tells what was recognised (layout, entry, prefix), and what was dropped, added and
        converted. Where such a file leaves something open, the other arguments say it.
    model_name: the architecture there has to be, for example "wrn-28-10"; for our own files as well. Default: any.
    mean, std: the normalisation of the input, one number per channel, where the file has none. Default: none, but for
        the layout "dm", whose code always normalises: there they are required.
    activation: "relu" or "silu"; required for the layout "dm".
    shortcut: "activated" or "input", see `PreActResNet18`; required for a file of others with that network.
    entry: the name of the dict in the file that the model is in, where there are several.

    Raises OSError where the file cannot be read; CheckpointError where it is damaged, is no model that `create_model`
    makes, or is not what the arguments say it is; ValueError for arguments that do not fit it.
    """
    options = {"mean": mean, "std": std, "activation": activation, "shortcut": shortcut, "entry": entry}
    model, metadata, _ = read_model(path, model_name, options)
    return model, metadata


def read_model(
    path: str | os.PathLike[str], model_name: str | None, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any], bool]:
    """What `load_model` gives for the same `path` and `model_name`, and whether the file is of others.

    options: those of `from_foreign`.
    """
    path = Path(path)
    content = path.read_bytes()
    is_foreign = _is_foreign(content)
    if is_foreign:
        tensors, metadata = _read_foreign(path, content, options)
    else:
        tensors, metadata = _parse(path, content)
        if not {"model_name", "model_kwargs", "extra"} <= metadata.keys():
            raise CheckpointError(f"{path} is a checkpoint, but not of a model alone: read it with load_checkpoint")
        if needless := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"{needless[0]} is for the files of others, and {path} says it itself: leave it out")
    if model_name is not None and metadata["model_name"] != model_name:
        raise CheckpointError(f"{path} holds a {metadata['model_name']}, and model_name={model_name!r} is wanted")
    try:
        model = _create_untrained(metadata)
        model.load_state_dict(tensors, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds a model that this version cannot build: {error}") from error
    return model.eval(), metadata, is_foreign


def _read_foreign(path: Path, content: bytes, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        found = from_foreign(read_file(content), **options)
    except UnknownCheckpoint as error:
        raise CheckpointError(f"{path} {str(error)[:_LONGEST_REASON]}") from error
    extra = {"source": {"file": path.name, **found.source}}
    return found.state, {"model_name": found.model_name, "model_kwargs": found.model_kwargs, "extra": extra}


def _is_foreign(content: bytes) -> bool:
    """Whether the file is of torch.save, or of safetensors without our entry; one that is damaged may be ours."""
    if is_torch_file(content):
        return True
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _ENTRY not in header.get("__metadata__", {})
    except (AttributeError, TypeError, ValueError, RecursionError):
        return False


def _create_untrained(metadata: Mapping[str, Any]) -> nn.Module:
    """The model without numbers in its tensors, which costs neither memory nor random numbers."""
    with torch.device("meta"):
        return create_model(metadata["model_name"], **metadata["model_kwargs"])


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def digest(tensors: Mapping[str, Tensor], metadata: object) -> str:
    """SHA-256 of the metadata and of each tensor's name, dtype, shape and bytes.

    The tensors are contiguous, on the CPU.
    """
    sha256 = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def digest_of_model(model: nn.Module) -> str:
    """SHA-256 of a model's state."""
    return digest({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, {})


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


def _check_metadata(metadata: object) -> None:
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
