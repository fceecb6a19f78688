"""The training loop: Trainer for any method, ADTExpTrainer for the paper's ADT-EXP."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from ._support.batch_check import pairs
from ._support.checks import check_choice, check_fraction, check_int, check_positive
from ._support.model_state import ModelMode, check_mode, check_model, device_of, distributed_wrapper, unwrap
from ._support.optimizer_state import load_optimizer_state
from ._support.random_state import random_state, restore_random_state
from ._training.progress import EpochResult, FitProgress, FitSettings, StepResult
from ._training.state import check_scheduler_state, check_trainer_state, trainer_state
from ._training.step import OuterPrecision, StepOptions, TrainingStep
from .attacks import ExpRecipe
from .attacks.recipes import RecipeName
from .data import BatchLoader
from .data.prefetch import prefetched
from .input_gradient import EngineOptions
from .methods import Method, create_method
from .noise import NoiseStream
from .processes import Processes
from .weight_average import WeightAverage

__all__ = ["ADTExpTrainer", "EpochResult", "OuterPrecision", "StepResult", "Trainer"]

_CLEAN_EVERY = 10
"""One of so many minibatches measures the accuracy on clean images: that is a forward pass more."""


class Trainer:
    """Trains a classifier with any method.

    Args:
        model: images ``[B, C, H, W]`` in [0, 1] -> logits; it normalises inside. May be wrapped, as by
            DistributedDataParallel (and ``torch.compile`` around that), and then jointly trained networks start alike
            and average their gradients too; minibatches move to its device.
        optimizer: of the model's parameters.
        method: a :class:`adt_fast.methods.Method` for this model, see :func:`adt_fast.methods.create_method`.
        outer_mode: the mode of the model in the outer pass, the one that trains: ``"train"`` (default), ``"eval"``,
            or ``"keep"`` for the mode each module is in. The maximizer has its own mode.
        outer_precision: of the pass that trains, generators included: ``"fp32"``; ``"bf16"``, by autocast, with the
            weights, their gradients and the optimizer in float32; or ``"auto"`` (default), bf16 where the maximizer's
            engine is to use 16 bits and the device multiplies bf16 in hardware.
        accumulation_steps: parts in which a minibatch goes through attack and backward pass, one after another, before
            the one step of the optimizer, >= 1; as many as there are images, in the smallest share of a process, where
            these are fewer. More parts need less memory; noise, scales and the mean gradient stay those of the whole
            minibatch. What looks at other images has those of its part: batch norm in train mode, feature scattering,
            L2L's largest gradient, the hinge of ADT-IMP-AM.
        max_grad_norm: the gradient of the classifier is scaled down to this Euclidean norm where it is longer, > 0;
            those of jointly trained networks are not. Default: None, for as it is.
        ema_decay: of an average of the weights, see :class:`adt_fast.weight_average.WeightAverage`. Default: None, for
            no average.

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
        accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ) -> None:
        check_model(model)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        own = {id(parameter) for parameter in model.parameters()}
        if own and own.isdisjoint(id(parameter) for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("optimizer must have parameters of the model, it has none of them and would train nothing")
        if not isinstance(method, Method):
            raise TypeError(f"method must be an adt_fast.methods.Method, got {type(method).__name__}")
        if method.maximizer is not None and method.maximizer.model is not unwrap(model):
            raise ValueError("method must be one for this model, its maximizer attacks another")
        check_mode("outer_mode", outer_mode)
        check_choice("outer_precision", outer_precision, get_args(OuterPrecision))
        check_int("accumulation_steps", accumulation_steps, 1, 2**31)
        if max_grad_norm is not None:
            check_positive("max_grad_norm", max_grad_norm)
        if ema_decay is not None:
            check_fraction("ema_decay", ema_decay)
        self.model = model
        self.optimizer = optimizer
        self.method = method
        self.average = None if ema_decay is None else WeightAverage(model, ema_decay)
        """The average of the weights, if there is to be one."""
        self.processes = Processes.of(model)
        """Those that train the model together."""
        self.options = StepOptions(outer_mode, outer_precision, accumulation_steps, max_grad_norm)
        self._step = TrainingStep(model, optimizer, method, self.options, self.processes)
        self._progress: FitProgress | None = None
        """Of the fit under way, or of the one that a loaded state is to go on with."""
        self._scheduler: LRScheduler | None = None
        self._to_restore: dict[str, Any] | None = None
        """What of a loaded state waits for the fit that goes on."""
        self._random_at_start: dict[str, Tensor] | None = None
        """The global generators when the epoch under way began, of which a loader may have made its order; None between
        two epochs."""
        if method.joint is not None and (wrapper := distributed_wrapper(model)) is not None:
            method.joint.broadcast(wrapper.process_group)

    @property
    def trained_model(self) -> nn.Module:
        """What training is for, without wrappers: the model, or the average of its weights where there is one."""
        return unwrap(self.model) if self.average is None else self.average.model

    def step(self, images: Tensor, labels: Tensor, *, measure_clean: bool = False) -> StepResult:
        """One whole minibatch: inner maximisation, outer loss, backward, optimizer step.

        Every module's train/eval mode is afterwards as it was. Where the method trains networks jointly, the same
        backward pass gives their gradients, and they take a step too. With several processes, all call it, each with
        its share of the minibatch: noise and scale of an image are those that it would have in one process.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [0, 1]; on any device.
            labels: int64 ``[B]``, in [0, num_classes).
            measure_clean: measure the accuracy on the images as they are too, by a forward pass more.

        Returns:
            Means over the minibatch, that of all processes.

        Raises:
            TypeError, ValueError: for bad images or labels, by name, before anything is changed.
            FloatingPointError: if an inner gradient, the loss, or the norm of a gradient that is to be clipped, is NaN
                or infinite; no weight is changed then.
        """
        result = self._step(images, labels, measure_clean=measure_clean)
        if self.average is not None:
            self.average.update(self.model)
        return result

    def fit(
        self,
        loader: Iterable[tuple[Tensor, Tensor]],
        *,
        epochs: int,
        scheduler: LRScheduler | None = None,
        schedule_every: Literal["epoch", "step"] = "epoch",
        callbacks: Iterable[Callable[[EpochResult], None]] = (),
        between_steps: Callable[[], None] | None = None,
        progress: bool | None = None,
    ) -> list[EpochResult]:
        """Trains for a number of epochs, or goes on with a fit whose state was loaded.

        To go on, it is called as it was: with as many epochs, a new scheduler of the same kind, which gets its state
        back, and a loader that gives the same minibatches. A :class:`adt_fast.data.BatchLoader` begins within its epoch
        without computing what was done; other loaders are iterated past it, after PyTorch's global generators have been
        put back to where they were when the epoch began, so that a ``DataLoader`` shuffles as it did. What a loader
        keeps elsewhere, such as the epoch of a ``DistributedSampler`` or NumPy's generator, is the caller's to restore.

        Args:
            loader: gives (images, labels) as :meth:`step` takes them; iterated once per epoch. Minibatches from host
                memory are copied to a GPU one ahead, while it works.
            epochs: >= 1.
            scheduler: of the learning rate. Default: None, for a constant one.
            schedule_every: whether its ``step()`` is called once per ``"epoch"`` (default) or per minibatch,
                ``"step"``.
            callbacks: each is called after every epoch.
            between_steps: called between the minibatches of an epoch. There, and in callbacks, :meth:`state_dict` tells
                all that it takes to go on.
            progress: show a progress bar on stderr, with the epoch's loss, accuracy on adversarial and clean images and
                images per second so far, and the time left of the fit; of several processes only the first does.
                Default: where stderr is a terminal.

        Returns:
            One result per epoch, those before a stop included.

        Raises:
            ValueError: if an argument is bad, differs from that of the fit to go on with, or the loader is empty.
            TypeError, FloatingPointError: see :meth:`step`.
        """
        check_int("epochs", epochs, 1, 2**31)
        check_choice("schedule_every", schedule_every, ("epoch", "step"))
        if not isinstance(loader, Iterable):
            raise TypeError(f"loader must give batches (images, labels), got {type(loader).__name__}")
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(f"scheduler must be a torch.optim.lr_scheduler.LRScheduler, got {type(scheduler).__name__}")
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError("scheduler must be one whose step() needs no metric, got ReduceLROnPlateau: step it in a "
                            "callback")
        if not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks must be functions in a list, got {type(callbacks).__name__}")
        callbacks = list(callbacks)
        for name, call in (*(("callbacks", call) for call in callbacks), ("between_steps", between_steps)):
            if not callable(call) and not (name == "between_steps" and call is None):
                raise TypeError(f"{name} must be callable, got {type(call).__name__}")
        settings = FitSettings.of(loader, epochs=epochs, scheduler=scheduler, schedule_every=schedule_every)
        state = self._begin(settings, scheduler)
        total = None if settings.batches is None else settings.batches * epochs
        disable = True if not self.processes.is_first else None if progress is None else not progress
        try:
            with tqdm(total=total, initial=state.batches_done or 0, unit="batch", disable=disable) as bar:
                while state.epoch <= epochs:
                    bar.set_description(f"epoch {state.epoch}/{epochs}")
                    self._epoch(state, loader, scheduler if schedule_every == "step" else None, between_steps, bar)
                    result = state.sums.result(state.epoch, float(self.optimizer.param_groups[0]["lr"]))
                    if scheduler is not None and schedule_every == "epoch":
                        scheduler.step()
                    state.end_epoch(result, _epoch_of(loader))
                    self._random_at_start = None
                    for callback in callbacks:
                        callback(result)
        finally:
            self._progress = self._scheduler = self._to_restore = self._random_at_start = None
        return state.results

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from: tensors, and plain values, nested.

        The weights and statistics of the model without wrappers and their average, the optimizer's state, jointly
        trained networks with theirs, the maximizer's noise; during :meth:`fit` where that stands; and what each process
        has of its own: the decisions of its precision guard and PyTorch's global generators. A state taken between two
        minibatches or epochs, saved as ``save_checkpoint(path, *pack_state(...))`` has it, goes on bit for bit on a CPU
        with as many threads. Tensors are the trainer's own, which further steps change: save or copy them first.

        With several processes, all call it, and the state of the first is the one to save: the others' have None for
        what each process has of its own.
        """
        fit = None
        if self._progress is not None:
            scheduler = self._to_restore["scheduler"] if self._to_restore is not None else \
                None if self._scheduler is None else self._scheduler.state_dict()
            fit = {"progress": self._progress.state_dict(), "scheduler": scheduler}
        return trainer_state(self, fit, self.processes.gather(self._own_state()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, into a trainer that was made with the same settings.

        The next :meth:`fit` goes on with the one that the state was taken in, if any. For a new fit from that state,
        set its ``"fit"`` to None. With several processes, all load the state that the first one saved. It may be of
        another number of processes: then they go on with the first one's precision guard, and PyTorch's global
        generators stay as they are.

        Raises:
            TypeError, ValueError: if it is of another model, optimizer or method, or no such state; the message names
                what differs, and nothing is changed then.
        """
        check_trainer_state(self, state)
        every = state["processes"]
        same_processes = len(every) == self.processes.size
        own = every[self.processes.rank if same_processes else 0]
        if self.method.maximizer is not None:
            # First, for the engine looks at its state itself before it changes anything.
            self.method.maximizer.input_gradient.load_state_dict(own["engine"])
            self.method.maximizer.noise.load_state_dict(state["maximizer"]["noise"])
        unwrap(self.model).load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"]["state"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.method.joint is not None:
            self.method.joint.load_state_dict(state["joint"])
        self._progress = self._to_restore = None
        if state["fit"] is not None:
            self._progress = FitProgress.from_state(state["fit"]["progress"])
            groups = [{name: value for name, value in group.items() if name != "params"}
                      for group in self.optimizer.param_groups]
            random = {name: own[name] if same_processes else None for name in ("random", "random_at_start")}
            self._to_restore = copy.deepcopy({"scheduler": state["fit"]["scheduler"], "groups": groups, **random})

    def _own_state(self) -> dict[str, Any]:
        """What this process has of its own."""
        maximizer = self.method.maximizer
        state = {"engine": None if maximizer is None else maximizer.input_gradient.state_dict()}
        if self._to_restore is not None:  # loaded, and not gone on with yet
            return state | {name: self._to_restore[name] for name in ("random", "random_at_start")}
        if self._progress is None:
            return state | {"random": None, "random_at_start": None}
        return state | {"random": random_state(device_of(self.model)), "random_at_start": self._random_at_start}

    def _begin(self, settings: FitSettings, scheduler: LRScheduler | None) -> FitProgress:
        """The progress of a new fit, or of the one to go on with, whose scheduler and learning rates are put back."""
        restored = self._to_restore
        if restored is None:
            self._progress = FitProgress(settings)
        else:
            assert self._progress is not None  # loaded with it
            self._progress.settings.check_same(settings)
            if scheduler is not None:
                check_scheduler_state(scheduler, restored["scheduler"])
                scheduler.load_state_dict(restored["scheduler"])
            for group, saved in zip(self.optimizer.param_groups, restored["groups"], strict=True):
                group.update(saved)  # a new scheduler has set them to those of the first step
        self._scheduler = scheduler
        return self._progress

    def _epoch(
        self,
        state: FitProgress,
        loader: Iterable[tuple[Tensor, Tensor]],
        scheduler: LRScheduler | None,
        between_steps: Callable[[], None] | None,
        bar: tqdm[Any],
    ) -> None:
        """The minibatches of the epoch under way that are not done yet."""
        sums, done = state.sums, state.sums.batches
        start = time.perf_counter() - sums.seconds
        random = self._enter_epoch(state, loader)
        for images, labels in self._batches(loader, done):
            if random is not None:  # only now, for the loader may have drawn from the generators to come here
                restore_random_state(random, device_of(self.model))
                random = None
            if sums.batches > done and between_steps is not None:
                between_steps()
            sums.add(self.step(images, labels, measure_clean=sums.batches % _CLEAN_EVERY == 0))
            sums.seconds = time.perf_counter() - start
            if scheduler is not None:
                scheduler.step()
            bar.set_postfix_str(sums.described(self.method.maximizer is not None), refresh=False)
            bar.update()
        if sums.batches == done:
            raise ValueError("loader must give at least one batch, it is empty" if done == 0 else
                             f"loader must give more than the {done} batches of this epoch that are done")

    def _enter_epoch(self, state: FitProgress, loader: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor] | None:
        """Notes where loader and generators stand, or puts them back there.

        Gives the state that the generators are to have before the next step, where that is another one.
        """
        device, restored = device_of(self.model), self._to_restore
        self._to_restore = None
        if restored is None:
            self._random_at_start, state.loader_epoch = random_state(device), _epoch_of(loader)
            return None
        if isinstance(loader, BatchLoader) and state.loader_epoch is not None:
            loader.epoch = state.loader_epoch
        state.loader_epoch = _epoch_of(loader)
        if restored["random_at_start"] or restored["random"]:
            restore_random_state(restored["random_at_start"] or restored["random"], device)
        self._random_at_start = restored["random_at_start"] or random_state(device)
        return restored["random"] if state.sums.batches else None

    def _batches(self, loader: Iterable[tuple[Tensor, Tensor]], done: int) -> Iterable[tuple[Tensor, Tensor]]:
        """The minibatches of an epoch that are not done yet."""
        if isinstance(loader, BatchLoader):
            return loader.from_batch(done)
        device, rest = device_of(self.model), pairs("loader", islice(loader, done, None))
        return rest if device is None else prefetched(rest, device)


def _epoch_of(loader: Iterable[tuple[Tensor, Tensor]]) -> int | None:
    """What a BatchLoader draws next; None for other loaders."""
    return loader.epoch if isinstance(loader, BatchLoader) else None


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
        outer_precision, accumulation_steps, max_grad_norm, ema_decay: see :class:`Trainer`.

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
        accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ) -> None:
        check_model(model)
        self.noise = NoiseStream(seed, device_of(model) or "cpu")
        """What the distributions are sampled with; a part of the trainer's state."""
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
        super().__init__(
            model,
            optimizer,
            method,
            outer_mode=outer_mode,
            outer_precision=outer_precision,
            accumulation_steps=accumulation_steps,
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
        )
