"""What every attack shares: its model, its ball, its noise, and the checks of a minibatch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .._batch_check import BatchCheck
from .._checks import check_ball
from ..input_gradient import FLOAT32, EngineOptions, GradientSession, InputGradient
from ..losses import PerExampleLoss, RelativeLoss, cross_entropy
from ..model_state import ModelMode, device_of
from ..noise import NoiseStream


class Attack(ABC):
    """Images near the given ones, on which the model's loss is high.

    An attack leaves no trace on the model, see :class:`adt_fast.input_gradient.InputGradient`. A subclass defines
    :meth:`perturb`.

    Args:
        model: images ``[B, C, H, W]`` in [lower, upper] -> logits ``[B, num_classes]``; it normalises inside.
        epsilon: radius of the ball around each image, > 0, in the images' units.
        lower, upper: the data bounds, lower < upper. Adversarial images stay inside.
        loss: the loss of each example to be raised, see :mod:`adt_fast.losses`. Default: cross entropy.
        model_mode: how the model runs while attacked: ``"eval"`` (default), ``"train"`` or ``"keep"``.
        engine: how gradients are computed, see :class:`adt_fast.input_gradient.EngineOptions`. Default: in float32.
        check_finite: raise FloatingPointError on a gradient that is NaN or infinite.
        noise: where random numbers come from; every call advances it. Default: a stream seeded from torch's default
            generator, so that ``torch.manual_seed`` governs. It follows the images from one device to another.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        lower: float = 0.0,
        upper: float = 1.0,
        loss: PerExampleLoss = cross_entropy,
        model_mode: ModelMode = "eval",
        engine: EngineOptions = FLOAT32,
        check_finite: bool = True,
        noise: NoiseStream | None = None,
    ) -> None:
        check_ball(epsilon, lower, upper)
        if noise is not None and not isinstance(noise, NoiseStream):
            raise TypeError(f"noise must be a NoiseStream or None, got {type(noise).__name__}")
        self.input_gradient = InputGradient(
            model, loss=loss, model_mode=model_mode, options=engine, radius=epsilon, check_finite=check_finite
        )
        self.epsilon = float(epsilon)
        self.lower = float(lower)
        self.upper = float(upper)
        self.noise = seeded_by_torch(device_of(self.model)) if noise is None else noise
        self._check_batch = BatchCheck(model, self.lower, self.upper)

    @property
    def model(self) -> nn.Module:
        """The model under attack, without wrappers."""
        return self.input_gradient.model

    @abstractmethod
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial candidates ``[n, B, C, H, W]``, fresh, for a minibatch that was checked; n >= 1 is the attack's.

        This is what training methods use: it trusts its arguments.
        """

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The adversarial images; where the attack has several candidates for an image, the one of highest loss.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, in [lower, upper], on the model's device.
            labels: int64 ``[B]``, the true classes.

        Returns:
            ``[B, C, H, W]``, like images; within epsilon of them and inside the data bounds.

        Raises:
            TypeError, ValueError: for bad images or labels, by name, before anything is changed.
            FloatingPointError: if a gradient is not finite and ``check_finite`` is on.
        """
        self._check_batch(images, labels)
        # Evaluation loops may run under inference_mode, where nothing has a gradient: leave it, with ordinary copies.
        with torch.inference_mode(False):
            images, labels = (tensor.clone() if tensor.is_inference() else tensor for tensor in (images, labels))
            # Clamped here for every attack: the paper's recipe of EXP samples x + delta as it is.
            candidates = self.perturb(images, labels).clamp_(self.lower, self.upper)
            return candidates[0] if len(candidates) == 1 else self._worst(candidates, images, labels)

    def noise_on(self, device: torch.device) -> NoiseStream:
        """The attack's noise, moved to the device if it is elsewhere."""
        if self.noise.device != device:
            self.noise.state = self.noise.state.to(device)
        return self.noise

    @property
    def ball(self) -> dict[str, float]:
        """epsilon, lower and upper, as the operators take them."""
        return {"epsilon": self.epsilon, "lower": self.lower, "upper": self.upper}

    @property
    def unclamped_ball(self) -> dict[str, float]:
        """The same without data bounds."""
        return self.ball | {"lower": -math.inf, "upper": math.inf}

    def targets(self, gradient: GradientSession, images: Tensor, labels: Tensor) -> Tensor:
        """What the loss compares logits with: the labels, or what it makes of the logits of the natural images."""
        loss = self.input_gradient.loss
        return loss.targets(gradient.logits(images)) if isinstance(loss, RelativeLoss) else labels

    def _worst(self, candidates: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        def losses(gradient: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor]:
            targets = repeated(self.targets(gradient, images, labels), len(candidates))
            return (gradient.losses(candidates.flatten(0, 1), targets),)

        (found,) = self.input_gradient.run(losses, images, labels)
        worst = found.view(len(candidates), -1).argmax(0)  # [B]
        return candidates[worst, torch.arange(len(worst), device=worst.device)]


def repeated(targets: Tensor, samples: int) -> Tensor:
    """The targets ``[B, ...]`` of k samples folded into one batch, ``[k * B, ...]``."""
    return targets.repeat(samples, *[1] * (targets.dim() - 1))


def seeded_by_torch(device: torch.device | None = None) -> NoiseStream:
    """A noise stream on the device (default: the CPU), its seed drawn from torch's default generator."""
    return NoiseStream(int(torch.randint(2**62, ())), device or "cpu")
