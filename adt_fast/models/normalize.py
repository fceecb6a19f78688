"""Per-channel normalisation as a layer, so that models take images in [0, 1] and epsilon is in those units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std per channel, for images [B, C, H, W].

    mean, std: one finite number per channel, std > 0, in the units of the image. They are kept as buffers [C, 1, 1], so
    they move with the model and are saved with it.
    Raises TypeError where they are no numbers; ValueError where the lengths differ, are zero, or a number is not finite
    or, for std, not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std = _numbers("mean", mean), _numbers("std", std)
        if not mean or len(mean) != len(std):
            raise ValueError(f"mean and std need one number per channel each, got {len(mean)} and {len(std)} numbers")
        if not all(map(math.isfinite, mean)):
            raise ValueError(f"mean must be finite, got {mean}")
        if not all(math.isfinite(value) and value > 0 for value in std):
            raise ValueError(f"std must be finite and positive, got {std}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> normalised ones, of the same shape."""
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def normalization(mean: Sequence[float] | None, std: Sequence[float] | None, in_channels: int) -> nn.Module:
    """The first layer of a model: Normalize(mean, std), or nothing (nn.Identity) where both are None.

    Raises ValueError where only one of the two is given, or their length is not in_channels.
    """
    if mean is None and std is None:
        return nn.Identity()
    if mean is None or std is None:
        raise ValueError(f"mean and std must be given together, got mean={mean} and std={std}")
    module = Normalize(mean, std)
    if len(module.mean) != in_channels:
        raise ValueError(f"mean must have in_channels={in_channels} numbers, got {len(module.mean)}")
    return module


def _numbers(name: str, values: Sequence[float]) -> list[float]:
    """As float, whatever kind of number they are: NumPy's and one-element tensors too."""
    try:
        if isinstance(values, (str, bytes, dict)) or any(isinstance(value, (str, bytes, bool)) for value in values):
            raise TypeError
        return [float(value) for value in values]
    except OverflowError:
        raise ValueError(f"{name} must be of numbers in the range of float64") from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a sequence of numbers, got {type(values).__name__}") from None
