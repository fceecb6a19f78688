"""The images of a run: to train on, to validate with, and to test with."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

from ..config import ResolvedConfig
from ..data import BatchLoader, ImageData, load_dataset, load_npz
from ..processes import Processes


@dataclass(frozen=True)
class RunData:
    """Of the data set, but for ``extra``; on the CPU."""

    train: ImageData
    extra: ImageData | None
    validation: ImageData | None
    """Of the training split, not in ``train``."""
    test: ImageData

    @property
    def extra_checksum(self) -> int | None:
        """CRC-32 of the extra images and labels, for no settings tell whether their file is still the same."""
        if self.extra is None:
            return None
        return zlib.crc32(self.extra.labels.numpy().data, zlib.crc32(self.extra.images.contiguous().numpy().data))

    def loader(self, config: ResolvedConfig, device: torch.device, processes: Processes) -> BatchLoader:
        """Minibatches of the training images, of which each process has its share."""
        return BatchLoader(
            self.train,
            config.batch_size,
            device=device,
            shuffle=True,
            crop_padding=config.crop_padding,
            flip=config.flip,
            cutout=config.cutout,
            seed=config.seed,
            drop_last=config.drop_last,
            channels_last=True,
            num_replicas=processes.size,
            rank=processes.rank,
            extra=self.extra,
            extra_fraction=config.extra_fraction,
        )


def load_run_data(config: ResolvedConfig) -> RunData:
    """Reads the files that the settings name.

    Raises:
        ValueError: if a number of images is impossible; DataError where a file is damaged, or no such data.
        OSError: if files are missing.
        ImportError: if the data set needs a package that is not installed.
    """
    train, test = (
        load_dataset(config.dataset, split, data_dir=config.data_dir, download=config.download, limit=limit)
        for split, limit in (("train", config.train_limit), ("test", config.test_limit))
    )
    extra = None if config.extra_data is None else load_npz(config.extra_data, train)
    validation = None
    if config.validation_images:
        if config.validation_images >= len(train):
            raise ValueError(f"validation_images must be less than the {len(train)} training images, got "
                             f"{config.validation_images}")
        train, validation = train.held_out(config.validation_images, config.seed)
    return RunData(train, extra, validation, test)
