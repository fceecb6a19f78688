"""Models: ours with all that it takes to build them again, and those in the files of others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._support.checks import LONGEST_REASON
from .._support.model_state import check_model
from ..checkpoint_layouts import UnknownCheckpoint, from_foreign, read_file
from ..models import create_model
from .file import CheckpointError, check_metadata, digest, is_foreign, parse, save_checkpoint


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
    check_metadata(metadata)
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
    of_others = is_foreign(content)
    if of_others:
        tensors, metadata = _read_foreign(path, content, options)
    else:
        tensors, metadata = parse(path, content)
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
    return model.eval(), metadata, of_others


def digest_of_model(model: nn.Module) -> str:
    """SHA-256 of a model's state."""
    return digest({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, {})


def _read_foreign(path: Path, content: bytes, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        found = from_foreign(read_file(content), **options)
    except UnknownCheckpoint as error:
        raise CheckpointError(f"{path} {str(error)[:LONGEST_REASON]}") from error
    extra = {"source": {"file": path.name, **found.source}}
    return found.state, {"model_name": found.model_name, "model_kwargs": found.model_kwargs, "extra": extra}


def _create_untrained(metadata: Mapping[str, Any]) -> nn.Module:
    """The model without numbers in its tensors, which costs neither memory nor random numbers."""
    with torch.device("meta"):
        return create_model(metadata["model_name"], **metadata["model_kwargs"])


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
