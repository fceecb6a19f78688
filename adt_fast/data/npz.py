"""Images in NumPy's .npz files, the layout that synthetic images for training are published in."""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy

from .._support.checks import LONGEST_REASON, shown
from .images import DataError, ImageData, check_limit

_CHUNK_BYTES = 1 << 24
_MOST_HEADER_BYTES = 10_000  # NumPy's own limit
# What NumPy writes. A byte of deflate's holds at most 1032 bytes, so a longer array than that is not in the file.
_MOST_EXPANSION = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Array(NamedTuple):
    """An array in the file: what its header says."""

    member: zipfile.ZipInfo
    header_bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype)[:200]} {shown(list(self.shape))}"


def load_npz(path: str | os.PathLike[str], like: ImageData, limit: int | None = None) -> ImageData:
    """The images of an .npz file, as np.savez and np.savez_compressed write them, on the CPU.

    path: its arrays are `image`, uint8 [N, H, W, C], and `label`, integers [N]; others are left alone.
    like: the data whose C, H, W and classes these images must have; they get its mean and std, too.
    limit: read the first `limit` examples only (all, where there are no more).

    Raises TypeError or ValueError for bad arguments, FileNotFoundError where there is no such file, and DataError (a
    ValueError) where it is damaged or not what it should be. Nothing is unpickled, and sizes that a header claims are
    held against those of the file before there is memory for them.
    """
    if not isinstance(like, ImageData):
        raise TypeError(f"like must be an ImageData, got {type(like).__name__}")
    check_limit(limit)
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an .npz file")
    with open(path, "rb") as file:
        try:
            images, labels = _read(file, path, like, limit)
        except (DataError, MemoryError):  # images that are more than the memory are not damaged
            raise
        except Exception as error:  # a damaged file raises nearly anything
            reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]  # NumPy's messages quote the header
            raise DataError(f"{path} is damaged, or no .npz file ({reason})") from error
    return ImageData(images, labels, like.num_classes, path.stem, like.mean, like.std)


def _read(file: BinaryIO, path: Path, like: ImageData, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, C, H, W] and labels int64 [N]."""
    with zipfile.ZipFile(file) as archive:
        image, label = (_read_header(archive, name, path) for name in ("image", "label"))
        channels, height, width = like.images.shape[1:]
        if image.dtype != np.uint8 or image.shape[1:] != (height, width, channels) or image.shape[:1] in ((), (0,)):
            wanted = f"[N, {height}, {width}, {channels}] with N of at least 1"
            raise DataError(f"{path}: 'image' must be a uint8 array {wanted}, got {image}")
        if label.dtype.kind not in "iu" or label.shape != image.shape[:1]:
            raise DataError(f"{path}: 'label' must be an array of integers [{image.shape[0]}], got {label}")
        for name, array in (("image", image), ("label", label)):
            _check_size(array, f"{path}: '{name}'", os.fstat(file.fileno()).st_size)
        count = image.shape[0] if limit is None else min(limit, image.shape[0])
        labels = _read_labels(archive, label, count)
        if labels.min() < 0 or labels.max() >= like.num_classes:
            wanted = f"from 0 to {like.num_classes - 1}"
            raise DataError(f"{path}: 'label' must be {wanted}, got {labels.min()} to {labels.max()}")
        return _read_images(archive, image, count), torch.from_numpy(labels.astype(np.int64))


def _read_header(archive: zipfile.ZipFile, name: str, path: Path) -> _Array:
    if f"{name}.npy" not in archive.namelist():
        held = ", ".join(repr(member.removesuffix(".npy")) for member in archive.namelist()[:10]) or "nothing"
        raise DataError(f"{path}: must hold the arrays 'image' and 'label', '{name}' is missing; it holds {held}")
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in _MOST_EXPANSION:
        raise DataError(
            f"{path}: '{name}' must be stored or deflated, as NumPy does, got zip's method {member.compress_type}"
        )
    with archive.open(member) as stream:
        start = io.BytesIO(stream.read(_MOST_HEADER_BYTES))  # a header that claims to be longer finds no more than this
    version = npy.read_magic(start)
    if version not in _READ_HEADER:
        raise DataError(f"{path}: '{name}' must be in version 1.0 or 2.0 of the npy format, got {version}")
    try:
        shape, is_fortran, dtype = _READ_HEADER[version](start, max_header_size=_MOST_HEADER_BYTES)
    except MemoryError as error:  # Python's parser, of its own stack
        raise DataError(f"{path} is damaged: the header of '{name}' is nested too deep") from error
    if is_fortran:
        raise DataError(f"{path}: '{name}' must be in C order, got Fortran's; save np.ascontiguousarray({name})")
    return _Array(member, start.tell(), shape, dtype)


def _check_size(array: _Array, source: str, file_bytes: int) -> None:
    """Refuse what cannot be in the file, before there is memory for it."""
    wanted, member = array.header_bytes + math.prod(array.shape) * array.dtype.itemsize, array.member
    if member.file_size != wanted:
        raise DataError(f"{source} must have the {wanted} bytes of its header's {array}, got {member.file_size}")
    most = _MOST_EXPANSION[member.compress_type] * min(member.compress_size, file_bytes)
    if wanted > most:
        raise DataError(f"{source} must fit into the file, which has room for {most} bytes at most, got {wanted}")


def _read_images(archive: zipfile.ZipFile, array: _Array, count: int) -> torch.Tensor:
    """The first `count` images, [count, H, W, C], as uint8 [count, C, H, W]; no more than a part is there twice."""
    height, width, channels = array.shape[1:]
    images = np.empty((count, channels, height, width), dtype=np.uint8)
    per_chunk = max(1, _CHUNK_BYTES // math.prod(array.shape[1:]))
    with archive.open(array.member) as stream:
        _read_exactly(stream, array.header_bytes)
        for start in range(0, count, per_chunk):
            part = images[start : start + per_chunk]
            read = np.frombuffer(_read_exactly(stream, part.nbytes), np.uint8)
            part[:] = read.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    return torch.from_numpy(images)


def _read_labels(archive: zipfile.ZipFile, array: _Array, count: int) -> np.ndarray:
    """The first `count` labels in their own dtype."""
    with archive.open(array.member) as stream:
        _read_exactly(stream, array.header_bytes)
        return np.frombuffer(_read_exactly(stream, count * array.dtype.itemsize), array.dtype)


def _read_exactly(stream: IO[bytes], count: int) -> bytes:
    """Zip's checksum is verified with the last byte of a member."""
    read = stream.read(count)
    if len(read) != count:
        raise EOFError(f"{count} bytes were to come, {len(read)} did")
    return read
