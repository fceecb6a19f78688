"""What the models share besides normalisation: the 3x3 convolution, initial weights, and the check of a size."""

from __future__ import annotations

from torch import nn

from .._support.checks import check_int


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """The residual networks' convolution: same size (at stride 1), no bias, for batch norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def initialize(model: nn.Module) -> None:
    """He initialisation by fan-out for convolutions, zero for every bias; the rest keeps PyTorch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def check_sizes(**sizes: int) -> None:
    """Raise TypeError or ValueError that names the argument, where a size is not an int of at least 1."""
    for argument, size in sizes.items():
        check_int(argument, size, 1, 2**31)
