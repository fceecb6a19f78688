"""Wide residual networks (Zagoruyko & Komodakis, 2016), in the layout that public robust checkpoints share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .._support.checks import check_choice
from ._common import check_sizes, conv3x3, initialize
from .normalize import normalization

_ACTIVATIONS = {"relu": F.relu, "silu": F.silu}
_DEEPEST = 1000
"""Which takes half a second to make; a number in a damaged file may take all day, and all memory."""
_PADDINGS = ("symmetric", "same")


class _BasicBlock(nn.Module):
    """BN-activation-conv, twice, added to the input. Where the channels change, the shortcut is a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: str, padding: str) -> None:
        super().__init__()
        self.activation = activation
        self.pads_same = padding == "same" and stride == 2  # at stride 1 the two paddings are one
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        if self.pads_same:
            self.conv1.padding = (0, 0)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = None  # this name, and those below, are the keys of published checkpoints
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activate = _ACTIVATIONS[self.activation]
        activated = activate(self.bn1(x))
        # The convolutional shortcut starts after the shared BN and activation, the plain one before them.
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out = self.conv1(_pad_same(activated) if self.pads_same else activated)
        out = self.conv2(activate(self.bn2(out)))
        return shortcut + out


def _pad_same(x: Tensor) -> Tensor:
    """Zeros for a 3x3 convolution of stride 2, where TensorFlow's "SAME" has them.

    At the right and at the bottom; a side of odd length needs one on the left or at the top as well.
    """
    height, width = x.shape[2], x.shape[3]
    return F.pad(x, (width % 2, 1, height % 2, 1))


class _Group(nn.Module):
    """`blocks` basic blocks; the first changes the channels and the stride."""

    def __init__(
        self, blocks: int, in_channels: int, out_channels: int, stride: int, activation: str, padding: str
    ) -> None:
        super().__init__()
        first = _BasicBlock(in_channels, out_channels, stride, activation, padding)
        others = [_BasicBlock(out_channels, out_channels, 1, activation, padding) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width, without dropout: WideResNet(28, 10) is the paper's classifier (Section 4).

    depth: 6 n + 4 with n >= 1 blocks in each of the three groups (10, 16, 22, 28, 34, 40, ...). width: at least 1.
    num_classes, in_channels: sizes of the logits and of the images' channels, at least 1.
    mean, std: normalisation of the input, one number per channel; None for none.
    activation: after every batch norm, "relu" or "silu" (x sigmoid(x), also called Swish).
    padding: of the two 3x3 convolutions of stride 2. "symmetric": a zero on each side, PyTorch's padding=1. "same":
        TensorFlow's, which for sides of even length has zeros at the right and the bottom only.

    With activation="silu" and padding="same" it is the network of Gowal et al. (2020), "Uncovering the Limits of
    Adversarial Training against Norm-Bounded Adversarial Examples".

    The keys of the state dict are those of published checkpoints, and `normalize.mean` and `normalize.std` where mean
    and std are given. Pooling is global, so any image size does; at 32x32 it is the published 8x8 average.
    Raises TypeError or ValueError that names the argument, for another depth, a size below 1 or an unknown choice.
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
        activation: Literal["relu", "silu"] = "relu",
        padding: Literal["symmetric", "same"] = "symmetric",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, tuple(_ACTIVATIONS))
        check_choice("padding", padding, _PADDINGS)
        check_sizes(depth=depth, width=width, num_classes=num_classes, in_channels=in_channels)
        if not 10 <= depth <= _DEEPEST or (depth - 4) % 6 != 0:
            raise ValueError(f"depth of a WideResNet must be 6 n + 4 (10, 16, 22, 28, 34, 40, ..., {_DEEPEST}), "
                             f"got {depth}")
        blocks = (depth - 4) // 6
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.activation = activation
        self.normalize = normalization(mean, std, in_channels)
        self.conv1 = conv3x3(in_channels, channels[0])
        self.block1 = _Group(blocks, channels[0], channels[1], 1, activation, padding)
        self.block2 = _Group(blocks, channels[1], channels[2], 2, activation, padding)
        self.block3 = _Group(blocks, channels[2], channels[3], 2, activation, padding)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> the last feature map before pooling [B, 64 width, ceil(H/4), ceil(W/4)]."""
        out = self.conv1(self.normalize(images))
        out = self.block3(self.block2(self.block1(out)))
        return _ACTIVATIONS[self.activation](self.bn1(out))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> logits [B, num_classes]."""
        return self.fc(self.features(images).mean(dim=(2, 3)))
