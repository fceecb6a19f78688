"""BatchLoader: shuffled, augmented batches of a data set that lives on the training device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._support.checks import check_bool, check_finite, check_int
from . import augment
from .images import ImageData
from .sampling import Sampler, generator_of


class _Draws(NamedTuple):
    """What chance decides about each of N images."""

    flipped: Tensor  # bool [N]
    offsets: Tensor  # int64 [N, 2], of the crop
    centres: Tensor  # int64 [N, 2], of the cutout


class BatchLoader:
    """Iterates over (images float32 [B, C, H, W] in [0, 1], labels int64 [B]), both on `device`.

    data: moved to `device` once, as 8-bit images; everything else happens there, a batch at a time.
    batch_size: at least 1. The last batch of an epoch is smaller where it does not divide the data.
    device: where the batches are made; "cpu" (default), or a GPU.
    shuffle: a new order every epoch; otherwise the data's order.
    crop_padding: pixels of zeros on each side before a random crop to the image's size, less than that size; 0
        (default) for no crop.
    flip: mirror each image left to right with probability 1/2.
    cutout: pixels on each side of a square of the data's mean colour (to 8 bits), put around a random pixel after crop
        and flip, and cut off at the image's border (DeVries & Taylor, 2017); at most the image's smaller side, 0
        (default) for none.
    seed: 0 to 2**64 - 1.
    drop_last: leave out the last batch of an epoch where it is smaller than the others.
    channels_last: memory layout of the images.
    num_replicas, rank: how many processes share each batch, and which one this is, from 0. A process gets rows
        rank * n // num_replicas to (rank + 1) * n // num_replicas of a batch of n, so batch_size is that of all of them
        together; each has at least one image of every batch.
    extra: more images, of the same size and classes, behind those of the data: an epoch passes over all of them.
    extra_fraction: between 0 and 1; then an epoch passes over the data alone, and extra images, drawn at random without
        replacement over the epochs, are this fraction of every batch (rounded; at least one, and not all), in rows that
        are spread evenly (Gowal et al., 2021, Section 4). The last, smaller batch has the same share, rounded.

    Every iteration is one epoch; `epoch` says which one is drawn, counts up by one when an iteration comes to its end,
    and may be set to resume; `from_batch` begins within one.

    The order, and the crop, flip and cutout of the image at an index of the data, are functions of (seed, epoch) and
    the number of images alone. They are drawn on the CPU, so they are the same on every device, for every batch size
    and number of processes, and with or without shuffling. With an extra_fraction this holds for the data's images;
    which extra images come, and how they are augmented, depends on batch_size, extra_fraction and drop_last too.

    Raises TypeError or ValueError that names the argument.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        crop_padding: int = 0,
        flip: bool = False,
        cutout: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        channels_last: bool = False,
        num_replicas: int = 1,
        rank: int = 0,
        extra: ImageData | None = None,
        extra_fraction: float | None = None,
    ) -> None:
        if not isinstance(data, ImageData):
            raise TypeError(f"data must be an ImageData, got {type(data).__name__}")
        check_int("batch_size", batch_size, 1, 2**31)
        check_int("crop_padding", crop_padding, 0, min(data.images.shape[2:]))
        check_int("cutout", cutout, 0, min(data.images.shape[2:]) + 1)
        check_int("seed", seed, 0, 2**64)
        settings = {"shuffle": shuffle, "flip": flip, "drop_last": drop_last, "channels_last": channels_last}
        for name, value in settings.items():
            check_bool(name, value)
        _check_extra(data, extra, extra_fraction)
        total = len(data) + (0 if extra is None else len(extra))
        self._count = total if extra_fraction is None else len(data)  # of the images that an epoch passes over
        self._sampler = Sampler(
            self._count,
            batch_size,
            drop_last,
            extra_count=total - self._count,
            extra_per_batch=_extra_per_batch(extra_fraction, batch_size),
            num_replicas=num_replicas,
            rank=rank,
        )
        colour = _mean_colour(data) if cutout else None
        self.data = data.to(device) if extra is None else _joined(data, extra, device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.crop_padding = crop_padding
        self.flip = flip
        self.cutout = cutout
        self.seed = seed
        self.drop_last = drop_last
        self._colour = None if colour is None else colour.to(device)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # A tensor on the device: by a Python number CUDA would multiply with the rounded reciprocal, unlike the CPU.
        self._highest_intensity = torch.tensor(255.0, dtype=torch.float32, device=self.data.images.device)
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch that an iteration draws, from 0."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        check_int("epoch", epoch, 0, 2**63)
        self._epoch = epoch

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self._sampler)

    @property
    def images_per_epoch(self) -> int:
        """How many images the batches of an epoch have, over all processes; an extra one counts each time it comes."""
        return self._sampler.num_rows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """An iteration that leaves out the batches before `first`, 0 to the length, and does no work for them."""
        check_int("first", first, 0, len(self) + 1)
        return self._batches(first)

    def _batches(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, device = self.epoch, self.data.images.device
        order, draws = self._draw(epoch)
        chosen, drawn = (rows.to(device) for rows in self._sampler.rows(order, epoch, self.seed))
        draws = _Draws(*(part.to(device) for part in draws))
        for batch in range(first, len(self)):
            rows = self._sampler.shard(batch)
            images = self._augmented(self.data.images[chosen[rows]], _Draws(*(part[drawn[rows]] for part in draws)))
            images = images.to(torch.float32, memory_format=self._memory_format) / self._highest_intensity
            yield images, self.data.labels[chosen[rows]]
        self.epoch = epoch + 1

    def _augmented(self, images: Tensor, draws: _Draws) -> Tensor:
        """Images uint8 [B, C, H, W], each by its own draws [B]."""
        if self.crop_padding:
            images = augment.crop(images, draws.offsets, self.crop_padding)
        if self.flip:
            images = augment.flip(images, draws.flipped)
        if self.cutout and self._colour is not None:
            images = augment.cutout(images, draws.centres, self.cutout, self._colour)
        return images

    def _draw(self, epoch: int) -> tuple[Tensor, _Draws]:
        """The epoch's order int64 [count], and the draws of each image, those of the extra ones behind the data's."""
        generator = generator_of(self.seed, epoch)
        permutation, draws = self._draw_for(self._count, generator)
        _, extra_draws = self._draw_for(self._sampler.num_extra, generator)
        order = permutation if self.shuffle else torch.arange(self._count, device="cpu")
        return order, _Draws(*(torch.cat(parts) for parts in zip(draws, extra_draws)))

    def _draw_for(self, count: int, generator: torch.Generator) -> tuple[Tensor, _Draws]:
        """A permutation of `count` images and the draws of each.

        All are drawn whether they are used or not, so that no setting changes what another one draws.
        """
        height, width = self.data.images.shape[2:]
        on_cpu: dict[str, Any] = {"generator": generator, "device": "cpu"}
        flipped = torch.rand(count, **on_cpu) < 0.5
        permutation = torch.randperm(count, **on_cpu)
        offsets = torch.randint(2 * self.crop_padding + 1, (count, 2), **on_cpu)
        centres = torch.stack([torch.randint(side, (count,), **on_cpu) for side in (height, width)], dim=1)
        return permutation, _Draws(flipped, offsets, centres)


def _check_extra(data: ImageData, extra: ImageData | None, fraction: float | None) -> None:
    if extra is None:
        if fraction is not None:
            raise ValueError(f"extra_fraction is a fraction of extra images, and extra is None; got {fraction!r}")
        return
    if not isinstance(extra, ImageData):
        raise TypeError(f"extra must be an ImageData, got {type(extra).__name__}")
    if extra.images.shape[1:] != data.images.shape[1:]:
        wanted, given = list(data.images.shape[1:]), list(extra.images.shape[1:])
        raise ValueError(f"extra must have images like the data's, {wanted}, got {given}")
    if extra.num_classes != data.num_classes:
        raise ValueError(f"extra must have the data's {data.num_classes} classes, got {extra.num_classes}")


def _extra_per_batch(fraction: float | None, batch_size: int) -> int:
    if fraction is None:
        return 0
    check_finite("extra_fraction", fraction)
    number = round(fraction * batch_size)
    if not 0 < number < batch_size:
        raise ValueError(
            f"extra_fraction must give a minibatch of batch_size={batch_size} at least one extra image and leave one "
            f"of the data, got {fraction}, which is {number} extra images"
        )
    return number


def _mean_colour(data: ImageData) -> Tensor:
    """uint8 [C]"""
    if not all(0 <= value <= 1 for value in data.mean):
        raise ValueError(f"data.mean must be in [0, 1] for cutout, whose colour it is, got {data.mean}")
    return (torch.tensor(data.mean, dtype=torch.float64, device="cpu") * 255).round().to(torch.uint8)


def _joined(data: ImageData, extra: ImageData, device: torch.device | str) -> ImageData:
    """The data and behind it the extra images, on `device`, which never has them twice."""
    images = torch.empty(len(data) + len(extra), *data.images.shape[1:], dtype=torch.uint8, device=device)
    images[: len(data)] = data.images
    images[len(data) :] = extra.images
    labels = torch.cat([data.labels.to(device), extra.labels.to(device)])
    return replace(data, images=images, labels=labels)
