"""The state of PyTorch's global generators, which a user's loader or dropout may draw from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def random_state(device: torch.device | None) -> dict[str, Tensor]:
    """Of the CPU's generator and, for a CUDA device, of its own."""
    state = {"cpu": torch.get_rng_state()}
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def kept_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is drawn inside, the generators of the CPU and of that device are afterwards where they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def restore_random_state(state: Mapping[str, Tensor], device: torch.device | None) -> None:
    """Puts back what :func:`random_state` gave; a CUDA state only on a CUDA device."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
