"""A small CNN that trains in seconds on a CPU, for 8x8 digits up to 32x32 colour images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ._common import check_sizes, initialize
from .normalize import normalization


class SmallCNN(nn.Module):
    """Four 3x3 convolutions (the second and the fourth halve the image) -> global average -> linear.

    There is no batch norm, so the model is the same function in train and in eval mode.

    num_classes, in_channels: sizes of the logits and of the images' channels, at least 1.
    mean, std: normalisation of the input, one number per channel; None for none.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        self.normalize = normalization(mean, std, in_channels)
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.fc = nn.Linear(128, num_classes)
        initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> the last feature map before pooling [B, 128, ceil(H/4), ceil(W/4)]."""
        out = self.normalize(images)
        out = F.relu(self.conv1(out))
        out = F.relu(self.conv2(out))
        out = F.relu(self.conv3(out))
        return F.relu(self.conv4(out))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> logits [B, num_classes]."""
        return self.fc(self.features(images).mean(dim=(2, 3)))
