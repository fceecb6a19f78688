"""What every contestant is given, and what it must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

OBJECTIVES = ("adt-exp", "adt-exp-am", "adt-imp-am", "at-pgd", "standard")
ADT_EXP, ADT_EXP_AM, ADT_IMP_AM, AT_PGD, STANDARD = OBJECTIVES
AMORTIZED = (ADT_EXP_AM, ADT_IMP_AM)  # a generator gives the perturbation
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}

LOG_OFFSET = 1e-8  # inside the published logarithms


@dataclass(frozen=True)
class Task:
    """A minibatch, the weights that every contestant starts from, and what to train."""

    objective: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    networks: nn.ModuleDict = field(default_factory=nn.ModuleDict)  # "generator" and "encoder", of amortised ADT
    steps: int = 7
    samples: int = 5
    epsilon: float = 8 / 255
    step_size: float = 0.3  # of ADT-EXP; AT-PGD's is epsilon / 4
    entropy_weight: float = 0.01  # of ADT-IMP-AM 1
    hinge: float = 0.9  # of ADT-IMP-AM, from which on there is entropy enough
    learning_rate: float = 1e-4  # small, so that the weights stay put while they are timed
    weight_decay: float = 2e-4

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def inner_steps(self) -> int:
        """Of the loop that maximises; amortised ADT has none."""
        return self.steps if self.objective in (ADT_EXP, AT_PGD) else 0

    @property
    def inner_passes(self) -> int:
        """Input gradients for each image of the minibatch."""
        steps, amortized = self.steps, 2  # at the image and at its FGSM example
        return {ADT_EXP: steps * self.samples, AT_PGD: steps, STANDARD: 0}.get(self.objective, amortized)

    @property
    def ball(self) -> dict[str, float]:
        return {"epsilon": self.epsilon, "lower": 0.0, "upper": 1.0}

    def first(self, batch: int) -> Task:
        """The same with the first images only."""
        return replace(self, images=self.images[:batch], labels=self.labels[:batch])

    def optimizer(self, model: nn.Module, **options: Any) -> torch.optim.SGD:
        settings = {"lr": self.learning_rate, "momentum": 0.9, "weight_decay": self.weight_decay}
        return torch.optim.SGD(model.parameters(), **settings, **options)

    def network_optimizers(self, networks: nn.ModuleDict, **options: Any) -> dict[str, torch.optim.Adam]:
        """As the authors have them: 2e-4, which they never lower in time, and less momentum for the generator."""
        return {
            name: torch.optim.Adam(
                network.parameters(), lr=2e-4, betas=(0.5 if name == "generator" else 0.9, 0.999), **options
            )
            for name, network in networks.items()
        }


class Noise(Protocol):
    """Where a validated run takes its random numbers from."""

    seed: int

    def normals(self, images: Tensor, samples: int, draw: int) -> Tensor:
        """Standard normals ``[k, B, C, H, W]``: draw t is of inner step t, draw T of the last sample."""
        ...

    def uniforms(self, images: Tensor) -> Tensor:
        """On [-1, 1], like images or latents ``[B, n]``: the random start, or z."""
        ...


class Found(NamedTuple):
    """What the inner maximisation ended with."""

    x_adv: Tensor
    """The images that are trained on."""
    mu: Tensor | None = None
    """Of ADT-EXP."""
    penalty: Tensor | None = None
    """Of amortised ADT, a number: what the networks lower besides, with the density's constants left out."""


class Contestant(ABC):
    """One way to train. ``model`` and ``optimizer`` are its own; noise is its own too, unless it is given."""

    model: nn.Module
    optimizer: torch.optim.SGD
    network_optimizers: Mapping[str, torch.optim.Adam] = MappingProxyType({})

    @abstractmethod
    def maximize(self, noise: Noise | None = None) -> Found:
        """The inner maximisation."""

    @abstractmethod
    def step(self, noise: Noise | None = None) -> None:
        """One whole minibatch."""

    @abstractmethod
    def model_pass(self) -> None:
        """What the classifier does for one gradient of the images: forward and backward."""

    def momentum(self) -> Iterator[Tensor]:
        """The optimizer's momentum: after the first step, the gradient of the weights and their decay."""
        return (self.optimizer.state[parameter]["momentum_buffer"] for parameter in self.model.parameters())

    def network_momentum(self) -> dict[str, list[Tensor]]:
        """By network, Adam's first moment: after the first step, in the direction of the gradient."""
        return {
            name: [optimizer.state[p]["exp_avg"] for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self.network_optimizers.items()
        }

    def explain(self) -> str | None:
        """Which of its features are on."""
        return None
