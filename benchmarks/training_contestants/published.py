"""The published algorithm in plain PyTorch, at library defaults."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .networks import LATENTS
from .task import ADT_EXP, ADT_EXP_AM, AT_PGD, LOG_OFFSET, STANDARD, Contestant, Found, Noise, Task


class Published(Contestant):
    """ADT-EXP as its authors' script does it, AT-PGD as the widely used loops do it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = copy.deepcopy(task.model)
        self.optimizer = task.optimizer(self.model)

    def maximize(self, noise: Noise | None = None) -> Found:
        find = {ADT_EXP: self._adt_exp, AT_PGD: self._pgd, STANDARD: lambda noise: Found(self.task.images)}
        return find[self.task.objective](noise)

    def step(self, noise: Noise | None = None) -> None:
        x_adv = self.maximize(noise).x_adv
        self.model.train()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x_adv), self.task.labels).backward()
        self.optimizer.step()

    def model_pass(self) -> None:
        task = self.task
        self.model.eval()
        for _ in range(task.inner_passes // task.inner_steps):
            images = task.images.detach().requires_grad_()
            loss = F.cross_entropy(self.model(images), task.labels)
            if task.objective == ADT_EXP:
                loss.backward()
            else:
                torch.autograd.grad(loss, images)

    def _adt_exp(self, noise: Noise | None) -> Found:
        task, x = self.task, self.task.images
        self.model.eval()
        mean, var = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
        adam = torch.optim.Adam([mean, var], lr=task.step_size, betas=(0.0, 0.0))
        for step in range(task.steps):  # the gradient is never zeroed
            for r in _normals(noise, x, task.samples, step):
                std = F.softplus(var)
                tanh = torch.tanh(mean + r * std)
                log_derivative = (1 - tanh**2 + LOG_OFFSET).log()
                entropy = (r**2 / 2 + (std + LOG_OFFSET).log() + log_derivative).mean()
                x_adv = torch.clamp(x + task.epsilon * tanh, 0.0, 1.0)
                loss = F.cross_entropy(self.model(x_adv), task.labels) + task.entropy_weight * entropy
                (-loss).backward()  # to the weights too
            adam.step()
        r = _normals(noise, x, 1, task.steps)[0]
        mean, var = mean.detach(), var.detach()
        return Found(torch.clamp(x + task.epsilon * torch.tanh(mean + r * F.softplus(var)), 0.0, 1.0), mean)

    def _pgd(self, noise: Noise | None) -> Found:
        task, x, epsilon = self.task, self.task.images, self.task.epsilon
        self.model.eval()
        x_adv = torch.clamp(x + epsilon * _uniforms(noise, x), 0.0, 1.0)
        for _ in range(task.steps):
            x_adv.requires_grad_()
            # The form of the popular libraries: asked for one gradient, autograd skips those of the weights.
            (grad,) = torch.autograd.grad(F.cross_entropy(self.model(x_adv), task.labels), x_adv)
            x_adv = x_adv.detach() + epsilon / 4 * grad.sign()
            x_adv = torch.clamp(x + torch.clamp(x_adv - x, -epsilon, epsilon), 0.0, 1.0)
        return Found(x_adv.detach())


class PublishedAmortized(Contestant):
    """ADT-EXP-AM and ADT-IMP-AM as their authors' scripts do them: one backward pass trains every network."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model, self.networks = copy.deepcopy(task.model), copy.deepcopy(task.networks).train()
        self.optimizer = task.optimizer(self.model)
        self.network_optimizers = task.network_optimizers(self.networks)

    def maximize(self, noise: Noise | None = None) -> Found:
        x_adv, penalty = self.sample(noise)
        return Found(x_adv.detach(), penalty=penalty.detach())

    def step(self, noise: Noise | None = None) -> None:
        x_adv, penalty = self.sample(noise)
        x_adv.register_hook(torch.neg)  # the networks raise what the classifier lowers
        self.model.train()
        loss = F.cross_entropy(self.model(x_adv), self.task.labels) + penalty
        optimizers = (self.optimizer, *self.network_optimizers.values())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def model_pass(self) -> None:
        self.model.eval()
        self._gradient(self.task.images)

    def sample(self, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """x_adv and the penalty, with their graphs."""
        task, x = self.task, self.task.images
        self.model.eval()
        g1 = self._gradient(x)
        g2 = self._gradient(torch.clamp(x + task.epsilon * g1.sign(), 0.0, 1.0))
        inputs = torch.cat([x, g1, g2], 1)
        return self._explicit(inputs, noise) if task.objective == ADT_EXP_AM else self._implicit(inputs, noise)

    def _gradient(self, images: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(self.model(images), self.task.labels), images)[0]

    def _explicit(self, inputs: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        task, x = self.task, self.task.images
        mean, var = self.networks["generator"](inputs).chunk(2, 1)
        r = _normals(noise, x, 1, 0)[0]
        std = F.softplus(var)
        tanh = torch.tanh(mean + std * r)
        log_derivative = (1 - tanh**2 + LOG_OFFSET).log()
        entropy = (r**2 / 2 + (std + LOG_OFFSET).log() + log_derivative).mean()
        return torch.clamp(x + task.epsilon * tanh, 0.0, 1.0), -task.entropy_weight * entropy

    def _implicit(self, inputs: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        task, x = self.task, self.task.images
        z = _uniforms(noise, x.new_empty(len(x), LATENTS))
        generator = self.networks["generator"]
        # Not its forward(), which turns to channels_last: here PyTorch's own layout is kept.
        plane = generator.latent(z).view(-1, 1, *x.shape[2:])
        tanh = torch.tanh(generator.head(generator.blocks(generator.stem(torch.cat([inputs, plane], 1)))))
        mean, raw = self.networks["encoder"](tanh)
        var = F.softplus(raw)
        exponent = -((z - mean) ** 2) / (2 * var + LOG_OFFSET)
        log_q = exponent - ((var + LOG_OFFSET).log() + math.log(2 * math.pi)) / 2
        penalty = task.entropy_weight * F.relu(-log_q.mean() - task.hinge)
        return torch.clamp(x + task.epsilon * tanh, 0.0, 1.0), penalty


def build_published(task: Task) -> Contestant:
    """The published algorithm for a task."""
    return PublishedAmortized(task) if task.networks else Published(task)


def _normals(noise: Noise | None, x: Tensor, samples: int, draw: int) -> Tensor:
    if noise is None:
        return torch.randn(samples, *x.shape, device=x.device, dtype=x.dtype)
    return noise.normals(x, samples, draw)


def _uniforms(noise: Noise | None, like: Tensor) -> Tensor:
    return torch.empty_like(like).uniform_(-1, 1) if noise is None else noise.uniforms(like)
