"""What every contestant is given, and what it must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

ADT_EXP, AT_PGD, STANDARD = OBJECTIVES = ("adt-exp", "at-pgd", "standard")
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}


@dataclass(frozen=True)
class Task:
    """A minibatch, the weights that every contestant starts from, and what to train."""

    objective: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    steps: int = 7
    samples: int = 5
    epsilon: float = 8 / 255
    step_size: float = 0.3  # of ADT-EXP; AT-PGD's is epsilon / 4
    entropy_weight: float = 0.01
    learning_rate: float = 1e-4  # small, so that the weights stay put while they are timed
    weight_decay: float = 2e-4

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def inner_passes(self) -> int:
        """Input gradients for each image of the minibatch."""
        return {ADT_EXP: self.steps * self.samples, AT_PGD: self.steps, STANDARD: 0}[self.objective]

    @property
    def ball(self) -> dict[str, float]:
        return {"epsilon": self.epsilon, "lower": 0.0, "upper": 1.0}

    def first(self, batch: int) -> Task:
        """The same with the first images only."""
        return replace(self, images=self.images[:batch], labels=self.labels[:batch])

    def optimizer(self, model: nn.Module, **options: Any) -> torch.optim.SGD:
        settings = {"lr": self.learning_rate, "momentum": 0.9, "weight_decay": self.weight_decay}
        return torch.optim.SGD(model.parameters(), **settings, **options)


class Noise(Protocol):
    """Where a validated run takes its random numbers from."""

    seed: int

    def normals(self, images: Tensor, samples: int, draw: int) -> Tensor:
        """Standard normals ``[k, B, C, H, W]``: draw t is of inner step t, draw T of the last sample."""
        ...

    def uniforms(self, images: Tensor) -> Tensor:
        """On [-1, 1], like images: the random start."""
        ...


class Found(NamedTuple):
    """What the inner maximisation ended with."""

    x_adv: Tensor
    """The images that are trained on."""
    mu: Tensor | None
    """Of ADT-EXP."""


class Contestant(ABC):
    """One way to train. ``model`` and ``optimizer`` are its own; noise is its own too, unless it is given."""

    model: nn.Module
    optimizer: torch.optim.SGD

    @abstractmethod
    def maximize(self, noise: Noise | None = None) -> Found:
        """The inner maximisation."""

    @abstractmethod
    def step(self, noise: Noise | None = None) -> None:
        """One whole minibatch."""

    @abstractmethod
    def model_pass(self) -> None:
        """What the classifier does in one inner step: forward and backward."""

    def momentum(self) -> Iterator[Tensor]:
        """The optimizer's momentum: after the first step, the gradient of the weights and their decay."""
        return (self.optimizer.state[parameter]["momentum_buffer"] for parameter in self.model.parameters())

    def explain(self) -> str | None:
        """Which of its features are on."""
        return None
