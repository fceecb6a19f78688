"""What a run on a data set takes where it is not told otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from .arguments import default_is
from .method_options import grouped


@dataclass(frozen=True)
class DatasetDefaults:
    """What a run on a data set takes where it is not told otherwise: settings of
    :class:`adt_fast.config.TrainConfig`."""

    model: str
    epochs: int
    batch_size: int
    epsilon: float
    learning_rate: float
    crop_padding: int
    flip: bool
    generator_width: int = 256  # of the methods that train a generator; both are the paper's
    generator_learning_rate: float = 2e-4
    trades_learning_rate: float | None = None
    """Instead of ``learning_rate``, for the methods on the TRADES loss."""


_CIFAR = DatasetDefaults("preactresnet-18", 30, 64, 8 / 255, 0.1, crop_padding=4, flip=True)

DATASET_DEFAULTS = {
    # Epsilon such that standard training breaks down while the digits can still be told apart.
    "digits": DatasetDefaults("small-cnn", 12, 64, 0.15, 0.2, crop_padding=0, flip=False, generator_width=64,
                              generator_learning_rate=2e-3, trades_learning_rate=0.1),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "svhn": replace(_CIFAR, epsilon=4 / 255, crop_padding=0, flip=False),  # not augmented, as in the paper (C.1)
}
"""For CIFAR and SVHN, epsilon, augmentation, batch size and learning rate are the paper's (Sections 5.1, C.1, C.3); its
network and its 76 epochs are for the asking."""


def by_dataset(name: str) -> Any:
    """What help texts say of the default of the setting ``name``: that of each data set, those of the same grouped."""
    return default_is(grouped({dataset: getattr(values, name) for dataset, values in DATASET_DEFAULTS.items()}))


def default_test_limit(dataset: str, device: torch.device) -> int | None:
    """How many test images are taken where nobody says: all (None); fewer where the device is a CPU and the dataset not
    the digits, for PGD-20 takes its time there."""
    return None if dataset == "digits" or device.type != "cpu" else _CPU_TEST_LIMIT


_CPU_TEST_LIMIT = 1000
TEST_LIMIT_DEFAULT = default_is(f"all; on a CPU {_CPU_TEST_LIMIT}, for other data than digits")
