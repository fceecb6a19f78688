"""The networks of published checkpoints, written plainly, with nothing of adt_fast in them.

Their modules have the names that published files have; statistics and affine parameters are not trivial.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with batch norm statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + 0.5)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.num_batches_tracked.fill_(7)
    return network.eval()


def images(channels: int = 3, size: int = 32, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


class WrnBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x):
        first = torch.clamp(self.bn1(x), min=0)
        out = self.conv2(torch.clamp(self.bn2(self.conv1(first)), min=0))
        return out + (x if self.convShortcut is None else self.convShortcut(first))


class WrnGroup(nn.Module):
    def __init__(self, blocks: int, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(WrnBlock(before if n == 0 else after, after, stride if n == 0 else 1) for n in range(blocks))
        )

    def forward(self, x):
        return self.layer(x)


class PublishedWideResNet(nn.Module):
    """In the layout of TRADES, of RobustBench, and, with sub_block1, of the published code of ADT."""

    def __init__(self, depth: int, width: int, classes: int = 10, channels: int = 3, sub_block1: bool = False) -> None:
        super().__init__()
        n = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = WrnGroup(n, 16, 16 * width, 1)
        if sub_block1:
            self.sub_block1 = WrnGroup(n, 16, 16 * width, 1)
        self.block2 = WrnGroup(n, 16 * width, 32 * width, 2)
        self.block3 = WrnGroup(n, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x):
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(torch.clamp(self.bn1(out), min=0).mean((2, 3)))


class Normalizer(nn.Module):
    """(x - mean) / std, under the names and with the shape that are asked for."""

    def __init__(self, names: tuple[str, str] = ("mean", "std"), shape: tuple[int, ...] = (1, 3, 1, 1)) -> None:
        super().__init__()
        self.names = names
        self.register_buffer(names[0], torch.tensor([0.49, 0.48, 0.45]).view(shape))
        self.register_buffer(names[1], torch.tensor([0.25, 0.24, 0.26]).view(shape))

    def forward(self, x):
        mean, std = (getattr(self, name).view(1, 3, 1, 1) for name in self.names)
        return (x - mean) / std


class DmBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int, activation) -> None:
        super().__init__()
        self.activation, self.stride = activation, stride
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(before, momentum=0.01), nn.BatchNorm2d(after, momentum=0.01)
        self.conv_0 = nn.Conv2d(before, after, 3, stride, 0, bias=False)
        self.conv_1 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        if before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, 0, bias=False)

    def forward(self, x):
        first = self.activation(self.batchnorm_0(x))
        padded = F.pad(first, (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1))
        out = self.conv_1(self.activation(self.batchnorm_1(self.conv_0(padded))))
        return out + (self.shortcut(first) if hasattr(self, "shortcut") else x)


class DmGroup(nn.Module):
    def __init__(self, blocks: int, before: int, after: int, stride: int, activation) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(DmBlock(before if n == 0 else after, after, stride if n == 0 else 1, activation) for n in range(blocks))
        )

    def forward(self, x):
        return self.block(x)


class DmWideResNet(nn.Module):
    """The family of Gowal et al.; its mean and std are in the state dict only where `persistent`."""

    def __init__(self, depth: int, width: int, swish: bool = True, persistent: bool = False) -> None:
        super().__init__()
        n = (depth - 4) // 6
        activation = self.activation = (lambda x: x * torch.sigmoid(x)) if swish else (lambda x: torch.clamp(x, min=0))
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1), persistent=persistent)
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1), persistent=persistent)
        self.init_conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.layer = nn.Sequential(
            DmGroup(n, 16, 16 * width, 1, activation),
            DmGroup(n, 16 * width, 32 * width, 2, activation),
            DmGroup(n, 32 * width, 64 * width, 2, activation),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width, momentum=0.01)
        self.logits = nn.Linear(64 * width, 10)

    def forward(self, x):
        out = self.layer(self.init_conv((x - self.mean) / self.std))
        return self.logits(self.activation(self.batchnorm(out)).mean((2, 3)))


class PreActBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.kind = shortcut
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x):
        first = torch.clamp(self.bn1(x), min=0)
        out = self.conv2(torch.clamp(self.bn2(self.conv1(first)), min=0))
        if hasattr(self, "shortcut"):
            x = self.shortcut(first if self.kind == "activated" else x)
        return out + x


class PublishedPreActResNet18(nn.Module):
    def __init__(self, shortcut: str, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        before = 64
        for n, after in enumerate((64, 128, 256, 512), 1):
            group = PreActBlock(before, after, 1 if n == 1 else 2, shortcut), PreActBlock(after, after, 1, shortcut)
            setattr(self, f"layer{n}", nn.Sequential(*group))
            before = after
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x))))).mean((2, 3)))
