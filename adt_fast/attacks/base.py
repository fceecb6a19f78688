"""What every attack shares: its model, its ball, its noise, and the checks of a minibatch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._support.batch_check import BatchCheck
from .._support.checks import check_ball, check_choice, check_int
from .._support.model_state import ModelMode, device_of
from ..batch_share import BatchShare
from ..input_gradient import FLOAT32, EngineOptions, GradientSession, InputGradient, Loop
from ..losses import PerExampleLoss, RelativeLoss, cross_entropy, towards
from ..noise import NoiseStream, seeded_by_torch
from ._ball import Norm, confine

Target = Literal["none", "given", "least-likely"]


class Attack(ABC):
    """Images near the given ones, on which the model's loss is high.

    An attack leaves no trace on the model, see :class:`adt_fast.input_gradient.InputGradient`. A subclass defines
    :meth:`perturb`, and says so where it draws no noise or cannot go for a class.

    Args:
        model: images ``[B, C, H, W]`` in [lower, upper] -> logits ``[B, num_classes]``; it normalises inside.
        epsilon: radius of the ball around each image, > 0, in the images' units.
        lower, upper: the data bounds, lower < upper. Adversarial images stay inside.
        loss: the loss of each example to be raised, see :mod:`adt_fast.losses`. Default: cross entropy.
        target: ``"none"`` (default) raises the loss of the true class. ``"given"`` lowers that of the class given in
            place of the true one; ``"least-likely"`` that of the class which the model finds least likely for the
            image.
        restarts: how often the attack is run when it is called, >= 1, each time with noise of its own and on the images
            only that have not been misclassified yet (or, with a target, not as that).
        model_mode: how the model runs while attacked: ``"eval"`` (default), ``"train"`` or ``"keep"``.
        engine: how gradients are computed, see :class:`adt_fast.input_gradient.EngineOptions`. Default: in float32.
        check_finite: raise FloatingPointError on a gradient that is NaN or infinite.
        noise: where random numbers come from; every call advances it. Default: a stream seeded from torch's default
            generator, so that ``torch.manual_seed`` governs. It follows the images from one device to another.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    is_black_box = False
    """Whether it sees no gradient of the model that it is tried on."""

    draws_noise = True
    """Whether two runs may differ."""

    takes_targets = True
    """Whether it can go for a class."""

    norm: Norm = "linf"
    """Of the ball."""

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        lower: float = 0.0,
        upper: float = 1.0,
        loss: PerExampleLoss = cross_entropy,
        target: Target = "none",
        restarts: int = 1,
        model_mode: ModelMode = "eval",
        engine: EngineOptions = FLOAT32,
        check_finite: bool = True,
        noise: NoiseStream | None = None,
    ) -> None:
        check_ball(epsilon, lower, upper)
        if not isinstance(engine, EngineOptions):
            raise TypeError(f"engine must be EngineOptions, got {type(engine).__name__}")
        if noise is not None and not isinstance(noise, NoiseStream):
            raise TypeError(f"noise must be a NoiseStream or None, got {type(noise).__name__}")
        self._check_target(target)
        self._check_restarts(restarts)
        if target != "none":
            loss = towards(loss)
        self.target: Target = target
        self.restarts = restarts
        self.input_gradient = InputGradient(
            model, loss=loss, model_mode=model_mode, options=engine, radius=epsilon, check_finite=check_finite
        )
        self.epsilon = float(epsilon)
        self.lower = float(lower)
        self.upper = float(upper)
        self.noise = seeded_by_torch(device_of(self.model)) if noise is None else noise
        self._check_batch = BatchCheck(model, self.lower, self.upper)
        self._share: BatchShare | None = None

    @property
    def model(self) -> nn.Module:
        """The model under attack, without wrappers."""
        return self.input_gradient.model

    @property
    def share(self) -> BatchShare | None:
        """Which images of a whole minibatch :meth:`perturb` is given; None (default): they are the whole.

        With a share, each image is perturbed as it is in the whole minibatch. An attack says so where it looks at other
        images too; so does the model in train mode, whose batch statistics are those of the images at hand.
        """
        return self._share

    @share.setter
    def share(self, share: BatchShare | None) -> None:
        if not isinstance(share, (BatchShare, type(None))):
            raise TypeError(f"share must be a BatchShare or None, got {type(share).__name__}")
        self._share = share

    @abstractmethod
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial candidates ``[n, B, C, H, W]``, fresh, for a minibatch that was checked; n >= 1 is the attack's.

        This is what training methods use: it trusts its arguments.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [lower, upper], on the model's device.
            labels: int64 ``[B]``, the true classes; those to go for with ``target="given"``.

        Raises:
            ValueError: if the images go beyond the :attr:`share`.
        """

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The adversarial images.

        Where there are several candidates for an image, it is the one of highest loss among those that the model
        misclassifies (or, with a target, takes for that class), or of all where there are none.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [lower, upper], on the model's device.
            labels: int64 ``[B]``, the true classes; those to go for with ``target="given"``.

        Returns:
            ``[B, C, H, W]``, like images; not further than epsilon from them, exactly, and inside the data bounds.

        Raises:
            TypeError, ValueError: for bad images or labels, by name, before anything is changed; for a share where
                restarts go on with some of its images.
            FloatingPointError: if a gradient is not finite and ``check_finite`` is on.
        """
        self._check_batch(images, labels)
        if self.share is not None and self.restarts > 1:
            raise ValueError(f"share must be None with restarts, for the images that are left are not contiguous, got "
                             f"{self.share}")
        found = self._run(images, labels)
        for _ in range(self.restarts - 1):
            remaining = self._reached(found, images, labels).logical_not().nonzero().squeeze(1)
            if len(remaining) == 0:
                break
            others = images[remaining], labels[remaining]
            found[remaining] = self._worst(torch.stack([found[remaining], self._run(*others)]), *others)
        return found

    def _run(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images of one run, ``[B, C, H, W]``."""
        # Confined here for every attack: the paper's recipe of EXP samples x + delta as it is, and sums are rounded.
        candidates = confine(self.perturb(images, labels), images, norm=self.norm, **self.ball)
        return candidates[0] if len(candidates) == 1 else self._worst(candidates, images, labels)

    def noise_on(self, device: torch.device) -> NoiseStream:
        """The attack's noise, moved to the device if it is elsewhere."""
        if self.noise.device != device:
            self.noise.state = self.noise.to(device).state
        return self.noise

    @property
    def ball(self) -> dict[str, Any]:
        """epsilon, lower and upper, as the operators take them."""
        return {"epsilon": self.epsilon, "lower": self.lower, "upper": self.upper}

    @property
    def unclamped_ball(self) -> dict[str, float]:
        """The same without data bounds."""
        return self.ball | {"lower": -math.inf, "upper": math.inf}

    @property
    def first_example(self) -> int:
        """Index of the first image at hand in the whole minibatch, as the operators take it."""
        return 0 if self.share is None else self.share.first_example

    def whole_batch_size(self, images: Tensor) -> int:
        """How many images the whole minibatch has; images are those at hand ``[B, ...]``, or like them."""
        return len(images) if self.share is None else self.share.batch_size

    def run_on_engine(
        self,
        loop: Loop,
        images: Tensor,
        labels: Tensor,
        settings: tuple[Hashable, ...] | None,
        *,
        reads: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, ...]:
        """The results of a loop for the images at hand, see :meth:`adt_fast.input_gradient.InputGradient.run`.

        Args:
            loop, images, labels, reads: as there.
            settings: all that the loop depends on but the ball, the target and the share. With them it may be captured
                in a CUDA graph; None if it is not to be.

        Raises:
            ValueError: if the images go beyond the share.
        """
        if self.share is not None:
            self.share.check_fits(images)
        key = None if settings is None else (type(self), *self.ball.values(), self.target, self.share, *settings)
        return self.input_gradient.run(loop, images.detach(), labels, reads=reads, key=key)

    def targets(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> Tensor:
        """What the loss compares logits with, ``[B, ...]``: classes, or what it makes of the natural images' logits.

        Args:
            gradient: the engine's session for this minibatch.
            images: ``[B, C, H, W]``, the natural ones.
            labels: int64 ``[B]``, as for :meth:`perturb`.
        """
        loss = self.input_gradient.loss
        if isinstance(loss, RelativeLoss):
            return loss.targets(gradient.logits(images))
        return gradient.logits(images).argmin(1) if self.target == "least-likely" else labels

    def _worst(self, candidates: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The best candidate for the attack, ``[B, C, H, W]`` of ``[n, B, C, H, W]``."""

        def judge(gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            targets = repeated(self.targets(gradient, images, labels), len(candidates))
            logits = gradient.logits(candidates.flatten(0, 1))
            losses = self.input_gradient.loss(logits, targets)
            return losses, self._is_reached(logits, repeated(labels, len(candidates)), targets)

        losses, reached = (found.view(len(candidates), -1) for found in self.input_gradient.run(judge, images, labels))
        losses = losses.masked_fill(reached.any(0) & ~reached, -math.inf)
        worst = losses.argmax(0)  # [B]
        return candidates[worst, torch.arange(len(worst), device=worst.device)]

    def _reached(self, x_adv: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Which adversarial images do what they are for, bool ``[B]``."""

        def judge(gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
            return (self._is_reached(gradient.logits(x_adv), labels, self.targets(gradient, images, labels)),)

        (reached,) = self.input_gradient.run(judge, images, labels)
        return reached

    def _is_reached(self, logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        found = logits.argmax(1)
        return found != labels if self.target == "none" else found == targets

    def _check_target(self, target: Target) -> None:
        check_choice("target", target, get_args(Target))
        if target != "none" and not self.takes_targets:
            raise ValueError(f"target must be 'none' for {type(self).__name__}, which can go for no class, "
                             f"got {target!r}")

    def _check_restarts(self, restarts: int) -> None:
        check_int("restarts", restarts, 1, 2**31)
        if restarts > 1 and not self.draws_noise:
            raise ValueError(f"restarts must be 1 for {type(self).__name__}, which draws no noise, got {restarts}")


def repeated(targets: Tensor, samples: int) -> Tensor:
    """The targets ``[B, ...]`` of k samples folded into one batch, ``[k * B, ...]``."""
    return targets.repeat(samples, *[1] * (targets.dim() - 1))
