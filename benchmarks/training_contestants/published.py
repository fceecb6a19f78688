"""The published algorithm in plain PyTorch, at library defaults."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from .task import ADT_EXP, AT_PGD, STANDARD, Contestant, Found, Noise, Task

_LOG_OFFSET = 1e-8  # inside the published logarithms


class Published(Contestant):
    """ADT-EXP as its authors' script does it, AT-PGD as the widely used loops do it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = copy.deepcopy(task.model)
        self.optimizer = task.optimizer(self.model)

    def maximize(self, noise: Noise | None = None) -> Found:
        find = {ADT_EXP: self._adt_exp, AT_PGD: self._pgd, STANDARD: lambda noise: Found(self.task.images, None)}
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
        for _ in range(task.inner_passes // task.steps):
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
            for r in self._normals(noise, task.samples, step):
                std = F.softplus(var)
                tanh = torch.tanh(mean + r * std)
                log_derivative = (1 - tanh**2 + _LOG_OFFSET).log()
                entropy = (r**2 / 2 + (std + _LOG_OFFSET).log() + log_derivative).mean()
                x_adv = torch.clamp(x + task.epsilon * tanh, 0.0, 1.0)
                loss = F.cross_entropy(self.model(x_adv), task.labels) + task.entropy_weight * entropy
                (-loss).backward()  # to the weights too
            adam.step()
        r = self._normals(noise, 1, task.steps)[0]
        mean, var = mean.detach(), var.detach()
        return Found(torch.clamp(x + task.epsilon * torch.tanh(mean + r * F.softplus(var)), 0.0, 1.0), mean)

    def _pgd(self, noise: Noise | None) -> Found:
        task, x, epsilon = self.task, self.task.images, self.task.epsilon
        self.model.eval()
        start = torch.empty_like(x).uniform_(-1, 1) if noise is None else noise.uniforms(x)
        x_adv = torch.clamp(x + epsilon * start, 0.0, 1.0)
        for _ in range(task.steps):
            x_adv.requires_grad_()
            # The form of the popular libraries: asked for one gradient, autograd skips those of the weights.
            (grad,) = torch.autograd.grad(F.cross_entropy(self.model(x_adv), task.labels), x_adv)
            x_adv = x_adv.detach() + epsilon / 4 * grad.sign()
            x_adv = torch.clamp(x + torch.clamp(x_adv - x, -epsilon, epsilon), 0.0, 1.0)
        return Found(x_adv.detach(), None)

    def _normals(self, noise: Noise | None, samples: int, draw: int) -> Tensor:
        x = self.task.images
        if noise is None:
            return torch.randn(samples, *x.shape, device=x.device, dtype=x.dtype)
        return noise.normals(x, samples, draw)
