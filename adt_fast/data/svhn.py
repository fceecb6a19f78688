"""Street View House Numbers (Netzer et al., 2011), cropped digits, in their published .mat files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from .download import check_md5, download_file
from .images import DataError, ImageData
from .matlab import plain_file

_NAME = "svhn"
_SITE = "http://ufldl.stanford.edu/housenumbers/"
_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
_MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3"}
_MEAN, _STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
_NUM_CLASSES = 10


def load_svhn(split: str, data_dir: Path, download: bool, verify: bool) -> ImageData:
    """73257 training or 26032 test images, uint8 [N, 3, 32, 32], of 10 classes. See `load_dataset`."""
    path = _find(split, data_dir)
    if path is None and download:
        path = data_dir / _FILES[split]
        download_file(_SITE + _FILES[split], path, _MD5[split])
    if path is None:
        raise FileNotFoundError(
            f"svhn is not in {data_dir.absolute()}: data_dir must hold {_FILES[split]}, or pass download=True"
        )
    content = path.read_bytes()
    if verify:
        check_md5(content, _MD5[split], str(path))
    images, labels = _parse(content, path)
    return ImageData(torch.from_numpy(images), torch.from_numpy(labels), _NUM_CLASSES, _NAME, _MEAN, _STD)


def _find(split: str, data_dir: Path) -> Path | None:
    for place in (data_dir, data_dir / _NAME):
        if (place / _FILES[split]).is_file():
            return place / _FILES[split]
    return None


def _parse(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one published file. Raises DataError, which names `path`."""
    matrices = _read_matrices(content, path)
    images, labels = matrices.get("X"), matrices.get("y")
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[:3] != (32, 32, 3)
    ):
        raise DataError(f"{path}: X must be a uint8 matrix [32, 32, 3, N], got {_describe(images)}")
    count = images.shape[3]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iuf" or labels.shape != (count, 1):
        raise DataError(f"{path}: y must be a matrix of numbers [{count}, 1], got {_describe(labels)}")
    if not np.isin(labels, np.arange(1, _NUM_CLASSES + 1)).all():
        raise DataError(f"{path}: y must be whole numbers from 1 to {_NUM_CLASSES}")
    # The published label of the digit 0 is 10.
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels[:, 0].astype(np.int64) % 10


def _read_matrices(content: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("svhn's .mat files are read by SciPy; pip install 'adt_fast[svhn]'") from error
    try:
        return loadmat(io.BytesIO(plain_file(content)), variable_names=("X", "y"))
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(f"{path} is damaged, or no MATLAB 5 file ({type(error).__name__}: {error})") from error


def _describe(matrix: object) -> str:
    return f"{matrix.dtype} {list(matrix.shape)}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
