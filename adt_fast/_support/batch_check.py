"""Minibatches are checked here, once, before a trainer or an attack changes anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .model_state import device_of, model_mode, unwrap
from .tensor_checks import COMPUTE_DTYPES


def pairs(name: str, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, each of which has to be a pair of tensors. name: what error messages call them.

    Raises:
        TypeError: if they are none that can be iterated over, or one is no such pair.
    """
    if not isinstance(batches, Iterable):
        raise TypeError(f"{name} must give batches (images, labels), got {type(batches).__name__}")
    return (pair(name, batch) for batch in batches)


def pair(name: str, batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch. name: what error messages call all batches.

    Raises:
        TypeError: if it is no pair of tensors.
    """
    parts = list(batch) if isinstance(batch, (tuple, list)) else []
    if len(parts) == 2 and all(isinstance(part, Tensor) for part in parts):
        return parts[0], parts[1]
    given = type(batch).__name__
    if isinstance(batch, (tuple, list)):
        given += f" of {' and '.join(type(part).__name__ for part in parts) if len(parts) == 2 else len(parts)}"
    raise TypeError(f"{name} must give pairs of tensors, (images, labels), got a {given}")


class BatchCheck:
    """Checks that (images, labels) are what a classifier can be attacked and trained on.

    Args:
        model: the classifier. The first batch, and the first of another image size, tells how many classes it has, by
            one image in eval mode.
        lower, upper: the images' range.
    """

    def __init__(self, model: nn.Module, lower: float = 0.0, upper: float = 1.0) -> None:
        self.model = unwrap(model)
        self.lower = lower
        self.upper = upper
        self._num_classes: dict[torch.Size, int] = {}
        """By the size of an image [C, H, W]."""

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Checks a minibatch.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, B >= 1, in [lower, upper], on the model's device.
            labels: int64 ``[B]``, in [0, num_classes), on the same device.

        Raises:
            TypeError, ValueError: naming ``images`` or ``labels``, what was given and what is wanted.
        """
        self._check_images(images)
        self._check_labels(labels, images)

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
        if images.dtype not in COMPUTE_DTYPES or images.layout != torch.strided:
            raise TypeError(f"images must be float32 (or float64) in [{self.lower:g}, {self.upper:g}], and dense, "
                            f"got {images.dtype}, {images.layout}")
        if images.dim() != 4 or images.numel() == 0:
            raise ValueError(f"images must be a batch [B, C, H, W] that is not empty, got {list(images.shape)}")
        device = device_of(self.model)
        if device is not None and images.device != device:
            raise ValueError(f"images must be on the model's device {device}, got {images.device}")
        lowest, highest = (bound.item() for bound in torch.aminmax(images.detach()))
        if not (lowest >= self.lower and highest <= self.upper):  # a NaN fails every comparison
            raise ValueError(f"images must be finite, in [{self.lower:g}, {self.upper:g}], got {lowest:g} to "
                             f"{highest:g}. Normalise inside the model, so that epsilon is in the images' units")

    def _check_labels(self, labels: Tensor, images: Tensor) -> None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be an int64 tensor, got {given}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be one class per image, [{len(images)}], got {list(labels.shape)}")
        if labels.device != images.device:
            raise ValueError(f"labels must be on the images' device {images.device}, got {labels.device}")
        lowest, highest = (bound.item() for bound in torch.aminmax(labels))
        num_classes = self._count_classes(images)
        if lowest < 0 or highest >= num_classes:
            raise ValueError(f"labels must be in [0, {num_classes - 1}], the model's {num_classes} classes, got "
                             f"{lowest} to {highest}")

    def _count_classes(self, images: Tensor) -> int:
        size = images.shape[1:]
        if size not in self._num_classes:
            try:
                with model_mode(self.model, "eval"), torch.no_grad():
                    logits = self.model(images[:1])
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # PyTorch's, where layers and images do not go together
                raise ValueError(f"model does not take images {list(size)} of {images.dtype}: {error}") from error
            if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
                given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(f"model must give logits [B, num_classes], got {given} for one image")
            self._num_classes[size] = logits.shape[1]
        return self._num_classes[size]
