"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their published Python files, from a folder or the archive."""

from __future__ import annotations

import gzip
import math
import pickle
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._support.checks import LONGEST_REASON
from .download import check_md5, download_file
from .images import DataError, ImageData
from .restricted_pickle import load_dict

_IMAGE_SHAPE = (3, 32, 32)
_LARGEST_FILE, _LARGEST_ARCHIVE = 2**28, 2**30
"""Bytes, unpacked: more than was published (155 MB and 187 MB), and less than harms a machine."""
_SITE = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class _Published:
    """What was published, and under which names. files: of each split, the md5 of each file."""

    name: str
    num_classes: int
    folder: str
    archive: str
    archive_md5: str
    files: dict[str, dict[str, str]]
    label_key: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_CIFAR10 = _Published(
    name="cifar10",
    num_classes=10,
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    files={
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    },
    label_key="labels",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

_CIFAR100 = _Published(
    name="cifar100",
    num_classes=100,
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    files={
        "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
        "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    },
    label_key="fine_labels",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def load_cifar10(split: str, data_dir: Path, download: bool, verify: bool) -> ImageData:
    """50000 training or 10000 test images, uint8 [N, 3, 32, 32], of 10 classes. See `load_dataset`."""
    return _load(_CIFAR10, split, data_dir, download, verify)


def load_cifar100(split: str, data_dir: Path, download: bool, verify: bool) -> ImageData:
    """50000 training or 10000 test images, uint8 [N, 3, 32, 32], of 100 classes (fine labels). See `load_dataset`."""
    return _load(_CIFAR100, split, data_dir, download, verify)


def _load(published: _Published, split: str, data_dir: Path, download: bool, verify: bool) -> ImageData:
    md5s = published.files[split]
    where = _find(published, split, data_dir)
    if where is None and download:
        where = data_dir / published.archive
        download_file(_SITE + published.archive, where, published.archive_md5)
    if where is None:
        raise FileNotFoundError(
            f"{published.name} is not in {data_dir.absolute()}: data_dir must hold the folder "
            f"{published.folder} or the file {published.archive}, or pass download=True"
        )
    contents = _read_folder(where, md5s) if where.is_dir() else _read_archive(where, published.folder, md5s)
    images, labels = [], []
    for file, md5 in md5s.items():
        source = str(where / file)
        if verify:
            check_md5(contents[file], md5, source)
        batch_images, batch_labels = _parse(contents[file], source, published)
        images.append(batch_images)
        labels += batch_labels
    return ImageData(
        images=torch.from_numpy(np.concatenate(images).reshape(-1, *_IMAGE_SHAPE)),
        labels=torch.from_numpy(np.array(labels, dtype=np.int64)),
        num_classes=published.num_classes,
        name=published.name,
        mean=published.mean,
        std=published.std,
    )


def _find(published: _Published, split: str, data_dir: Path) -> Path | None:
    """The folder that holds the split's files, or else the archive; data_dir may itself be that folder."""
    if all((data_dir / file).is_file() for file in published.files[split]):
        return data_dir
    for place in (data_dir, data_dir / published.name):
        if (place / published.folder).is_dir():
            return place / published.folder
        if (place / published.archive).is_file():
            return place / published.archive
    return None


def _read_folder(folder: Path, files: Iterable[str]) -> dict[str, bytes]:
    """The contents of `files` by their names."""
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is incomplete, it lacks {', '.join(missing)}: fetch the data set again")
    return {file: (folder / file).read_bytes() for file in files}


def _read_archive(archive: Path, folder: str, files: Iterable[str]) -> dict[str, bytes]:
    """The contents of `files` in the archive's folder, by their names; nothing is unpacked to disk."""
    members = {f"{folder}/{file}": file for file in files}
    contents = {}
    try:
        with gzip.open(archive) as unpacked:
            stream: Any = _Limited(unpacked)
            # As a stream, which only moves on: a hostile archive may have offsets that lead round in a circle.
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    if member.isfile() and member.name in members:
                        if not 0 <= member.size <= _LARGEST_FILE:
                            raise tarfile.ReadError(f"{member.name} would be of {member.size} bytes")
                        file: Any = tar.extractfile(member)  # there is one, for it is a file
                        contents[members[member.name]] = file.read()
            while stream.read(1 << 20):  # the checksum of the whole stands at its end
                pass
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything: OSError, zlib.error, RecursionError, ...
        reason = str(error)[:LONGEST_REASON] or type(error).__name__
        raise DataError(f"{archive} is damaged, or no archive ({reason}): fetch it again") from error
    missing = [member for member, file in members.items() if file not in contents]
    if missing:
        raise DataError(f"{archive} is incomplete, it lacks {', '.join(missing)}: fetch it again")
    return contents


class _Limited:
    """A stream that ends with an error before it has filled the memory or the day."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._left = _LARGEST_ARCHIVE
        self._empty_reads = 0

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        self._empty_reads += not content
        if self._empty_reads > 100:  # tarfile goes on to any place that an archive names, beyond its end as well
            raise tarfile.ReadError("it is cut short")
        if self._left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {_LARGEST_ARCHIVE} bytes")
        return content


def _parse(content: bytes, source: str, published: _Published) -> tuple[np.ndarray, list[int]]:
    """Images uint8 [N, 3072] and N labels of one published file. Raises DataError, which names `source`."""
    try:
        batch = load_dict(content)
    except pickle.UnpicklingError as error:
        raise DataError(f"{source} {error}") from error
    images, labels = batch.get("data"), batch.get(published.label_key)
    width = math.prod(_IMAGE_SHAPE)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != width:
        given: object = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{source}: 'data' must be a uint8 array [N, {width}], got {given}")
    if not isinstance(labels, list) or len(labels) != len(images):
        given = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{source}: '{published.label_key}' must be a list of {len(images)} labels, got {given}")
    if not all(type(label) is int and 0 <= label < published.num_classes for label in labels):
        raise DataError(f"{source}: '{published.label_key}' must be ints from 0 to {published.num_classes - 1}")
    return images, labels
