"""Random crop, horizontal flip and cutout of whole batches at once, on the images' device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Each image, padded with zeros on all sides, cropped back to its size.

    images: [B, C, H, W], any dtype. padding: pixels on each side, at least 0.
    offsets: int64 [B, 2], row and column of each crop's corner in the padded image, 0 to 2 * padding; `padding` is the
    image itself.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2 padding + 1, 2 padding + 1, H, W], a view
    batch = torch.arange(len(images), device=images.device)
    return windows[batch, :, offsets[:, 0], offsets[:, 1]]


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Images [B, C, H, W], mirrored left to right where flipped (bool [B]) is true."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, centres: Tensor, size: int, colour: Tensor) -> Tensor:
    """Images with a square of one colour around a pixel of each, cut off at the border (DeVries & Taylor, 2017).

    images: [B, C, H, W]. centres: int64 [B, 2], row and column. size: pixels on a side, size // 2 of them above and
    to the left of the centre. colour: [C] in the images' dtype.
    """
    height, width = images.shape[2:]
    rows, columns = _covered(centres[:, 0], size, height), _covered(centres[:, 1], size, width)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], colour[:, None, None], images)


def _covered(centres: Tensor, size: int, side: int) -> Tensor:
    """Bool [B, side], true at the `size` places around each centre."""
    first, places = centres[:, None] - size // 2, torch.arange(side, device=centres.device)
    return (first <= places) & (places < first + size)
