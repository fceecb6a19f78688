"""Loading an optimizer's state such that its next step has the bits that it would have had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict``, and what is kept for a parameter lies in memory as the parameter does.

    A fused step of a CPU goes through the memory of both side by side and trusts that they have one layout: with a
    contiguous momentum it would mix up the elements of a channels_last weight. Other steps would be right, but do other
    elements in their vectorised part.
    """
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
