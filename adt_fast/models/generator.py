"""The generator of amortised ADT: (image, gradients, noise) -> a perturbation, or its distribution (paper, Table 5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._support.checks import check_bool, check_int
from ._common import check_sizes, conv3x3


class PerturbationGenerator(nn.Module):
    """An image-to-image network: 3x3 convolution, three residual blocks, 3x3 convolution; all of stride 1.

    It is made for [image, gradient, gradient at the FGSM example] stacked along the channels (Section C.2). With
    ``latent_dim``, z goes through two fully connected layers to one more channel. Convolutions are followed by batch
    norm and ReLU, but for the last.

    Args:
        in_channels: of the input without z's channel, >= 1: 9 for colour images.
        out_channels: >= 1: 6 for (mu, rho) of colour images, 3 for a perturbation.
        width: filters of the first convolution, >= 1; the residual blocks have twice as many. The paper's is 256.
        narrow_third_block: the third block gives ``width`` channels, as in the published code (10,330,880 parameters
            for 9 -> 6 channels), instead of 2 ``width``, as in Table 5.
        latent_dim: length of z, 0 for none; the paper's is 64.
        image_size: (H, W) of the images; only z's layers depend on it.

    Weights start as in the published code: N(0, 0.02^2), batch norm scales N(1, 0.02^2), biases 0.

    Raises:
        TypeError, ValueError: for a size that is no int or too small, by name.
    """

    def __init__(
        self,
        in_channels: int = 9,
        out_channels: int = 6,
        *,
        width: int = 256,
        narrow_third_block: bool = True,
        latent_dim: int = 0,
        image_size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, width=width)
        check_bool("narrow_third_block", narrow_third_block)
        check_int("latent_dim", latent_dim, 0, 2**31)
        self.in_channels, self.latent_dim = in_channels, latent_dim
        self.image_size = _checked_image_size(image_size)
        self.latent = None
        if latent_dim:
            pixels = math.prod(self.image_size)
            self.latent = nn.Sequential(nn.Linear(latent_dim, 256), nn.ReLU(), nn.Linear(256, pixels), nn.ReLU())
        last = width if narrow_third_block else 2 * width
        self.stem = nn.Sequential(
            conv3x3(in_channels + (1 if latent_dim else 0), width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(
            _ResidualBlock(width, 2 * width), _ResidualBlock(2 * width, 2 * width), _ResidualBlock(2 * width, last)
        )
        self.head = conv3x3(last, out_channels)
        self.apply(_initialize)

    def forward(self, inputs: Tensor, z: Tensor | None = None) -> Tensor:
        """Inputs ``[B, in_channels, H, W]`` and, with a latent, z ``[B, latent_dim]`` -> ``[B, out_channels, H, W]``.

        Raises:
            ValueError: if inputs or z have other sizes, or z is missing or not wanted.
        """
        if inputs.dim() != 4 or inputs.shape[1] != self.in_channels:
            raise ValueError(f"inputs must be [B, {self.in_channels}, H, W], got {list(inputs.shape)}")
        if (z is None) != (self.latent is None):
            raise ValueError("z must be given if, and only if, the generator has a latent_dim")
        if z is not None and self.latent is not None:
            if z.shape != (len(inputs), self.latent_dim):
                raise ValueError(f"z must be {[len(inputs), self.latent_dim]}, got {list(z.shape)}")
            if inputs.shape[2:] != self.image_size:
                raise ValueError(f"images must be {self.image_size}, for which the generator was made, "
                                 f"got {tuple(inputs.shape[2:])}")
            plane = self.latent(z).view(-1, 1, *self.image_size)
            inputs = torch.cat([inputs, plane.to(inputs.dtype)], 1).contiguous(memory_format=torch.channels_last)
        return self.head(self.blocks(self.stem(inputs)))


class _ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the input, then ReLU (He et al., 2016). A shortcut of another width is 1x1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + out)


def _checked_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(image_size, (tuple, list)):
        raise TypeError(f"image_size must be (H, W), got {type(image_size).__name__}")
    if len(image_size) != 2:
        raise ValueError(f"image_size must be (H, W), got {image_size}")
    check_sizes(**{f"image_size[{index}]": size for index, size in enumerate(image_size)})
    height, width = image_size
    return height, width


def _initialize(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
