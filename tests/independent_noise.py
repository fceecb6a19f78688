"""The noise of the operators, computed a second time: Philox4x32-10 and Box-Muller in NumPy, in extended precision.

Written from Salmon et al. (2011) and from the counter documented in csrc/math/philox.h; it shares nothing with
adt_fast, so that an agreement between the two says something.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

# 80 bits on x86, 128 elsewhere (64 with some compilers): the truth, even for float64 kernels.
REAL = np.longdouble
PI = 4 * np.arctan(REAL(1))

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: Sequence, key: tuple[int, int]) -> list[np.ndarray]:
    """Ten rounds: four arrays of 32-bit counter words and two key words -> four arrays of random words, uint64."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def radial_uniform(word: np.ndarray) -> np.ndarray:
    """(0, 1], in float32 for every computing type: that rounding is part of the definition of the noise."""
    return np.asarray(word).astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)


def box_muller(words: Sequence[np.ndarray]) -> np.ndarray:
    """Four words -> four normals, stacked in a last dimension."""
    lanes = []
    for radial, turn in ((words[0], words[1]), (words[2], words[3])):
        radius = np.sqrt(-2 * np.log(radial_uniform(radial).astype(REAL)))
        angle = 2 * PI * (np.asarray(turn).astype(REAL) / 2**32)
        lanes += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(lanes, axis=-1)


def channels_and_pixels(shape: tuple[int, ...]) -> tuple[int, int]:
    """(C, P) of an example: a channel dimension exists from three dimensions on, if a channel has several pixels."""
    pixels = math.prod(shape[2:])
    return (shape[1], pixels) if len(shape) >= 3 and pixels > 1 else (1, math.prod(shape[1:]))


def words(
    shape: tuple[int, ...], *, seed: int, offset: int = 0, samples: int = 1, first_example: int = 0
) -> list[np.ndarray]:
    """The words of every block: four arrays ``[k, B, blocks]``."""
    channels, pixels = channels_and_pixels(shape)
    block, example, sample = np.ix_(
        range(-(-pixels // 4) * channels), range(first_example, first_example + shape[0]), range(samples)
    )
    counter = (block, example, offset % 2**32, sample + ((offset >> 32) << 24))
    out = philox4x32(np.broadcast_arrays(*counter), (seed % 2**32, (seed >> 32) % 2**32))
    return [word.transpose(2, 1, 0) for word in out]


def lanes_to_elements(by_lane: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``[k, B, blocks, 4]`` -> ``[k, *shape]``: element (c, p) of an example is lane p % 4 of block (p / 4) * C + c."""
    channels, pixels = channels_and_pixels(shape)
    channel, pixel = np.divmod(np.arange(channels * pixels), pixels)
    return by_lane[:, :, pixel // 4 * channels + channel, pixel % 4].reshape(-1, *shape)


@functools.lru_cache(maxsize=64)
def normals(
    shape: tuple[int, ...], *, seed: int, offset: int = 0, samples: int = 1, first_example: int = 0
) -> np.ndarray:
    """The normals ``[k, *shape]`` of a draw."""
    by_lane = box_muller(words(shape, seed=seed, offset=offset, samples=samples, first_example=first_example))
    return lanes_to_elements(by_lane, shape)


def uniforms(shape: tuple[int, ...], *, seed: int, offset: int = 0, first_example: int = 0) -> np.ndarray:
    """The uniforms on [-1, 1], ``shape``, of a random start; in float32 like the radial ones."""
    by_lane = np.stack(words(shape, seed=seed, offset=offset, first_example=first_example), axis=-1)
    symmetric = radial_uniform(by_lane) * np.float32(2) - np.float32(1)
    return lanes_to_elements(symmetric.astype(REAL), shape)[0]
