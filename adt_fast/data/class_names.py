"""What the classes of the published data sets are called."""

from __future__ import annotations

_TEN_DIGITS = tuple("0123456789")

_CLASS_NAMES = {
    "digits": _TEN_DIGITS,
    "svhn": _TEN_DIGITS,
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def class_names(dataset: str) -> tuple[str, ...] | None:
    """The names of a data set's classes, in the order of their numbers; None where they are not known here.

    dataset: as in `load_dataset`. They are known of the digits, SVHN and CIFAR-10.
    """
    return _CLASS_NAMES.get(dataset)
