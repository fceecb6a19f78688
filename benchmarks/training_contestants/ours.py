"""adt_fast's own trainer."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F

from adt_fast import NoiseStream
from adt_fast.input_gradient import EngineOptions
from adt_fast.methods import create_method
from adt_fast.trainer import Trainer

from ..model_flops import float32_products
from .task import ADT_EXP, ADT_EXP_AM, AT_PGD, Contestant, Found, Noise, Task


class Ours(Contestant):
    """adt_fast's own trainer."""

    def __init__(self, task: Task, precision: str, **features: Any) -> None:
        self.task, self.precision = task, precision
        self.model = copy.deepcopy(task.model).to(memory_format=torch.channels_last)
        self.optimizer = task.optimizer(self.model, fused=True)
        self._images = task.images.contiguous(memory_format=torch.channels_last)
        self._noise = NoiseStream(0, task.device)
        self._method = create_method(
            task.objective, self.model, epsilon=task.epsilon, noise=self._noise,
            engine=EngineOptions(precision=precision, **features), **self._options(),
        )  # fmt: skip
        self._start_networks()
        # As for the strongest, the training pass of a 16-bit contestant is bfloat16.
        self._outer_is_half = precision in ("bf16", "fp16")
        outer_precision = "bf16" if self._outer_is_half else "fp32"
        self._trainer = Trainer(self.model, self.optimizer, self._method, outer_precision=outer_precision)

    def maximize(self, noise: Noise | None = None) -> Found:
        self._start_at(noise)
        maximizer = self._method.maximizer
        if self.task.objective == ADT_EXP:
            found = maximizer.maximize(self._images, self.task.labels)
            return Found(found.x_adv[0], found.mu)
        if self.task.objective == AT_PGD:
            return Found(maximizer.perturb(self._images, self.task.labels)[0])
        return self._generated() if self.task.networks else Found(self._images)

    def step(self, noise: Noise | None = None) -> None:
        self._start_at(noise)
        with float32_products(self.precision, self.task.device):  # of the training pass, and of generators
            self._trainer.step(self._images, self.task.labels)

    def model_pass(self) -> None:
        folds = self.task.inner_passes // self.task.inner_steps
        labels = self.task.labels.repeat(folds)
        images = self._images.repeat(folds, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        engine = self._method.maximizer.input_gradient
        session = engine._last_session  # as the last minibatch ran
        model = self.model.eval() if engine.twin is None else engine.twin.run
        size = session.chunk or len(images)
        for part, part_labels in zip(images.split(size), labels.split(size)):
            with float32_products(self.precision, self.task.device), torch.enable_grad():
                part = part.to(session.dtype).requires_grad_()
                torch.autograd.grad(F.cross_entropy(model(part).float(), part_labels, reduction="sum"), part)

    def explain(self) -> str | None:
        maximizer = self._method.maximizer
        return None if maximizer is None else maximizer.input_gradient.explain()

    def _generated(self) -> Found:
        """As the trainer has it."""
        autocast = torch.autocast(self.task.device.type, torch.bfloat16, enabled=self._outer_is_half)
        with float32_products(self.precision, self.task.device), autocast:
            found = self._method.perturb(self._images, self.task.labels)
        penalty = found.penalty.detach()
        if self.task.objective == ADT_EXP_AM:  # the density here has its constants
            penalty = penalty + self.task.entropy_weight * (math.log(2 * math.pi) / 2 + math.log(self.task.epsilon))
        return Found(found.images[0].detach(), penalty=penalty)

    def _start_networks(self) -> None:
        """From the weights of the task."""
        if self._method.joint is not None:
            self.network_optimizers = self._method.joint.optimizers
            for name, network in self._method.joint.networks.items():
                network.load_state_dict(self.task.networks[name].state_dict())

    def _options(self) -> dict[str, Any]:
        task = self.task
        if task.networks:
            width = task.networks["generator"].stem[0].out_channels
            return {
                "image_shape": tuple(task.images.shape[1:]), "generator_width": width,
                "entropy_weight": task.entropy_weight, "recipe": "published",
            }  # fmt: skip
        if task.objective == ADT_EXP:
            return {
                "steps": task.steps, "samples": task.samples, "step_size": task.step_size,
                "entropy_weight": task.entropy_weight, "recipe": "published",
            }  # fmt: skip
        return {"steps": task.steps} if task.objective == AT_PGD else {}

    def _start_at(self, noise: Noise | None) -> None:
        if noise is not None:
            self._noise.load_state_dict({"seed": noise.seed, "offset": 0})
