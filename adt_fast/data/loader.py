"""BatchLoader: shuffled, augmented batches of a data set that lives on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .._checks import check_bool, check_int
from . import augment
from .images import ImageData


class BatchLoader:
    """Iterates over (images float32 [B, C, H, W] in [0, 1], labels int64 [B]), both on `device`.

    data: moved to `device` once, as 8-bit images; everything else happens there, a batch at a time.
    batch_size: at least 1. The last batch of an epoch is smaller where it does not divide the data, or is left out with
        drop_last=True.
    shuffle: a new order every epoch; otherwise the data's order.
    crop_padding: pixels of zeros on each side before a random crop to the image's size, less than that size; 0
        (default) for no crop.
    flip: mirror each image left to right with probability 1/2.
    seed: 0 to 2**64 - 1.
    channels_last: memory layout of the images.

    Every iteration is one epoch; `epoch` says which one is drawn, counts up by one when an iteration comes to its end,
    and may be set to resume; `from_batch` begins
    within one. The order, and the crop and flip of the image at an index of the data, are functions of
    (seed, epoch) and the number of images alone. They are drawn on the CPU, so they are the same on every device, for
    every batch size, and with or without shuffling.

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
        seed: int = 0,
        drop_last: bool = False,
        channels_last: bool = False,
    ) -> None:
        if not isinstance(data, ImageData):
            raise TypeError(f"data must be an ImageData, got {type(data).__name__}")
        check_int("batch_size", batch_size, 1, 2**31)
        check_int("crop_padding", crop_padding, 0, min(data.images.shape[2:]))
        check_int("seed", seed, 0, 2**64)
        settings = {"shuffle": shuffle, "flip": flip, "drop_last": drop_last, "channels_last": channels_last}
        for name, value in settings.items():
            check_bool(name, value)
        if drop_last and batch_size > len(data):
            raise ValueError(
                f"batch_size must be at most {len(data)}, the number of images, with drop_last=True; "
                f"got {batch_size}, which leaves no batch"
            )
        self.data = data.to(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.crop_padding = crop_padding
        self.flip = flip
        self.seed = seed
        self.drop_last = drop_last
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
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """An iteration that leaves out the batches before `first`, 0 to the length, and does no work for them."""
        check_int("first", first, 0, len(self) + 1)
        return self._batches(first)

    def _batches(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        order, offsets, flipped = self._draw(epoch)
        for start in range(first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = self.data.images[chosen]
            if self.crop_padding:
                images = augment.crop(images, offsets[chosen], self.crop_padding)
            if self.flip:
                images = augment.flip(images, flipped[chosen])
            images = images.to(torch.float32, memory_format=self._memory_format) / self._highest_intensity
            yield images, self.data.labels[chosen]
        self.epoch = epoch + 1

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The epoch's order int64 [N], and for each image its crop offsets int64 [N, 2] and whether it is flipped [N].

        All three are drawn whether they are used or not, so that no setting changes what another one draws.
        """
        count, device = len(self.data), self.data.images.device
        # SeedSequence spreads (seed, epoch) over 64 bits, so that neighbouring seeds and epochs have nothing in common.
        key = np.random.SeedSequence(self.seed, spawn_key=(epoch,)).generate_state(1, np.uint64).item()
        generator = torch.Generator().manual_seed(key)
        on_cpu = dict(generator=generator, device="cpu")
        flipped = torch.rand(count, **on_cpu) < 0.5
        permutation = torch.randperm(count, **on_cpu)
        offsets = torch.randint(2 * self.crop_padding + 1, (count, 2), **on_cpu)
        order = permutation if self.shuffle else torch.arange(count, device="cpu")
        return order.to(device), offsets.to(device), flipped.to(device)
