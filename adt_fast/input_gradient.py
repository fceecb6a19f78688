"""d loss / d input of a classifier, and nothing else: the hot path of every attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_finite, check_int
from .model_state import ModelMode, check_mode, check_model, frozen_parameters, model_mode, unwrap

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, num_classes], labels [N]) -> losses [N]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example, ``[N]``."""
    return F.cross_entropy(logits, labels, reduction="none")


class InputGradients(NamedTuple):
    """What one evaluation of the classifier tells; nothing here is attached to a graph."""

    grad: Tensor
    """d (scale * sum of the losses) / d x, like x."""
    losses: Tensor
    """The loss of each example ``[N]``, not scaled."""
    logits: Tensor
    """``[N, num_classes]``."""


class InputGradient:
    """The gradient of a classifier's loss with respect to its input, without a trace on the classifier.

    No weight gradient is computed, ``param.grad`` is not touched, and every module's train/eval mode and every
    parameter's ``requires_grad`` are as before, even after an exception. The one thing that a pass may change is what
    the model itself changes when it runs, such as running statistics with ``model_mode="train"``.

    Args:
        model: images ``[N, C, H, W]`` -> logits ``[N, num_classes]``. (Distributed)DataParallel and ``torch.compile``
            wrappers are taken off.
        loss: the loss of each example, see :data:`PerExampleLoss`. Default: cross entropy.
        model_mode: ``"eval"`` (default), ``"train"``, or ``"keep"`` for the mode each module is in.
        chunk: at most this many examples go through the model at once, to bound memory; None for all of them. It does
            not change the result, unless examples see each other (batch norm in train mode), so ``"train"`` refuses it.
        check_finite: raise FloatingPointError where the gradient has a NaN or an infinity. It reads the gradient once
            more, and on a GPU waits for it.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: PerExampleLoss = cross_entropy,
        model_mode: ModelMode = "eval",
        chunk: int | None = None,
        check_finite: bool = True,
    ) -> None:
        check_model(model)
        check_mode("model_mode", model_mode)
        if not callable(loss):
            raise TypeError(f"loss must be callable, (logits, labels) -> losses [N], got {type(loss).__name__}")
        if chunk is not None:
            check_int("chunk", chunk, 1, 2**63)
            if model_mode == "train":
                raise ValueError("chunk must be None with model_mode='train': batch statistics would be of the chunks")
        self.model = unwrap(model)
        self.loss = loss
        self.model_mode: ModelMode = model_mode
        self.chunk = chunk
        self.check_finite = check_finite

    def __call__(self, x: Tensor, labels: Tensor, *, scale: float = 1.0) -> InputGradients:
        """The gradient at x.

        Args:
            x: ``[N, C, H, W]``, floating point; k samples of a batch folded into one, for example.
            labels: int64 ``[N]``, or whatever the loss takes, one per example.
            scale: of the objective, ``scale * sum of the losses``: 1 / N for a batch mean.

        Raises:
            ValueError: if x and labels differ in length, or the loss is not one number per example.
            RuntimeError: if the logits do not depend on x.
            FloatingPointError: if the gradient is not finite and ``check_finite`` is on.
        """
        if len(x) == 0 or len(labels) != len(x):
            raise ValueError(f"x and labels must have one length, at least 1, got {len(x)} and {len(labels)}")
        check_finite("scale", scale)
        with model_mode(self.model, self.model_mode), frozen_parameters(self.model), torch.enable_grad():
            if self.chunk is None or len(x) <= self.chunk:
                result = self._at(x, labels, scale)
            else:
                result = self._in_chunks(x, labels, scale, self.chunk)
        if self.check_finite:
            _require_finite(result)
        return result

    @torch.no_grad()
    def losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example ``[N]``, without a gradient; arguments as for a call."""
        size = self.chunk or len(x)
        with model_mode(self.model, self.model_mode):
            parts = zip(x.split(size), labels.split(size), strict=True)
            return torch.cat([self.loss(self.model(x_part), labels_part) for x_part, labels_part in parts])

    def _at(self, x: Tensor, labels: Tensor, scale: float) -> InputGradients:
        x = x.detach().requires_grad_()
        logits = self.model(x)
        losses = self.loss(logits, labels)
        if losses.shape != labels.shape[:1]:
            raise ValueError(f"loss must give one number per example, [{len(x)}], got {list(losses.shape)}")
        if not losses.requires_grad:
            raise RuntimeError("the loss does not depend on the model's input: is part of the model detached?")
        (grad,) = torch.autograd.grad(losses, x, torch.full_like(losses, scale))
        return InputGradients(grad, losses.detach(), logits.detach())

    def _in_chunks(self, x: Tensor, labels: Tensor, scale: float, chunk: int) -> InputGradients:
        grad = torch.empty_like(x)
        losses, logits = [], []
        for part, x_part, labels_part in zip(grad.split(chunk), x.split(chunk), labels.split(chunk), strict=True):
            result = self._at(x_part, labels_part, scale)
            part.copy_(result.grad)
            losses.append(result.losses)
            logits.append(result.logits)
        return InputGradients(grad, torch.cat(losses), torch.cat(logits))


def _require_finite(result: InputGradients) -> None:
    # A NaN or an infinity survives any sum, so one reduction without a temporary tensor finds it.
    total = result.grad.sum(dtype=torch.promote_types(result.grad.dtype, torch.float32))
    if torch.isfinite(total):
        return
    bad = result.grad.numel() - int(torch.isfinite(result.grad).sum())
    if bad == 0:  # it was the sum that overflowed
        return
    examples = int((~torch.isfinite(result.grad.flatten(1))).any(1).sum())
    losses = "finite" if bool(torch.isfinite(result.losses).all()) else "not finite either"
    raise FloatingPointError(
        f"the input gradient is NaN or infinite in {bad} elements of {examples} of {len(result.grad)} examples "
        f"(their losses are {losses}). Check the model's weights and the learning rate that trained them"
    )
