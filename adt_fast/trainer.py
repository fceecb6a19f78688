"""The training loop: Trainer for any method, ADTExpTrainer for the paper's ADT-EXP."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from ._batch_check import BatchCheck
from ._checks import check_choice, check_int
from .attacks import ExpRecipe
from .attacks.recipes import RecipeName
from .data import BatchLoader
from .data.prefetch import prefetched
from .input_gradient import EngineOptions
from .methods import Method, OuterResult, create_method
from .model_state import ModelMode, check_mode, check_model, device_of, model_mode
from .noise import NoiseStream

OuterPrecision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class StepResult:
    """What a training step on one minibatch saw."""

    loss: float
    """The training loss, before the step."""
    penalty: float
    """What jointly trained networks lower besides, before the step; 0 where there are none."""
    accuracy: float
    """Share of the images trained on, the adversarial ones, that were classified right, before the step."""
    images: int
    """Images in the minibatch."""


@dataclass(frozen=True)
class EpochResult:
    """Means over an epoch, weighted by the images of each minibatch."""

    epoch: int
    """Counted from 1."""
    loss: float
    penalty: float
    accuracy: float
    images: int
    seconds: float
    learning_rate: float
    """Of the optimizer's first parameter group, at the end of the epoch."""


class Trainer:
    """Trains a classifier with any method.

    Args:
        model: images ``[B, C, H, W]`` in [0, 1] -> logits; it normalises inside. May be wrapped, as by
            DistributedDataParallel, and then jointly trained networks start alike and average their gradients too;
            minibatches move to its device.
        optimizer: of the model's parameters.
        method: a :class:`adt_fast.methods.Method` for this model, see :func:`adt_fast.methods.create_method`.
        outer_mode: the mode of the model in the outer pass, the one that trains: ``"train"`` (default), ``"eval"``,
            or ``"keep"`` for the mode each module is in. The maximizer has its own mode.
        outer_precision: of the pass that trains, generators included: ``"fp32"``; ``"bf16"``, by autocast, with the
            weights, their gradients and the optimizer in float32; or ``"auto"`` (default), bf16 where the maximizer's
            engine is to use 16 bits and the device multiplies bf16 in hardware.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: Method,
        *,
        outer_mode: ModelMode = "train",
        outer_precision: OuterPrecision = "auto",
    ) -> None:
        check_model(model)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not isinstance(method, Method):
            raise TypeError(f"method must be an adt_fast.methods.Method, got {type(method).__name__}")
        check_mode("outer_mode", outer_mode)
        check_choice("outer_precision", outer_precision, get_args(OuterPrecision))
        self.model = model
        self.optimizer = optimizer
        self.method = method
        self.outer_mode: ModelMode = outer_mode
        self.outer_precision: OuterPrecision = outer_precision
        self._check_batch = BatchCheck(model)
        if method.joint is not None and isinstance(model, DistributedDataParallel):
            method.joint.broadcast(model.process_group)

    def step(self, images: Tensor, labels: Tensor) -> StepResult:
        """One whole minibatch: inner maximisation, outer loss, backward, optimizer step.

        Every module's train/eval mode is afterwards as it was. Where the method trains networks jointly, the same
        backward pass gives their gradients, and they take a step too.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [0, 1]; on any device.
            labels: int64 ``[B]``, in [0, num_classes).

        Raises:
            TypeError, ValueError: for bad images or labels, by name, before anything is changed.
            FloatingPointError: if an inner gradient or the loss is NaN or infinite; no weight is changed then.
        """
        images, labels = self._to_model(images, labels)
        self._check_batch(images, labels)
        joint = self.method.joint
        with self._outer_autocast(images):  # of generators; the gradients of attacks have a precision of their own
            perturbed = self.method.perturb(images, labels)
        with model_mode(self.model, self.outer_mode):
            with self._outer_autocast(images):
                outer = self.method.outer_loss(self.model, images, perturbed.images, labels)
            self.optimizer.zero_grad()
            if joint is not None:
                joint.zero_grad()
            (outer.loss if perturbed.penalty is None else outer.loss + perturbed.penalty).backward()
        if joint is not None and isinstance(self.model, DistributedDataParallel):
            joint.average_gradients(self.model.process_group)
        loss, penalty, accuracy = _measured(outer, perturbed.penalty)
        if not math.isfinite(loss + penalty):
            raise FloatingPointError(f"the training loss is {loss}, the penalty {penalty}; the weights were left as "
                                     "they are. Try a smaller learning rate")
        self.optimizer.step()
        if joint is not None:
            joint.step()
        return StepResult(loss, penalty, accuracy, len(images))

    def fit(
        self,
        loader: Iterable[tuple[Tensor, Tensor]],
        *,
        epochs: int,
        scheduler: LRScheduler | None = None,
        schedule_every: Literal["epoch", "step"] = "epoch",
        callbacks: Iterable[Callable[[EpochResult], None]] = (),
        progress: bool | None = None,
    ) -> list[EpochResult]:
        """Trains for a number of epochs.

        Args:
            loader: gives (images, labels) as :meth:`step` takes them; iterated once per epoch. Minibatches from host
                memory are copied to a GPU one ahead, while it works.
            epochs: >= 1.
            scheduler: of the learning rate; its ``step()`` is called once per epoch or per minibatch, as
                ``schedule_every`` says.
            callbacks: each is called after every epoch.
            progress: show a progress bar. Default: where stderr is a terminal.

        Returns:
            One result per epoch.

        Raises:
            ValueError: if an argument is bad, or the loader is empty.
            TypeError, FloatingPointError: see :meth:`step`.
        """
        check_int("epochs", epochs, 1, 2**31)
        check_choice("schedule_every", schedule_every, ("epoch", "step"))
        callbacks = list(callbacks)
        results = []
        batches = len(loader) if isinstance(loader, Sized) else None
        total = None if batches is None else batches * epochs
        with tqdm(total=total, unit="batch", disable=None if progress is None else not progress) as bar:
            for epoch in range(1, epochs + 1):
                bar.set_description(f"epoch {epoch}/{epochs}")
                result = self._epoch(epoch, loader, scheduler if schedule_every == "step" else None, bar)
                if scheduler is not None and schedule_every == "epoch":
                    scheduler.step()
                results.append(result)
                for callback in callbacks:
                    callback(result)
        return results

    def _epoch(
        self, epoch: int, loader: Iterable[tuple[Tensor, Tensor]], scheduler: LRScheduler | None, bar: tqdm
    ) -> EpochResult:
        start = time.perf_counter()
        loss = penalty = accuracy = 0.0
        count = 0
        for images, labels in self._prefetched(loader):
            result = self.step(images, labels)
            loss += result.loss * result.images
            penalty += result.penalty * result.images
            accuracy += result.accuracy * result.images
            count += result.images
            if scheduler is not None:
                scheduler.step()
            bar.set_postfix_str(f"loss {loss / count:.3f}, accuracy {accuracy / count:.1%}", refresh=False)
            bar.update()
        if count == 0:
            raise ValueError("loader must give at least one batch, it is empty")
        seconds = time.perf_counter() - start
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        return EpochResult(epoch, loss / count, penalty / count, accuracy / count, count, seconds, learning_rate)

    def _prefetched(self, loader: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
        device = device_of(self.model)
        return loader if device is None or isinstance(loader, BatchLoader) else prefetched(loader, device)

    def _outer_autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=self._outer_is_half(images))

    def _outer_is_half(self, images: Tensor) -> bool:
        if self.outer_precision != "auto":
            return self.outer_precision == "bf16"
        maximizer = self.method.maximizer
        if maximizer is None or images.dtype != torch.float32:
            return False
        if maximizer.input_gradient.options.half_dtype(images.device) is None:
            return False
        return images.device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)

    def _to_model(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = device_of(self.model)
        if device is None or not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            return images, labels
        return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _measured(outer: OuterResult, penalty: Tensor | None) -> tuple[float, float, float]:
    """Loss, penalty and accuracy."""
    loss = outer.loss.detach()
    accuracy = (outer.logits.detach().argmax(1) == outer.labels).to(loss.dtype).mean()
    penalty = torch.zeros_like(loss) if penalty is None else penalty.detach().to(loss.dtype)
    return tuple(torch.stack([loss, penalty, accuracy]).tolist())  # together, to wait for the device once


class ADTExpTrainer(Trainer):
    """Adversarial distributional training with explicit distributions (paper, Section 3.1 and Algorithm 2).

    Args:
        model, optimizer, outer_mode: see :class:`Trainer`.
        epsilon: radius of the L-infinity ball, in the images' units.
        steps: T, inner ascent steps on the distribution, >= 0.
        samples: k, Monte Carlo samples for each inner gradient, >= 1.
        step_size: of an inner step, > 0.
        entropy_weight: lambda, weight of the distribution's entropy.
        recipe: ``"published"`` (default: the paper's numbers came from that code), ``"paper"``, or an
            :class:`adt_fast.attacks.ExpRecipe` with options of your own.
        seed: of the noise.
        engine: how the inner gradients are computed, see :class:`adt_fast.input_gradient.EngineOptions`: precision,
            compilation, CUDA graphs, memory. The default chooses for the device, and watches over what it chose.
        outer_precision: see :class:`Trainer`.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        epsilon: float = 8 / 255,
        *,
        steps: int = 7,
        samples: int = 5,
        step_size: float = 0.3,
        entropy_weight: float = 0.01,
        recipe: RecipeName | ExpRecipe = "published",
        seed: int = 0,
        engine: EngineOptions | None = None,
        outer_mode: ModelMode = "train",
        outer_precision: OuterPrecision = "auto",
    ) -> None:
        check_model(model)
        self.noise = NoiseStream(seed, device_of(model) or "cpu")
        """What the distributions are sampled with; save and restore it by its ``state_dict``."""
        method = create_method(
            "adt-exp",
            model,
            epsilon=epsilon,
            noise=self.noise,
            steps=steps,
            samples=samples,
            step_size=step_size,
            entropy_weight=entropy_weight,
            recipe=recipe,
            engine=engine,
        )
        super().__init__(model, optimizer, method, outer_mode=outer_mode, outer_precision=outer_precision)
