"""Data sets as tensors in memory, and batches of them on the training device.

`load_dataset` reads a published data set, `load_npz` synthetic images to train on beside it; `BatchLoader` makes
shuffled, augmented batches of them.
"""

from __future__ import annotations

import os
from pathlib import Path

from .._support.checks import check_bool
from .._support.suggest import unknown_name_message
from .cifar import load_cifar10, load_cifar100
from .class_names import class_names
from .digits import load_digits
from .images import DataError, ImageData, channel_statistics, check_limit
from .loader import BatchLoader
from .npz import load_npz
from .svhn import load_svhn

__all__ = [
    "BatchLoader",
    "DataError",
    "ImageData",
    "channel_statistics",
    "class_names",
    "dataset_names",
    "load_dataset",
    "load_npz",
]

_FROM_FILES = {"cifar10": load_cifar10, "cifar100": load_cifar100, "svhn": load_svhn}
_SPLITS = ("train", "test")


def dataset_names() -> tuple[str, ...]:
    """The names `load_dataset` takes."""
    return ("digits", *_FROM_FILES)


def load_dataset(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    limit: int | None = None,
    verify: bool = True,
) -> ImageData:
    """One split of a data set, as it was published: 8-bit images and labels on the CPU.

    name: "digits" (part of scikit-learn, needs no files), "cifar10", "cifar100" or "svhn".
    split: "train" or "test".
    data_dir: the folder with the published files: cifar-10-batches-py, cifar-100-python or their .tar.gz archives, or
        train_32x32.mat and test_32x32.mat; a subfolder named like the data set, or that folder of batches itself, will
        do too. Default: the environment variable ADT_FAST_DATA, or else the folder `data` of the working directory.
    download: fetch the published file into data_dir where it is not there.
    limit: keep the first `limit` examples only (all, where there are no more).
    verify: refuse files whose md5 is not the published one. Pass False to read others in the same layout.

    Raises TypeError or ValueError for bad arguments, FileNotFoundError where the files are missing, DataError (a
    ValueError) where they are damaged or not what they claim to be, ConnectionError where the download fails, and
    ModuleNotFoundError where an optional package is missing. Pickled files are read without executing anything.
    """
    for argument, value in (("name", name), ("split", split)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a string, got {value!r}")
    if name not in dataset_names():
        raise ValueError(unknown_name_message("dataset", name, dataset_names()))
    if split not in _SPLITS:
        raise ValueError(unknown_name_message("split", split, _SPLITS))
    check_limit(limit)
    check_bool("download", download)
    check_bool("verify", verify)
    if not isinstance(data_dir, (str, os.PathLike, type(None))):
        raise TypeError(f"data_dir must be a path or None, got {type(data_dir).__name__}")
    if name == "digits":
        return load_digits(split).subset(limit)
    folder = Path(data_dir if data_dir is not None else os.environ.get("ADT_FAST_DATA", "data")).expanduser()
    return _FROM_FILES[name](split, folder, download, verify).subset(limit)
