"""ImageData: a whole data set in memory, as 8-bit images and labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._support.checks import check_finite, check_int
from .split import stratified_choice


class DataError(ValueError):
    """A data file that is damaged, or not what it claims to be. The message names the file."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and labels of one split of a data set.

    images: uint8 [N, C, H, W], 0 to 255, N at least 1.
    labels: int64 [N], 0 to num_classes - 1, on the same device.
    num_classes: how many classes there are.
    name: the data set's name, e.g. "cifar10".
    mean, std: per channel, of the training images in [0, 1]; what a model's normalisation takes.

    Raises TypeError or ValueError that names the field, where one of these is not so.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        check_int("num_classes", self.num_classes, 1, 2**63)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, got {type(self.name).__name__}")
        _check_tensor("images", self.images, torch.uint8, 4)
        _check_tensor("labels", self.labels, torch.int64, 1)
        if self.images.numel() == 0:
            raise ValueError(f"images must not be empty, got shape {list(self.images.shape)}")
        if len(self.labels) != len(self.images):
            raise ValueError(f"labels must be one per image, got {len(self.labels)} for {len(self.images)} images")
        if self.labels.device != self.images.device:
            raise ValueError(f"labels must be on the images' device {self.images.device}, got {self.labels.device}")
        lowest, highest = self.labels.min().item(), self.labels.max().item()
        if lowest < 0 or highest >= self.num_classes:
            raise ValueError(f"labels must be in 0..{self.num_classes - 1}, got {lowest}..{highest}")
        for field in ("mean", "std"):
            _check_numbers(field, getattr(self, field))
            if len(getattr(self, field)) != self.images.shape[1]:
                raise ValueError(
                    f"{field} must have one number per channel ({self.images.shape[1]}), "
                    f"got {len(getattr(self, field))}"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on `device`; no copy where it is there already."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, limit: int | None) -> ImageData:
        """The first `limit` examples, or all of them where there are no more, or where limit is None.

        Raises TypeError where limit is not an int, ValueError where it is below 1.
        """
        check_limit(limit)
        return self if limit is None else self._part(slice(limit))

    def held_out(self, count: int, seed: int) -> tuple[ImageData, ImageData]:
        """The data without `count` images, and these, which then choose the best checkpoint (Rice et al., 2020).

        count: 1 to N - 1. They are chosen at random, of each class its share, to within one image.
        seed: 0 to 2**64 - 1. The choice is a function of the seed, the count and the labels alone.

        Both parts are in the data's order, on its device. Raises TypeError or ValueError that names the argument.
        """
        check_int("count", count, 1, len(self))
        check_int("seed", seed, 0, 2**64)
        chosen = torch.from_numpy(stratified_choice(self.labels.cpu().numpy(), count, seed)).to(self.images.device)
        return self._part(~chosen), self._part(chosen)

    def _part(self, which: Tensor | slice) -> ImageData:
        return replace(self, images=self.images[which], labels=self.labels[which])


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel of the images in [0, 1], over all pixels: what `ImageData` takes.

    images: uint8 [N, C, H, W], 0 to 255. They are counted, so memory for a channel of them is enough, and both numbers
        are those of float64. The standard deviation is that of the pixels themselves, with n in its denominator.

    Raises TypeError or ValueError where images are not so, or empty.
    """
    _check_tensor("images", images, torch.uint8, 4)
    if images.numel() == 0:
        raise ValueError(f"images must not be empty, got shape {list(images.shape)}")
    intensities = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    counts = [channel.flatten().bincount(minlength=256).cpu().double() for channel in images.unbind(1)]
    shares = torch.stack(counts) / counts[0].sum()  # [C, 256]
    mean = shares @ intensities
    variance = (shares * (intensities - mean[:, None]).square()).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def check_limit(limit: int | None) -> None:
    """A number of examples, or None for all."""
    if limit is not None:
        check_int("limit", limit, 1, 2**63)


def _check_numbers(name: str, numbers: object) -> None:
    if not isinstance(numbers, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of numbers, got {type(numbers).__name__}")
    for number in numbers:
        check_finite(name, number)
        if name == "std" and number <= 0:
            raise ValueError(f"{name} must be of numbers > 0, got {number}")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, dimensions: int) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a {dtype} tensor, got {given}")
    if tensor.dim() != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimensions, got shape {list(tensor.shape)}")
