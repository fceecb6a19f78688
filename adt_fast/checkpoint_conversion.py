"""Conversion of checkpoints: from any layout that `load_model` reads into ours, or into one of others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ._support.atomic_file import atomic_file
from .checkpoint import read_model, save_model
from .checkpoint_layouts import Exported, Normalization, to_foreign

_TORCH_SUFFIXES = {".pt", ".pth", ".tar", ".ckpt", ".bin", ".pkl"}


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` read and wrote."""

    model_name: str
    model_kwargs: dict[str, Any]
    """With `model_name`, the arguments of `create_model` that make the model."""
    source: dict[str, Any] | None
    """What was recognised in a file of others, see `load_model`; None for one of ours."""
    layout: str
    """Of the target."""
    tensors: int
    """How many the target has."""
    dropped: dict[str, list[str]]
    """Why -> which tensors of the model the target lacks."""
    untold: dict[str, Any]
    """What the target does not tell: the arguments of `load_model` that read it again."""


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str = "adt_fast",
    normalization: Normalization | None = None,
    sub_block1: bool = False,
    module_prefix: bool = False,
    model_name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    activation: str | None = None,
    shortcut: str | None = None,
    entry: str | None = None,
) -> Conversion:
    """Read a model of any layout, and write it in another; the tensors keep their bits.

    source: a file that `load_model` reads; model_name, mean, std, activation, shortcut and entry are its arguments.
    target: the file to write, whole or not at all. One of others is a state dict of safetensors where the name ends in
        ".safetensors", and of torch.save otherwise.
    layout: "adt_fast" for a file of `save_model`, whose extra metadata have what was recognised in the source, dropped,
        added and converted under "converted_from"; "wrn", "preactresnet-18" or "dm" for one of others, see
        docs/checkpoints.md. Only a layout whose code computes the same function will do.
    normalization: of a model that has one, for the layouts of others; it cannot be folded into the first convolution,
        whose zero padding comes after it. "keep" writes its numbers: for "wrn" and "preactresnet-18" the file is then
        of RobustBench's normalize_model(network, mean, std), for "dm" it has `mean` and `std` of the network. "drop"
        leaves them to the code that loads the file. The code behind "dm" always normalises: there one of the two is
        required, and "keep" writes zeros and ones for a model that does not normalise.
    sub_block1: for "wrn", write the tensors that the published code of ADT and TRADES makes under this name and never
        uses, so that it loads the file strictly: copies of block1.
    module_prefix: for a layout of others, begin every name with "module.", as DataParallel does.

    Raises what `load_model` does; ValueError, before anything is written, for a layout that is not the model's, options
    that do not fit the layout, and a normalisation that would be lost; OSError where writing fails.
    """
    path = Path(target)
    options = {"mean": mean, "std": std, "activation": activation, "shortcut": shortcut, "entry": entry}
    model, metadata, is_foreign = read_model(source, model_name, options)
    name, kwargs, extra = (metadata[key] for key in ("model_name", "model_kwargs", "extra"))
    found = extra["source"] if is_foreign else None
    if layout == "adt_fast":
        _check_ours(path, normalization=normalization, sub_block1=sub_block1, module_prefix=module_prefix)
        exported = Exported(model.state_dict(), {}, {})
        extra = {"converted_from": found} if is_foreign else extra
        save_model(path, model, model_name=name, model_kwargs=kwargs, extra=extra)
    else:
        exported = to_foreign(
            model.state_dict(), name, kwargs, layout,
            normalization=normalization, sub_block1=sub_block1, module_prefix=module_prefix,
        )  # fmt: skip
        with atomic_file(path) as file:
            if path.suffix == ".safetensors":
                file.write(safetensors.torch.save(exported.tensors, {"format": "pt"}))
            else:
                torch.save(exported.tensors, file)
    return Conversion(name, kwargs, found, layout, len(exported.tensors), exported.dropped, exported.untold)


def _check_ours(path: Path, **options: Any) -> None:
    for option, value in options.items():
        if value:
            raise ValueError(f"{option} is for the layouts of others, and must be left out with layout='adt_fast'")
    if path.suffix in _TORCH_SUFFIXES:
        raise ValueError(
            f"target {str(path)!r} has a suffix of torch.save, and layout 'adt_fast' is a file of safetensors: "
            "name it so, or choose another layout"
        )
