"""GradientSession: gradients, losses and logits of one minibatch, as the engine has set itself up for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._support.layout import preferred_layout
from .._support.tensor_checks import HALF_DTYPES
from ..losses import PerExampleLoss
from .twin import AttackTwin

if TYPE_CHECKING:
    from .engine import InputGradient


class InputGradients(NamedTuple):
    """What one evaluation of the classifier tells; nothing here is attached to a graph."""

    grad: Tensor
    """loss_scale * d (scale * sum of the losses) / d x, like x."""
    losses: Tensor
    """The loss of each example ``[N]``, float32 or float64, not scaled."""
    logits: Tensor
    """``[N, num_classes]``, float32 or float64."""
    loss_scale: float
    """1, but for float16 x: there :attr:`EngineOptions.loss_scale`, which the caller has to undo."""


class GradientSession:
    """The engine during one minibatch: the classifier's weights are taken to be constant.

    :meth:`InputGradient.run` makes it, with the model, dtype, chunk and loss of now. A call gives
    :class:`InputGradients`; ``x`` are images ``[N, C, H, W]`` and ``labels`` int64 ``[N]``, as there, and ``scale``
    too."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        engine: InputGradient,
        *,
        dtype: torch.dtype,
        chunk: int | None,
        loss: PerExampleLoss,
    ) -> None:
        self.dtype = dtype
        """What the classifier computes in; x may be in it, which spares a conversion, or in float32."""
        self.chunk = chunk
        self._model = model
        self._engine = engine
        self._loss = loss
        self._magnitudes: list[Tensor] = []
        self._last: InputGradients | None = None

    @property
    def is_half(self) -> bool:
        """Whether the classifier runs in 16 bits."""
        return self.dtype in HALF_DTYPES

    def layout(self, images: Tensor) -> torch.memory_format:
        """The memory layout in which the classifier takes images ``[N, C, H, W]`` without a copy."""
        runs_twin = isinstance(self._engine.twin, AttackTwin)
        return torch.channels_last if runs_twin and images.dim() == 4 else preferred_layout(images)

    def __call__(self, x: Tensor, labels: Tensor, *, scale: float = 1.0) -> InputGradients:
        """The gradient at x; arguments, result and errors are those of :class:`InputGradient`."""
        check_lengths(x, labels)
        if self.chunk is None or len(x) <= self.chunk:
            result = self._at(x, labels, scale)
        else:
            result = self._in_chunks(x, labels, scale, self.chunk)
        self._note_magnitude(result)
        return result

    def of_batch(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient at x of an objective of all its logits together, like x; there is no loss scale to undo.

        Chunks go through the classifier one after another, but what autograd keeps of all of them is held at once.

        Args:
            x: ``[N, C, H, W]``.
            objective: logits ``[N, num_classes]`` -> a number.
        """
        parts = [part.detach().to(self.dtype).requires_grad_() for part in x.split(self.chunk or len(x))]
        with torch.enable_grad():
            by_part = [self._logits(part) for part in parts]
            _require_graph(by_part[0])
            logits = torch.cat(by_part).detach().requires_grad_()
            value = objective(logits)
        (grad_logits,) = torch.autograd.grad(value, logits)
        scaled = (grad_logits * self._loss_scale).split([len(part) for part in parts])
        grads = [torch.autograd.grad(*one)[0].to(x.dtype) for one in zip(by_part, parts, scaled, strict=True)]
        grad = torch.cat(grads).div_(self._loss_scale)
        self._note_magnitude(InputGradients(grad, value.detach().expand(len(x)), logits.detach(), 1.0))
        return grad

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """``[N, num_classes]``, float32 or float64, without a gradient."""
        return torch.cat([self._logits(part.to(self.dtype)) for part in x.split(self.chunk or len(x))])

    @torch.no_grad()
    def losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example ``[N]``, without a gradient."""
        return self._loss(self.logits(x), labels)

    def take_magnitudes(self, device: torch.device) -> Tensor:
        """The largest elements of all gradients so far ``[n]``, on the device; empties the list."""
        magnitudes = torch.stack(self._magnitudes) if self._magnitudes else torch.zeros(0, device=device)
        self._magnitudes = []
        return magnitudes

    def forget_gradients(self) -> None:
        """Drops what was noted of gradients so far."""
        self._magnitudes = []
        self._last = None

    def require_finite(self, magnitudes: Tensor) -> None:
        """Raises FloatingPointError where one of the gradients was not finite, by their magnitudes ``[n]``, see
        :meth:`take_magnitudes`. Waits for the device."""
        finite = torch.isfinite(magnitudes)
        if bool(finite.all()):
            return
        step = int(finite.logical_not().nonzero()[0]) + 1
        where = f"in gradient {step} of {len(magnitudes)}" if len(magnitudes) > 1 else ""
        raise FloatingPointError(f"the input gradient is NaN or infinite {_describe_last(self._last)}{where}. "
                                 "Check the model's weights and the learning rate that trained them")

    @property
    def _loss_scale(self) -> float:
        return self._engine.options.loss_scale if self.dtype == torch.float16 else 1.0

    def _note_magnitude(self, result: InputGradients) -> None:
        if self._engine.check_finite:
            # One pass that lets neither a NaN nor an infinity vanish; it is read when the loop is over.
            magnitude = torch.linalg.vector_norm(result.grad, float("inf"), dtype=result.losses.dtype)
            self._magnitudes.append(magnitude)
            self._last = result

    def _logits(self, x: Tensor) -> Tensor:
        logits = self._model(x)
        return logits.float() if logits.dtype in HALF_DTYPES else logits

    def _at(self, x: Tensor, labels: Tensor, scale: float) -> InputGradients:
        """x of float32 goes in, and its gradient comes out, converted."""
        inner = x.detach().to(self.dtype).requires_grad_()
        with torch.enable_grad():
            logits = self._logits(inner)
            losses = self._loss(logits, labels)
        if losses.shape != labels.shape[:1]:
            raise ValueError(f"loss must give one number per example, [{len(x)}], got {list(losses.shape)}")
        _require_graph(losses)
        loss_scale = self._loss_scale
        (grad,) = torch.autograd.grad(losses, inner, torch.full_like(losses, scale * loss_scale))
        if grad.dtype != x.dtype:
            grad = grad.to(x.dtype).div_(loss_scale)
            loss_scale = 1.0
        return InputGradients(grad, losses.detach(), logits.detach(), loss_scale)

    def _in_chunks(self, x: Tensor, labels: Tensor, scale: float, chunk: int) -> InputGradients:
        grad = torch.empty_like(x)
        results = []
        for part, x_part, labels_part in zip(grad.split(chunk), x.split(chunk), labels.split(chunk), strict=True):
            results.append(self._at(x_part, labels_part, scale))
            part.copy_(results[-1].grad)
        losses, logits = (torch.cat(parts) for parts in list(zip(*results))[1:3])
        return InputGradients(grad, losses, logits, results[0].loss_scale)


Loop = Callable[[GradientSession, Tensor, Tensor], tuple[Tensor, ...]]
"""(session, images [B, C, H, W], labels [B]) -> tensors. It may run twice, and be captured in a CUDA graph: it changes
nothing but what it makes itself."""


def check_lengths(x: Tensor, labels: Tensor) -> None:
    """Raises ValueError where there is no example, or not a label for each."""
    if len(x) == 0 or len(labels) != len(x):
        raise ValueError(f"x and labels must have one length, at least 1, got {len(x)} and {len(labels)}")


def _require_graph(result: Tensor) -> None:
    if not result.requires_grad:
        raise RuntimeError("the loss does not depend on the model's input: is part of the model detached?")


def _describe_last(result: InputGradients | None) -> str:
    """How much of the last gradient is not finite, if any is."""
    if result is None:
        return ""
    finite = torch.isfinite(result.grad)
    bad = result.grad.numel() - int(finite.sum())
    if bad == 0:
        return ""
    examples = int((~finite.flatten(1)).any(1).sum())
    losses = "finite" if bool(torch.isfinite(result.losses).all()) else "not finite either"
    return f"in {bad} elements of {examples} of {len(result.grad)} examples (their losses are {losses}) "
