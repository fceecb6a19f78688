"""The 8x8 handwritten digits that come with scikit-learn: real images that need no network."""

from __future__ import annotations

import numpy as np
import torch

from .images import ImageData

_MEAN, _STD = (0.3054,), (0.3758,)  # of the training split
_SPLIT_SEED = 0
_HIGHEST_INTENSITY = 16


def load_digits(split: str) -> ImageData:
    """1437 training or 360 test images, uint8 [N, 1, 8, 8] with intensities 0..16 scaled to 0..255; 10 classes.

    The split is fixed: every class has a fifth of its images in the test split, to within one, at random. Each split is
    in random order, so that its first images are a fair sample.

    Raises ModuleNotFoundError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load_sklearn_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with scikit-learn; pip install 'adt_fast[demo]'") from error
    intensities, labels = load_sklearn_digits(return_X_y=True)
    chosen = _split_indices(labels, split)
    images = np.rint(intensities[chosen] * (255 / _HIGHEST_INTENSITY)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ImageData(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels[chosen].astype(np.int64)),
        num_classes=10,
        name="digits",
        mean=_MEAN,
        std=_STD,
    )


def _split_indices(labels: np.ndarray, split: str) -> np.ndarray:
    # RandomState, unlike newer generators, promises the same numbers in every version of NumPy.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[by_class[::5]] = True
    return order[in_test[order] == (split == "test")]
