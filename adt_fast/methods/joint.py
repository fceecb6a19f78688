"""Networks that are trained against the classifier, in the same backward pass: the generator, the encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from .._support.checks import check_positive
from .._support.optimizer_state import load_optimizer_state
from .._support.state_checks import check_keys, check_network_state, check_optimizer_state
from ..attacks import AmortizedAttack
from ..checkpoint import CheckpointError, load_state, pack_state, save_checkpoint
from ..processes import average_


class _ReverseGradient(torch.autograd.Function):
    """Identity whose gradient changes sign: one backward pass lowers a loss here and raises it there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.neg()


def reverse_gradient(x: Tensor) -> Tensor:
    """x itself, of any shape; what it was made of gets minus the gradient."""
    return _ReverseGradient.apply(x)


class JointTraining:
    """The networks of an amortised maximizer, each with its Adam (paper, Section C.3).

    Args:
        maximizer: its networks are trained, in place.
        generator_learning_rate: of all of them, > 0; the paper's is 2e-4. It stays constant, as in the published code,
            whose decay would begin at epoch 100, beyond the 76 of a run.

    The generator's betas are (0.5, 0.999), those of other networks PyTorch's (0.9, 0.999).

    Raises:
        TypeError, ValueError: for a bad learning rate.
    """

    def __init__(self, maximizer: AmortizedAttack, *, generator_learning_rate: float = 2e-4) -> None:
        if not isinstance(maximizer, AmortizedAttack):
            raise TypeError(f"maximizer must be an AmortizedAttack, got {type(maximizer).__name__}")
        check_positive("generator_learning_rate", generator_learning_rate)
        self.networks = maximizer.networks
        self.optimizers: dict[str, Optimizer] = {
            name: torch.optim.Adam(
                network.parameters(), lr=generator_learning_rate, betas=(0.5 if name == "generator" else 0.9, 0.999)
            )
            for name, network in self.networks.items()
        }

    def zero_grad(self) -> None:
        """Drops the gradients of the last minibatch."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def step(self) -> None:
        """One step of every network."""
        for optimizer in self.optimizers.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer states, by network."""
        return {
            name: {"network": network.state_dict(), "optimizer": self.optimizers[name].state_dict()}
            for name, network in self.networks.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a ``state`` that :meth:`state_dict` gave.

        Raises:
            ValueError: see :meth:`check_state_dict`; nothing is changed then.
        """
        self.check_state_dict(state)
        for name, network in self.networks.items():
            network.load_state_dict(state[name]["network"])
            load_optimizer_state(self.optimizers[name], state[name]["optimizer"])

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if ``state`` is of other networks, or a network's tensors have other names, shapes or
        dtypes."""
        if not isinstance(state, Mapping) or set(state) != set(self.networks):
            given = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state must be of the networks {sorted(self.networks)}, got {given}")
        for name, network in self.networks.items():
            check_keys(f"state of the {name}", state[name], ("network", "optimizer"))
            check_network_state(name, network.state_dict(), state[name]["network"])
            check_optimizer_state(name, self.optimizers[name], state[name]["optimizer"])

    def broadcast(self, group: dist.ProcessGroup | None = None) -> None:
        """Every process gets the weights and statistics of the group's first one."""
        world: Any = dist.group.WORLD
        source = dist.get_global_rank(group or world, 0)
        for network in self.networks.values():
            for tensor in (*network.parameters(), *network.buffers()):
                dist.broadcast(tensor.detach(), source, group=group)

    def average_gradients(self, group: dist.ProcessGroup | None = None) -> None:
        """The gradients' mean over the processes of a group, as DistributedDataParallel has it for the classifier."""
        parameters = (parameter for network in self.networks.values() for parameter in network.parameters())
        average_([parameter.grad for parameter in parameters if parameter.grad is not None], group)

    def save(self, path: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
        """Writes the state and any plain metadata to a file.

        Args:
            path, metadata: see :func:`adt_fast.checkpoint.save_checkpoint`.
        """
        tensors, structure = pack_state(self.state_dict())
        save_checkpoint(path, tensors, {"joint_training": structure, "extra": metadata})

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Restores what :meth:`save` wrote to ``path``, and gives its metadata.

        Raises:
            OSError, CheckpointError: see :func:`adt_fast.checkpoint.load_checkpoint`; CheckpointError also if it is a
                checkpoint of something else, or its state does not fit. Nothing is changed then.
        """
        state, metadata = load_state(path, "joint_training", "jointly trained networks")
        if not isinstance(metadata.get("extra"), dict):
            raise CheckpointError(f"{path} is damaged: it lacks the metadata that it was saved with")
        try:
            self.load_state_dict(state)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        return metadata["extra"]
