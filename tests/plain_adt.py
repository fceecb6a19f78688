"""ADT-EXP written plainly, with nothing of adt_fast in it: the published algorithm, and any recipe.

Per-sample loops, full backward passes, torch.optim.Adam; the noise is given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class TinyClassifier(nn.Module):
    """A smooth classifier of [B, 3, 6, 5] images with batch norm, whose running statistics are not trivial."""

    def __init__(self, num_classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 6 * 5, num_classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
            self.norm.weight.add_(1.0)
            self.norm.running_mean.copy_(torch.randn(6, generator=generator) * 0.3)
            self.norm.running_var.copy_(torch.rand(6, generator=generator) + 0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.norm(self.conv(images))).flatten(1))


def tiny_batch(batch: int = 5, seed: int = 1, num_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [0, 1], some pixels at the very bounds, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand(batch, 3, 6, 5, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    return images, torch.randint(num_classes, (batch,), generator=generator)


def published_inner(model, x, y, normals, *, epsilon, step_size, entropy_weight):
    """The inner loop of the published script, for given normals [T, k, *x.shape]; the gradient is never zeroed."""
    model.eval()
    mean, var = torch.zeros_like(x, requires_grad=True), torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([mean, var], lr=step_size, betas=(0.0, 0.0))
    for step_normals in normals:
        for r in step_normals:
            std = F.softplus(var)
            t = torch.tanh(mean + r * std)
            entropy = (r**2 / 2 + (std + 1e-8).log() + (1 - t**2 + 1e-8).log()).mean()
            x_adv = torch.clamp(x + epsilon * t, 0.0, 1.0)
            (-F.cross_entropy(model(x_adv), y) - entropy_weight * entropy).backward()
        adam.step()
    return mean.detach(), var.detach()


def losses_of_labels(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def recipe_inner(model, x, y, normals, recipe, *, epsilon, step_size, entropy_weight, losses_of=losses_of_labels):
    """The inner loop of any ExpRecipe, option by option; losses_of(logits, y) is one loss per example."""
    model.eval()
    mu = torch.zeros_like(x, requires_grad=True)
    rho = torch.full_like(x, recipe.rho_init)  # or, with a free sigma, sigma itself
    rho = (F.softplus(rho) if recipe.sigma == "free" else rho).requires_grad_()
    adam = torch.optim.Adam([mu, rho], lr=step_size, betas=(0.0, 0.0), maximize=True)
    for step_normals in normals:
        if not recipe.accumulate:
            adam.zero_grad()
        for r in step_normals:
            sigma = rho if recipe.sigma == "free" else F.softplus(rho)
            t = torch.tanh(mu + r * sigma)
            neg_log_p = r**2 / 2 + (sigma + recipe.log_offset).log() + (1 - t**2 + recipe.log_offset).log()
            x_adv = x + epsilon * t
            if recipe.clamp:
                x_adv = x_adv.clamp(0.0, 1.0)
            losses = losses_of(model(x_adv), y)
            if recipe.objective == "sum_of_batch_means":
                loss, weight = losses.mean(), entropy_weight
            else:
                loss, weight = losses.sum() / len(step_normals), entropy_weight / len(step_normals)
            entropy = neg_log_p.mean() if recipe.entropy_reduction == "mean" else neg_log_p.sum()
            (loss + weight * entropy).backward()
        if recipe.update == "adam":
            adam.step()
        else:
            with torch.no_grad():
                for parameter in (mu, rho):
                    parameter += step_size * parameter.grad.sign()
        if recipe.sigma == "free":
            with torch.no_grad():
                rho.copy_(rho.abs().clamp(min=1e-6))
    model.zero_grad()
    rho = rho.detach()
    return mu.detach(), (rho.expm1().log() if recipe.sigma == "free" else rho)
