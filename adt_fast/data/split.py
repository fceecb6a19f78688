"""A random part of a data set that has the classes in the proportions of the whole."""

from __future__ import annotations

import numpy as np

from .sampling import evenly_spread


def stratified_choice(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which of the N labels are chosen, bool [N]: `count` at random, of each class its share, to within one.

    labels: int [N]. count: 0 to N. seed: 0 to 2**64 - 1. The choice is a function of these alone.
    """
    # RandomState, unlike newer generators, promises the same numbers in every version of NumPy.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    classes, class_of = np.unique(labels, return_inverse=True)
    shuffled = random.permutation(len(labels))
    # Which classes are rounded up is random too.
    by_class = shuffled[np.argsort(random.permutation(len(classes))[class_of[shuffled]], kind="stable")]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class] = evenly_spread(count, len(labels)).numpy()
    return chosen
