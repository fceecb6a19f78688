"""What training on images of ImageNet's size would need: arithmetic, memory, exchange, days. Computed, not measured.

The counts (operations, weights, activations) are of the networks themselves. The rates they are divided by are
arguments, whose defaults name where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from adt_fast.input_gradient.chunking import activation_bytes
from adt_fast.models import create_model

from .model_flops import ModelFlops, count_model_flops

IMAGES = 1_281_167
"""Training images of ImageNet."""
CLASSES = 1000
SIDE = 224
CARD_BYTES = 141e9
"""Memory of an H200, by its data sheet."""

SCHEDULES: dict[str, tuple[int, int]] = {
    "standard": (0, 0),
    "at-pgd, 7 steps": (7, 1),
    "adt-exp, T 7, k 5": (7, 5),
    "adt-exp, T 7, k 1": (7, 1),
    "adt-exp, T 3, k 2": (3, 2),
}
"""Methods, with the steps T and samples k of their inner maximisation: T k input gradients an image."""


@dataclass(frozen=True)
class Rates:
    """What the machine is taken to do."""

    flops: float = 790e12
    """FLOP/s of a 16-bit matrix product on one GPU: assumed, 80% of the 989e12 of an H200's data sheet."""
    utilisation: float = 0.5
    """Share of that which a step reaches: this library's aim, not measured."""
    bandwidth_near: float = 450e9
    """Bytes/s that a GPU sends to others of its machine: NVLink's, by the data sheet."""
    bandwidth_far: float = 50e9
    """Bytes/s that a GPU sends to other machines: a network of 400 Gbit/s for each GPU."""
    latency_near: float = 20e-6
    """Seconds that an exchange of few bytes takes within a machine: assumed."""
    latency_far: float = 100e-6
    """The same between machines: assumed."""
    gpus_of_a_machine: int = 8


@dataclass(frozen=True)
class Network:
    """What a step's cost depends on; of one image of [3, SIDE, SIDE]."""

    name: str
    flops: ModelFlops
    parameters: int
    training_bytes: int
    """Activations that the training pass keeps, in 16 bits."""
    attack_bytes: int
    """Activations that an input gradient keeps, in 16 bits."""
    batch_norms: int


