"""The trainer of a run, from its settings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .._support.layout import to_channels_last
from ..config import ResolvedConfig
from ..methods import create_method
from ..models import convert_sync_batchnorm
from ..noise import NoiseStream
from ..processes import Processes
from ..trainer import OuterPrecision, Trainer

# The precision of the pass that trains, by that of the attacked network.
_OUTER_PRECISION: dict[str, OuterPrecision] = {
    "auto": "auto", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "bf16"
}  # fmt: skip

# Its first name, which newer versions of PyTorch warn of.
_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


def create_trainer(
    config: ResolvedConfig,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    device: torch.device,
    processes: Processes,
) -> Trainer:
    """The optimizer, the method and the trainer that the settings say.

    Args:
        config: resolved.
        model: of any device; moves to ``device``, and has its batch norms replaced where they are to be synchronised.
        image_shape: (C, H, W).
        device: of this process.
        processes: those that share the run; all call this.
    """
    to_channels_last(model, device)
    synchronised = config.sync_batchnorm and processes.size > 1
    if not processes.is_first:  # what a model draws itself, as dropout does, is each process's own
        torch.manual_seed(config.seed + processes.rank)
    trained = model if processes.size == 1 else _distributed(model, synchronised)
    optimizer = torch.optim.SGD(
        trained.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    method = create_method(
        config.method,
        trained,
        epsilon=config.epsilon,
        noise=NoiseStream(config.seed, device),  # of one seed in all processes: a share tells what is whose
        engine=config.engine_options(),
        image_shape=image_shape,
        model_mode=config.model_mode,
        **config.method_options(),
    )
    if synchronised and method.joint is not None:
        for network in method.joint.networks.values():
            convert_sync_batchnorm(network)
    return Trainer(
        trained,
        optimizer,
        method,
        outer_mode=config.outer_mode,
        outer_precision=_OUTER_PRECISION[config.precision],
        accumulation_steps=config.accumulation_steps,
        max_grad_norm=config.max_grad_norm,
        ema_decay=config.ema_decay,
    )


def _distributed(model: nn.Module, synchronised: bool) -> DistributedDataParallel:
    """The model, whose gradients are averaged over the processes."""
    if synchronised:
        convert_sync_batchnorm(model)  # in place
    # Buffers are averaged after each step: the attacks, which run on the model without its wrapper, need them too.
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(model, **options)
