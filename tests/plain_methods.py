"""The training methods written plainly, with nothing of adt_fast in them: networks, losses, and whole steps.

Networks are functions of their state dicts, and batch norm is written out. The noise is given.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Networks: generator (Table 5) and variational encoder (Table 6).


def lively(network, seed=0):
    """Weights and running statistics that are all different, so that no two can be confused."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return network


def trainable(state):
    """A copy of a state dict, in float64, whose weights (not running statistics) require gradients."""
    copy = {name: value.detach().clone() for name, value in state.items()}
    for name, value in copy.items():
        if value.is_floating_point():
            copy[name] = value.double().requires_grad_("running_" not in name)
    return copy


def weights(state):
    return {name: value for name, value in state.items() if value.requires_grad}


def batch_norm(x, state, name, *, training):
    """In training it also moves the running statistics in the state, by the usual 0.1."""
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            for statistic, now in (("mean", mean), ("var", variance * count / (count - 1))):
                running = state[f"{name}.running_{statistic}"]
                running.copy_(0.9 * running + 0.1 * now)
            state[f"{name}.num_batches_tracked"] += 1
    else:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale, shift, mean, variance = (
        value.view(-1, 1, 1) for value in (state[f"{name}.weight"], state[f"{name}.bias"], mean, variance)
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def generator_output(state, inputs, z=None, *, training):
    """3x3 convolution, three residual blocks, 3x3 convolution; z becomes one more channel."""

    def convolved(x, name):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def normalized(x, name):
        return batch_norm(x, state, name, training=training)

    if z is not None:
        hidden = F.relu(z @ state["latent.0.weight"].T + state["latent.0.bias"])
        plane = F.relu(hidden @ state["latent.2.weight"].T + state["latent.2.bias"])
        inputs = torch.cat([inputs, plane.reshape(len(z), 1, *inputs.shape[2:])], 1)
    x = F.relu(normalized(convolved(inputs, "stem.0"), "stem.1"))
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        out = F.relu(normalized(convolved(x, f"{block}.conv1"), f"{block}.bn1"))
        out = normalized(convolved(out, f"{block}.conv2"), f"{block}.bn2")
        if f"{block}.shortcut.0.weight" in state:
            x = normalized(convolved(x, f"{block}.shortcut.0"), f"{block}.shortcut.1")
        x = F.relu(x + out)
    return convolved(x, "head")


def encoder_output(state, perturbations, *, training):
    """Four convolutions, average pooling, linear. Small images get zeros below and at the right."""
    examples, channels, height, width = perturbations.shape
    x = perturbations.new_zeros(examples, channels, max(height, 24), max(width, 24))
    x[:, :, :height, :width] = perturbations
    for layer, stride in enumerate((1, 2, 1, 2)):
        x = F.conv2d(x, state[f"convolutions.{3 * layer}.weight"], stride=stride)
        x = F.leaky_relu(batch_norm(x, state, f"convolutions.{3 * layer + 1}", training=training), 0.01)
    out = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    latent_dim = out.shape[1] // 2
    return out[:, :latent_dim], out[:, latent_dim:]


# Losses.


def log_softmax(logits):
    return logits - logits.exp().sum(1, keepdim=True).log()


def cross_entropy(logits, labels):
    """One number per example."""
    return -log_softmax(logits)[torch.arange(len(labels)), labels]


def smoothed_cross_entropy(logits, labels, smoothing):
    """The true class weighs 1 - smoothing, each other one smoothing / (K - 1), as in FeaScatter; one per example."""
    classes = logits.shape[1]
    wanted = torch.full_like(logits, smoothing / (classes - 1))
    wanted[torch.arange(len(labels)), labels] = 1 - smoothing
    return -(wanted * log_softmax(logits)).sum(1)


def kl_divergence(natural, adversarial):
    """KL(p(x) || p(x_adv)) from logits, one per example."""
    p, q = log_softmax(natural), log_softmax(adversarial)
    return (p.exp() * (p - q)).sum(1)


def trades_loss(natural, adversarial, labels, weight):
    return cross_entropy(natural, labels).mean() + weight * kl_divergence(natural, adversarial).mean()


# Attacks.


def input_gradient(objective, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(objective(x), x)[0]


def project(x_adv, x, epsilon):
    return torch.min(torch.max(x_adv, x - epsilon), x + epsilon).clamp(0, 1)


def sinkhorn(cost, regularization, *, iterations, tolerance):
    """The transport plan, by scaling rows and columns of exp(-cost / regularization); and the iterations it took."""
    kernel = (-cost / regularization).exp()
    rows, columns = cost.shape
    a, b = cost.new_ones(rows), cost.new_ones(columns)
    taken, moved = 0, math.inf
    while taken < iterations and moved >= tolerance:
        before, taken = a, taken + 1
        a = 1 / rows / (kernel @ b)
        b = 1 / columns / (kernel.T @ a)
        moved = regularization * (a.log() - before.log()).abs().sum().item()
    return a[:, None] * kernel * b, taken


def cosine_cost(natural, perturbed):
    """1 - cosine of each natural and each perturbed image's logits."""
    unit = [logits / logits.square().sum(1, keepdim=True).sqrt() for logits in (natural, perturbed)]
    return 1 - unit[0] @ unit[1].T


# Amortised attacks and their steps.


def generator_inputs(model, x, y, *, epsilon, scale, clamp=True):
    """[x, g1, g2] of Section C.2; the batch mean is differentiated as such, and single losses one by one."""

    def gradient(at):
        if scale == "batch_mean":
            return input_gradient(lambda x: cross_entropy(model(x), y).mean(), at)
        singles = [
            input_gradient(lambda x, one=one: cross_entropy(model(x), one).sum(), example)
            for example, one in zip(at.split(1), y.split(1), strict=True)
        ]
        grad = torch.cat(singles)
        return grad / grad.abs().max() if scale == "max_abs" else grad

    model.eval()
    g1 = gradient(x)
    x_fgsm = x + epsilon * g1.sign()
    g2 = gradient(x_fgsm.clamp(0, 1) if clamp else x_fgsm)
    return torch.cat([x, g1, g2], 1)


def explicit_sample(phi, x, r, recipe, *, epsilon, entropy_weight):
    """x_adv and penalty of EXP-AM for a generator's output (mu before rho), in any recipe."""
    mu, rho = phi[:, : x.shape[1]], phi[:, x.shape[1] :]
    sigma = rho.exp().log1p()
    t = torch.tanh(mu + sigma * r)
    x_adv = x + epsilon * t
    x_adv = x_adv.clamp(0, 1) if recipe.clamp else x_adv
    constants = math.log(2 * math.pi) / 2 + math.log(epsilon)
    entropy = r**2 / 2 + constants + (sigma + recipe.log_offset).log() + (1 - t**2 + recipe.log_offset).log()
    total = entropy.mean() if recipe.entropy_reduction == "mean" else entropy.sum() / len(x)
    return x_adv, -entropy_weight * total


def published_explicit_penalty(phi, r, entropy_weight):
    """As in the published code, which drops the constants."""
    mean, var = phi.chunk(2, 1)
    std = F.softplus(var)
    t = torch.tanh(mean + r * std)
    negative_logp = r**2 / 2 + (std + 1e-8).log() + (1 - t**2 + 1e-8).log()
    return -entropy_weight * negative_logp.mean()


def log_q(z, mean, raw, recipe):
    """log of the Gaussian density of each latent, in any recipe."""
    spread = raw.exp().log1p()
    variance = spread if recipe.spread == "variance" else spread**2
    offset = recipe.log_offset
    return -((z - mean) ** 2) / (2 * variance + offset) - ((variance + offset).log() + math.log(2 * math.pi)) / 2


def implicit_penalty(z, mean, raw, recipe, entropy_weight):
    density = log_q(z, mean, raw, recipe)
    bound = density.mean() if recipe.latent_reduction == "mean" else density.sum() / len(z)
    return entropy_weight * (-bound if recipe.hinge is None else F.relu(-bound - recipe.hinge))


def published_implicit_penalty(z, mean, raw):
    """As in the published code: log q averaged, softplus gives the variance, hinge at 0.9, weight 1."""
    var = F.softplus(raw)
    logli = -((z - mean) ** 2) / (2 * var + 1e-8) - 0.5 * torch.log(var + 1e-8) - 0.5 * math.log(2 * math.pi)
    return torch.relu(-logli.mean(1).mean() - 0.9)


def implicit_sample(direction, x, *, epsilon, clamp):
    x_adv = x + epsilon * direction
    return x_adv.clamp(0, 1) if clamp else x_adv


class AmortizedStep(NamedTuple):
    """The two explicit objectives of a minibatch, which a step differentiates."""

    loss: torch.Tensor
    """Which the classifier lowers, and the generator raises."""
    penalty: torch.Tensor
    """Which generator and encoder lower besides."""

    def gradients(self, classifier, generator, encoder):
        """Of what each network lowers, in the order of its weights: its own objective, differentiated on its own."""
        objectives = (self.loss, -self.loss + self.penalty, self.penalty)
        return [
            torch.autograd.grad(objective, list(network), retain_graph=True) if network else []
            for objective, network in zip(objectives, (classifier, generator, encoder), strict=True)
        ]


def amortized_step(kind, model, networks, x, y, noise, recipe, *, epsilon, entropy_weight, trades_weight=None):
    """A minibatch of "l2l", "exp_am" or "imp_am": the networks in train mode, their gradients in eval mode.

    networks: state dicts, see :func:`trainable`. noise: r of exp_am, or z of imp_am. trades_weight: None for CE.
    """
    inputs = generator_inputs(model, x, y, epsilon=epsilon, scale=recipe.gradient_scale, clamp=recipe.clamp)
    penalty = torch.zeros((), dtype=torch.float64)
    if kind == "exp_am":
        phi = generator_output(networks["generator"], inputs, training=True)
        x_adv, penalty = explicit_sample(phi, x, noise, recipe, epsilon=epsilon, entropy_weight=entropy_weight)
    else:
        z = noise if kind == "imp_am" else None
        direction = torch.tanh(generator_output(networks["generator"], inputs, z, training=True))
        x_adv = implicit_sample(direction, x, epsilon=epsilon, clamp=recipe.clamp)
    if kind == "imp_am":
        mean, raw = encoder_output(networks["encoder"], direction, training=True)
        penalty = implicit_penalty(noise, mean, raw, recipe, entropy_weight)
    model.train()
    if trades_weight is None:
        loss = cross_entropy(model(x_adv), y).mean()
    else:
        loss = trades_loss(model(x), model(x_adv), y, trades_weight)
    return AmortizedStep(loss, penalty)