class Bottleneck(nn.Module):
    """The block of ResNet-50 (He et al., 2016), with its stride in the 3x3 convolution."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50 for 1000 classes."""
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    blocks, channels = [], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(Bottleneck(channels, width, stride if index == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


MODELS = {"ResNet-50": resnet50, "WRN-28-10": lambda: create_model("wrn-28-10", num_classes=CLASSES)}


@cache
def network(name: str) -> Network:
    """Counts a network of MODELS."""
    model = MODELS[name]()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    training = _activations(model.train())
    attack = _activations(model.eval().requires_grad_(False))
    flops = count_model_flops(MODELS[name](), (3, SIDE, SIDE))
    return Network(name, flops, sum(map(torch.numel, model.parameters())), training, attack, norms)


def _activations(model: nn.Module) -> int:
    """Bytes an image in 16 bits; of a smaller one, for they are in proportion to its pixels."""
    side = 64
    return activation_bytes(model, torch.rand(1, 3, side, side)) * SIDE**2 // side**2 // 2


def step_seconds(network: Network, schedule: str, images: int, rates: Rates) -> float:
    """Arithmetic of a step with so many images on a GPU."""
    steps, samples = SCHEDULES[schedule]
    return network.flops.of_step(images, steps * samples) / (rates.flops * rates.utilisation)


def exchange_seconds(network: Network, gpus: int, rates: Rates) -> float:
    """Of a step with synchronised batch norm, as if nothing was computed meanwhile, which DistributedDataParallel does.

    A ring moves 2 (N - 1) / N times the float32 gradients through every GPU; a batch norm exchanges its sums once
    forward and once backward.
    """
    near = gpus <= rates.gpus_of_a_machine
    bandwidth, latency = (
        (rates.bandwidth_near, rates.latency_near) if near else (rates.bandwidth_far, rates.latency_far)
    )
    return 2 * (gpus - 1) / gpus * 4 * network.parameters / bandwidth + 2 * network.batch_norms * latency


def efficiency(network: Network, schedule: str, gpus: int, images: int, rates: Rates) -> float:
    """Share of the time that goes into arithmetic."""
    compute = step_seconds(network, schedule, images, rates)
    return compute / (compute + exchange_seconds(network, gpus, rates))


def days(network: Network, schedule: str, gpus: int, images: int, epochs: int, rates: Rates) -> float:
    """For so many epochs of ImageNet."""
    step = step_seconds(network, schedule, images, rates) + exchange_seconds(network, gpus, rates)
    return epochs * IMAGES / (gpus * images) * step / 86400


def fixed_bytes(network: Network) -> dict[str, int]:
    """What a GPU holds whatever the minibatch: float32 but for the attack's copy."""
    float32 = 4 * network.parameters
    return {"weights": float32, "gradients": float32, "their buckets": float32, "momentum": float32,
            "average of the weights": float32, "attack's copy, 16 bits": 2 * network.parameters}  # fmt: skip


def image_bytes(network: Network, samples: int) -> dict[str, int]:
    """What a GPU holds for each of its images: activations of the training pass, and the distribution with its samples.

    The image, mu, rho and the accumulators of their gradients in float32, k samples and their gradients in 16 bits. The
    activations of the inner maximisation come before those of the training pass, in chunks that fit.
    """
    elements = 3 * SIDE**2
    return {"training pass": network.training_bytes, "distribution": 4 * 5 * elements,
            "samples": 2 * 2 * samples * elements}  # fmt: skip


def tables(images: int, epochs: int, rates: Rates) -> dict[str, list[Sequence[str]]]:
    """Rows of text, each table with a header, for so many images on a GPU."""
    networks = [network(name) for name in MODELS]
    cost: list[Sequence[str]] = [
        ("network", "weights", "forward, GFLOP", "input gradient", "training", "kept to train, MB", "to attack, MB")
    ]
    exchange: list[Sequence[str]] = [
        ("network", "gradients, MB", "a GPU sends, MB", "ms among 8 GPUs", "ms among 64")
    ]
    memory: list[Sequence[str]] = [("network", "whatever the batch, GB", "an image, k 5, MB", "images in 141 GB")]
    time: list[Sequence[str]] = [
        ("network", "method", "TFLOP an image", "efficiency, 8 GPUs", "64 GPUs", "days, 8 GPUs", "64 GPUs")
    ]
    for one in networks:
        flops = (f"{count / 1e9:.1f}" for count in (one.flops.forward, one.flops.input_gradient, one.flops.training))
        kept = (f"{count / 1e6:.0f}" for count in (one.training_bytes, one.attack_bytes))
        cost.append((one.name, f"{one.parameters:,}", *flops, *kept))
        gradients = 4 * one.parameters / 1e6
        spans = (f"{1e3 * exchange_seconds(one, gpus, rates):.1f}" for gpus in (8, 64))
        exchange.append((one.name, f"{gradients:.0f}", f"{2 * 63 / 64 * gradients:.0f}", *spans))
        fixed, each = sum(fixed_bytes(one).values()), sum(image_bytes(one, 5).values())
        fitting = int((CARD_BYTES - fixed) // each)
        memory.append((one.name, f"{fixed / 1e9:.2f}", f"{each / 1e6:.0f}", f"{fitting}"))
        for schedule, (steps, samples) in SCHEDULES.items():
            shares = (f"{efficiency(one, schedule, gpus, images, rates):.1%}" for gpus in (8, 64))
            spans = (f"{days(one, schedule, gpus, images, epochs, rates):.2g}" for gpus in (8, 64))
            work = one.flops.of_step(1, steps * samples) / 1e12
            time.append((one.name, schedule, f"{work:.2f}", *shares, *spans))
    return {
        "cost of an image": cost, "exchange of a step": exchange, "memory of a GPU": memory,
        f"time of {epochs} epochs": time,
    }  # fmt: skip
