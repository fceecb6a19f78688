"""Wide residual networks (Zagoruyko & Komodakis, 2016), in the layout that public robust checkpoints share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ._common import check_sizes, conv3x3, initialize
from .normalize import normalization


class _BasicBlock(nn.Module):
    """BN-ReLU-conv, twice, added to the input. Where the channels change, the shortcut is a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = None  # this name, and those below, are the keys of published checkpoints
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        # The convolutional shortcut starts after the shared BN-ReLU, the plain one before it.
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return shortcut + out


class _Group(nn.Module):
    """`blocks` basic blocks; the first changes the channels and the stride."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        first = _BasicBlock(in_channels, out_channels, stride)
        others = [_BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width, without dropout: WideResNet(28, 10) is the paper's classifier (Section 4).

    depth: 6 n + 4 with n >= 1 blocks in each of the three groups (10, 16, 22, 28, 34, 40, ...). width: at least 1.
    num_classes, in_channels: sizes of the logits and of the images' channels, at least 1.
    mean, std: normalisation of the input, one number per channel; None for none.

    The keys of the state dict are those of published checkpoints, and `normalize.mean` and `normalize.std` where mean
    and std are given. Pooling is global, so any image size does; at 32x32 it is the published 8x8 average.
    Raises TypeError or ValueError that names the argument, for another depth or a size below 1.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(depth=depth, width=width, num_classes=num_classes, in_channels=in_channels)
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(f"depth of a WideResNet must be 6 n + 4 (10, 16, 22, 28, 34, 40, ...), got {depth}")
        blocks = (depth - 4) // 6
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.normalize = normalization(mean, std, in_channels)
        self.conv1 = conv3x3(in_channels, channels[0])
        self.block1 = _Group(blocks, channels[0], channels[1], stride=1)
        self.block2 = _Group(blocks, channels[1], channels[2], stride=2)
        self.block3 = _Group(blocks, channels[2], channels[3], stride=2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> the last feature map before pooling [B, 64 width, ceil(H/4), ceil(W/4)]."""
        out = self.conv1(self.normalize(images))
        out = self.block3(self.block2(self.block1(out)))
        return F.relu(self.bn1(out))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> logits [B, num_classes]."""
        return self.fc(self.features(images).mean(dim=(2, 3)))
