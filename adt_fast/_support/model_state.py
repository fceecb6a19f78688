"""Borrowing a model and giving it back as it was: train/eval mode, requires_grad, and wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from .checks import check_choice

ModelMode = Literal["eval", "train", "keep"]
"""How a model runs while it is borrowed: all of it in eval or in train mode, or each module in the mode it has."""


def check_model(model: nn.Module, name: str = "model") -> None:
    """Raises TypeError that names the argument, where ``model`` is not a ``torch.nn.Module``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(model).__name__}")


def check_mode(name: str, mode: str) -> None:
    """Raises ValueError that names the argument, where ``mode`` is not a :data:`ModelMode`."""
    check_choice(name, mode, get_args(ModelMode))


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside (Distributed)DataParallel and ``torch.compile`` wrappers.

    Attacks run on it: their passes are no business of DDP's gradient buckets, and a compiled model whose
    ``requires_grad`` flags are toggled may run the wrong graph (pytorch#139476).
    """
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
            model = original
        else:
            return model


def distributed_wrapper(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The wrapper that averages the model's gradients over processes, also inside ``torch.compile``'s; None without."""
    while isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
        model = original
    return model if isinstance(model, nn.parallel.DistributedDataParallel) else None


@contextmanager
def model_mode(model: nn.Module, mode: ModelMode) -> Iterator[None]:
    """Puts the model in a mode, and every module back in its own at the end, exceptions included."""
    before = [(module, module.training) for module in model.modules()]
    try:
        if mode != "keep":
            model.train(mode == "train")
        yield
    finally:
        for module, training in before:
            if module.training != training:
                module.training = training


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; at the end each has its own flag again, exceptions included.

    So a backward pass to the inputs neither computes weight gradients nor keeps the activations they would need.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def device_of(model: nn.Module) -> torch.device | None:
    """Where the model's first parameter or buffer is; None for a model that has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None
