"""The variational encoder of ADT-IMP-AM: a perturbation -> the noise it came from (paper, Table 6)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ._common import check_sizes


class VariationalEncoder(nn.Module):
    """q(z | delta), a diagonal Gaussian: perturbations -> its mean and its spread before softplus (Table 6).

    Four convolutions without padding, each with batch norm and LeakyReLU, global average pooling, and a linear layer,
    which Table 6 calls a 1x1 convolution. 724,384 parameters for 3 channels and 64 latents. Images smaller than 24 x 24
    are padded with zeros to that size: below 20 nothing would be left of them, and with a single pixel left, batch norm
    could not take a batch of one.

    Args:
        in_channels: of the perturbation, >= 1.
        latent_dim: length of z, >= 1.

    Weights start as in the published code: He's normal initialisation by fan-out for convolutions, and zero biases.

    Raises:
        TypeError, ValueError: for a size that is no int or below 1, by name.
    """

    SMALLEST = 24
    """Height and width from which the last convolution gives 2 x 2 pixels."""

    def __init__(self, in_channels: int = 3, latent_dim: int = 64) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, latent_dim=latent_dim)
        self.convolutions = nn.Sequential(
            *_encoder_layer(in_channels, 32, 5, stride=1),
            *_encoder_layer(32, 64, 4, stride=2),
            *_encoder_layer(64, 128, 4, stride=1),
            *_encoder_layer(128, 256, 4, stride=2),
        )
        self.fc = nn.Linear(256, 2 * latent_dim)
        nn.init.zeros_(self.fc.bias)

    def forward(self, perturbations: Tensor) -> tuple[Tensor, Tensor]:
        """Perturbations ``[B, C, H, W]``, delta / epsilon, in [-1, 1] -> mean and raw spread, ``[B, latent_dim]``."""
        height, width = perturbations.shape[2:]
        missing = (max(0, self.SMALLEST - width), max(0, self.SMALLEST - height))
        if any(missing):
            perturbations = F.pad(perturbations, (0, missing[0], 0, missing[1]))
        mean, spread = self.fc(self.convolutions(perturbations).mean((2, 3))).chunk(2, 1)
        return mean, spread


def _encoder_layer(in_channels: int, out_channels: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / (kernel * kernel * out_channels)))
    return convolution, nn.BatchNorm2d(out_channels), nn.LeakyReLU(inplace=True)
