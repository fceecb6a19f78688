"""One step of training: a minibatch, shared with other processes and in parts where memory asks; one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._support.batch_check import BatchCheck
from .._support.model_state import ModelMode, device_of, distributed_wrapper, model_mode, unwrap
from ..batch_share import BatchShare
from ..methods import Method
from ..processes import Processes
from .progress import StepResult

OuterPrecision = Literal["auto", "fp32", "bf16"]
"""Of the training pass, see :class:`adt_fast.trainer.Trainer`."""


class StepOptions(NamedTuple):
    """How a step is done; see :class:`adt_fast.trainer.Trainer`."""

    outer_mode: ModelMode
    outer_precision: OuterPrecision
    accumulation_steps: int
    max_grad_norm: float | None


class _Part(NamedTuple):
    """Some of the images that a process has of a minibatch."""

    images: Tensor
    labels: Tensor
    share: BatchShare
    """Which of the whole minibatch they are."""
    weight: float
    """Of the mean over them in what this process backpropagates, such that the mean over processes is that over the
    whole minibatch."""
    is_last: bool


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device on which attacks use 16 bits multiplies bf16 in hardware."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):  # it is the current one that PyTorch tells about
        return torch.cuda.is_bf16_supported(including_emulation=False)


class TrainingStep:
    """What is done with a minibatch; called by :meth:`adt_fast.trainer.Trainer.step`.

    Args:
        model, optimizer, method: the trainer's.
        options: see :class:`StepOptions`.
        processes: those that share every minibatch.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, method: Method, options: StepOptions, processes: Processes
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.method = method
        self.options = options
        self.processes = processes
        self._check_batch = BatchCheck(model)
        self._distributed = distributed_wrapper(model)

    def __call__(self, images: Tensor, labels: Tensor, *, measure_clean: bool) -> StepResult:
        images, labels = self._to_model(images, labels)
        self._check_batch(images, labels)
        sums = torch.zeros(4, dtype=torch.float64, device=images.device)  # as in _result
        maximizer = self.method.maximizer
        start = None if maximizer is None else maximizer.noise_on(images.device).state.clone()
        is_first = True
        for part in self._parts(images, labels):
            if not is_first and maximizer is not None and start is not None:
                maximizer.noise.state.copy_(start)  # a part's noise is that of its place in the minibatch
            sums += self._backward(part, drop_gradients=is_first, measure_clean=measure_clean)
            is_first = False
        result = self._result(sums, len(images), measure_clean)
        if not math.isfinite(result.loss + result.penalty):
            raise FloatingPointError(f"the training loss is {result.loss}, the penalty {result.penalty}; the weights "
                                     "were left as they are. Try a smaller learning rate")
        self._update()
        return result

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[_Part]:
        """As many on every process, for batch norm may synchronise them."""
        counts = self.processes.counts(len(images))
        before, whole = sum(counts[: self.processes.rank]), sum(counts)
        parts = min(self.options.accumulation_steps, *counts)
        bounds = [len(images) * part // parts for part in range(parts + 1)]
        for start, end in pairwise(bounds):
            weight = (end - start) * self.processes.size / whole
            share = BatchShare(before + start, whole)
            yield _Part(images[start:end], labels[start:end], share, weight, end == len(images))

    def _backward(self, part: _Part, *, drop_gradients: bool, measure_clean: bool) -> Tensor:
        """Adds the part's gradients to those that are there, and gives its sums, as in _result."""
        images, labels = part.images, part.labels
        clean = self._clean_correct(images, labels) if measure_clean else None
        with self._outer_autocast(images), self._shared(part):  # autocast of generators; attacks have one of their own
            perturbed = self.method.perturb(images, labels)
        with model_mode(self.model, self.options.outer_mode), self._gradients_stay_here(not part.is_last):
            with self._outer_autocast(images):
                outer = self.method.outer_loss(self.model, images, perturbed.images, labels)
            if drop_gradients:
                self.optimizer.zero_grad()
                if self.method.joint is not None:
                    self.method.joint.zero_grad()
            objective = outer.loss if perturbed.penalty is None else outer.loss + perturbed.penalty
            (objective * part.weight if part.weight != 1 else objective).backward()
        loss, count = outer.loss.detach().double(), len(images)
        correct = (outer.logits.detach().argmax(1) == outer.labels).double().mean() * count
        penalty = torch.zeros_like(loss) if perturbed.penalty is None else perturbed.penalty.detach().double()
        clean = torch.zeros_like(loss) if clean is None else clean.double()
        return torch.stack([loss * count, penalty * count, correct, clean])  # no number of the host's: it would wait

    def _result(self, sums: Tensor, count: int, measure_clean: bool) -> StepResult:
        """Means over the minibatch, of the sums of loss, penalty, correct images and clean ones over the ``count``
        images here."""
        own = sums.tolist()  # waits for the device, once
        loss, penalty, correct, clean, images = self.processes.sum([*own, count])
        if self.method.maximizer is None:
            clean_accuracy: float | None = correct / images  # the images trained on are the clean ones
        else:
            clean_accuracy = clean / images if measure_clean else None
        return StepResult(loss / images, penalty / images, correct / images, clean_accuracy, round(images))

    def _update(self) -> None:
        joint = self.method.joint
        if joint is not None and self.processes.size > 1:
            assert self._distributed is not None  # or there are no other processes
            joint.average_gradients(self._distributed.process_group)
        self._clip()
        self.optimizer.step()
        if joint is not None:
            joint.step()
        if self.processes.size > 1:  # or attacks, which run on the model without its wrapper, would differ in them
            for network in (self.model, *(joint.networks.values() if joint is not None else ())):
                self.processes.average_buffers(network)

    def _clip(self) -> None:
        if self.options.max_grad_norm is None:
            return
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        if not math.isfinite(norm):
            raise FloatingPointError(f"the norm of the gradient is {float(norm)}; the weights were left as they are. "
                                     "Try a smaller learning rate")
        nn.utils.clip_grads_with_norm_(parameters, self.options.max_grad_norm, norm)

    @torch.no_grad()
    def _clean_correct(self, images: Tensor, labels: Tensor) -> Tensor | None:
        if self.method.maximizer is None:
            return None
        model = unwrap(self.model)
        with model_mode(model, "eval"), self._outer_autocast(images):
            return (model(images).argmax(1) == labels).sum()

    @contextmanager
    def _shared(self, part: _Part) -> Iterator[None]:
        """Inside, the maximizer knows which images of the whole minibatch it has."""
        if self.method.maximizer is None:
            yield
            return
        self.method.maximizer.share = part.share
        try:
            yield
        finally:
            self.method.maximizer.share = None

    def _gradients_stay_here(self, staying: bool) -> AbstractContextManager[None]:
        """Whether a backward pass leaves the gradients to a later one to be averaged over processes."""
        return self._distributed.no_sync() if staying and self._distributed is not None else nullcontext()

    def _outer_autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self._outer_is_half(images))

    def _outer_is_half(self, images: Tensor) -> bool:
        if self.options.outer_precision != "auto":
            return self.options.outer_precision == "bf16"
        maximizer = self.method.maximizer
        if maximizer is None or images.dtype != torch.float32:
            return False
        if maximizer.input_gradient.options.half_dtype(images.device) is None:
            return False
        return multiplies_bf16(images.device)

    def _to_model(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = device_of(self.model)
        if device is None or not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            return images, labels
        return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
