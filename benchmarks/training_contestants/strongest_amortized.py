"""Plain PyTorch at its best, of the methods that train a generator."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import LATENTS
from .strongest import Form, FrozenLoss, StrongestBase
from .task import ADT_EXP_AM, LOG_OFFSET, Found, Noise, Task


class StrongestAmortized(StrongestBase):
    """ADT-EXP-AM and ADT-IMP-AM: the generator's two gradients as in the inner loops, the rest as the training pass."""

    def __init__(self, task: Task, precision: str, form: Form) -> None:
        self._networks = copy.deepcopy(task.networks).to(memory_format=torch.channels_last).train()
        self.network_optimizers = task.network_optimizers(self._networks, fused=True)
        super().__init__(task, precision, form)

    def maximize(self, noise: Noise | None = None) -> Found:
        x_adv, penalty = self._generate(noise)
        return Found(x_adv.detach(), penalty=penalty.detach())

    def step(self, noise: Noise | None = None) -> None:
        x_adv, penalty = self._generate(noise)
        x_adv.register_hook(torch.neg)  # the networks raise what the classifier lowers
        self.model.train()
        optimizers = (self.optimizer, *self.network_optimizers.values())
        for optimizer in optimizers:
            optimizer.zero_grad()
        with self._arithmetic():
            (self._adversarial_loss(x_adv) + penalty).backward()
        for optimizer in optimizers:
            optimizer.step()

    def _generate(self, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """x_adv and the penalty, with their graphs."""
        self._run_inner(noise)
        x, g1, g2 = map(self._images, (self._x, *self._gradients))
        with self._arithmetic(), self._autocast():
            return self._perturbed(x, torch.cat([x, g1, g2], 1), self._noise)

    def _allocate(self) -> None:
        super()._allocate()
        x = self._images(self._x)
        explicit = self.task.objective == ADT_EXP_AM
        self._noise = torch.empty_like(x) if explicit else x.new_empty(len(x), LATENTS)
        self._gradients = self._x.new_empty(2, *self._x.shape)

    def _choose_forms(self, frozen: FrozenLoss) -> None:
        super()._choose_forms(frozen)
        kind = _Explicit if self.task.objective == ADT_EXP_AM else _Implicit
        self._perturbed = self._perhaps_compiled(kind(self._networks, self.task))

    def _draw(self, noise: Noise | None) -> None:
        explicit = self.task.objective == ADT_EXP_AM
        if noise is None:
            self._noise.normal_() if explicit else self._noise.uniform_(-1.0, 1.0)
        else:
            self._noise.copy_(noise.normals(self._noise, 1, 0)[0] if explicit else noise.uniforms(self._noise))

    def _find(self) -> None:
        """The generator's two gradients, of the batch mean."""
        task = self.task
        self._gradients[0].copy_(self._input_gradient(self._x[None])[0])
        self._x_adv.copy_(self._x)
        self._projected(self._x_adv, self._gradients[:1], self._x, step_size=task.epsilon, **task.ball)
        self._gradients[1].copy_(self._input_gradient(self._x_adv)[0])
        self._gradients.mul_(1 / (len(task.images) * self._scale))


class _Explicit(nn.Module):
    """Images, the generator's inputs, normals -> x_adv and the penalty."""

    def __init__(self, networks: nn.ModuleDict, task: Task) -> None:
        super().__init__()
        self.generator, self.epsilon, self.weight = networks["generator"], task.epsilon, task.entropy_weight

    def forward(self, x: Tensor, inputs: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        mu, rho = self.generator(inputs).float().chunk(2, 1)
        sigma = F.softplus(rho)
        tanh = torch.tanh(mu + sigma * r)
        log_density = r.square() / 2 + (sigma + LOG_OFFSET).log() + (1.0 - tanh.square() + LOG_OFFSET).log()
        return (x + self.epsilon * tanh).clamp(0.0, 1.0), -self.weight * log_density.mean()


class _Implicit(nn.Module):
    """Images, the generator's inputs, latents -> x_adv and the penalty."""

    def __init__(self, networks: nn.ModuleDict, task: Task) -> None:
        super().__init__()
        self.generator, self.encoder, self.epsilon = networks["generator"], networks["encoder"], task.epsilon
        self.hinge, self.weight = task.hinge, task.entropy_weight

    def forward(self, x: Tensor, inputs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        direction = torch.tanh(self.generator(inputs, z).float())
        mean, raw = (part.float() for part in self.encoder(direction))
        variance = F.softplus(raw)
        minus_log_q = (z - mean).square() / (2.0 * variance + LOG_OFFSET) + (variance + LOG_OFFSET).log() / 2
        penalty = self.weight * F.relu(minus_log_q.mean() + math.log(2 * math.pi) / 2 - self.hinge)
        return (x + self.epsilon * direction).clamp(0.0, 1.0), penalty
