"""WeightAverage: the exponential moving average of a model's weights while it is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._support.checks import check_fraction, check_int
from ._support.model_state import check_model, unwrap
from ._support.state_checks import check_keys, check_network_state


class WeightAverage:
    """A copy of a model whose weights follow the model's, averaged over the steps of training.

    After step n, ``average += (1 - d) (weights - average)`` with ``d = min(decay, (1 + n) / (10 + n))``: while there
    are few steps, the weights of the beginning count for little. Running statistics of batch norm are averaged in the
    same way, integers are taken as they are. Averaged weights are a little more robust, and overfit less, than the last
    ones (Rebuffi et al., 2021; Gowal et al., 2020).

    Args:
        model: as it is now; wrappers are left out.
        decay: in (0, 1), of a step; 0.995 remembers some 200 steps, 0.9999 some 10,000.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        check_model(model)
        check_fraction("decay", decay)
        self.decay = float(decay)
        self.model = copy.deepcopy(unwrap(model)).eval().requires_grad_(False)
        """The averaged model, in eval mode."""
        self.steps = 0
        """How many steps it has followed."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follows the model by one step.

        Raises:
            TypeError, ValueError: if it is no model, or its weights and buffers are not like the average's; nothing is
                changed then.
        """
        check_model(model)
        pairs = self._pairs(unwrap(model))
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        if floating:
            averages, current = map(list, zip(*floating))
            torch._foreach_lerp_(averages, current, 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The average's tensors, each with the model's."""
        averages, current = _tensors(self.model), _tensors(model)
        wanted, given = ([(one.shape, one.dtype, one.device) for one in tensors] for tensors in (averages, current))
        if wanted != given:
            raise ValueError("model must be like the one that the average was made of, but its weights and buffers "
                             "are others, or have other shapes, types or devices")
        return list(zip(averages, current))

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state, and the number of steps."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def check_state_dict(self, state: Any) -> None:
        """Raises TypeError or ValueError if a ``state`` is not what :meth:`state_dict` gives for such a model."""
        check_keys("state of the average", state, ("model", "steps"))
        check_network_state("weight average", self.model.state_dict(), state["model"])
        check_int("steps of the average", state["steps"], 0, 2**63)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the ``state`` that :meth:`state_dict` gave.

        Raises:
            TypeError, ValueError: see :meth:`check_state_dict`; nothing is changed then.
        """
        self.check_state_dict(state)
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, those that are shared once."""
    return [*model.parameters(), *model.buffers()]
