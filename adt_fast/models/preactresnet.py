"""Pre-activation ResNet-18 for small images (He et al., 2016, "Identity Mappings in Deep Residual Networks")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .._support.checks import check_choice
from ._common import check_sizes, conv3x3, initialize
from .normalize import normalization

_SHORTCUTS = ("activated", "input")


class _PreActBlock(nn.Module):
    """BN-ReLU-conv, twice, added to the input. Where the shape changes, the shortcut is a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.shortcut_of_input = shortcut == "input"
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            # A Sequential of one, for published checkpoints' key is shortcut.0.weight.
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(x if self.shortcut_of_input else activated)
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return shortcut + out


def _group(in_channels: int, out_channels: int, stride: int, shortcut: str) -> nn.Sequential:
    return nn.Sequential(
        _PreActBlock(in_channels, out_channels, stride, shortcut), _PreActBlock(out_channels, out_channels, 1, shortcut)
    )


class PreActResNet18(nn.Module):
    """PreActResNet-18: four groups of two blocks, of 64, 128, 256 and 512 channels, for small images.

    num_classes, in_channels: sizes of the logits and of the images' channels, at least 1.
    mean, std: normalisation of the input, one number per channel; None for none.
    shortcut: what the 1x1 convolutions take: "activated", what the first BN-ReLU of their block gives, as He et al.
        have it; or "input", what the block itself is given. Both are common, under the same keys.

    This is the form usual for CIFAR: a 3x3 first convolution, and no batch norm after the last block. Pooling is
    global, so any image size does; at 32x32 it is the usual 4x4 average.
    Raises TypeError or ValueError that names the argument, for a size below 1 or an unknown choice.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        shortcut: Literal["activated", "input"] = "activated",
    ) -> None:
        super().__init__()
        check_choice("shortcut", shortcut, _SHORTCUTS)
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        self.normalize = normalization(mean, std, in_channels)
        self.conv1 = conv3x3(in_channels, 64)
        self.layer1 = _group(64, 64, 1, shortcut)
        self.layer2 = _group(64, 128, 2, shortcut)
        self.layer3 = _group(128, 256, 2, shortcut)
        self.layer4 = _group(256, 512, 2, shortcut)
        self.linear = nn.Linear(512, num_classes)
        initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> the last feature map before pooling [B, 512, ceil(H/8), ceil(W/8)]."""
        out = self.conv1(self.normalize(images))
        return self.layer4(self.layer3(self.layer2(self.layer1(out))))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> logits [B, num_classes]."""
        return self.linear(self.features(images).mean(dim=(2, 3)))
