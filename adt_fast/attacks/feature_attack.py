"""FeatureAttack (paper, Section C.5, "FeaAttack"): towards the features of images of other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._support.batch_check import BatchCheck
from .._support.checks import check_int
from .._support.layout import preferred_layout, with_layout
from ..input_gradient import GradientSession, InputGradient
from ..losses import RelativeLoss
from ._ball import linf_start, symmetric_uniform
from ._checks import check_logits, check_step_size
from ._feature_map import FeatureMap, Features
from .base import Attack


class FeatureAttack(Attack):
    """Sign-gradient steps that raise the cosine between an image's features and those of an image of another class.

    For each image, target images are drawn from a pool, without replacement, and tried one after another: from a
    uniform point of the ball, ``steps`` steps towards the target's features. An image is done once it is misclassified
    at the end of a trial; one that is misclassified as it is, is left alone. Of the others the last trial is returned.

    By its text the paper minimises the cosine similarity, which would lead away from the target. The code it cites,
    https://github.com/Line290/FeatureAttack, minimises 1 - cosine, and so does this: it approaches the target. In other
    respects that code differs from the paper and from this: it has features after pooling (``features="post-pool"``),
    draws targets with replacement, and climbs towards a batch of them at once until one succeeds, looking before each
    step and not after the last.

    Args:
        model, epsilon, **options: see :class:`Attack`; there is no loss to choose, and no class to go for. Restarts
            need a pool: by itself, what is left of a minibatch may have no targets.
        targets: images to try for each image, at most, >= 1; where the pool has fewer of other classes, each is tried
            once.
        steps: for each target, >= 0.
        step_size: in the images' units, > 0. Default: epsilon / 8, as in the paper.
        features: ``"pre-pool"``, the feature map before the global average pooling, as in the paper, or
            ``"post-pool"``, the average. They are found by the model's method ``features(images)`` (the map before
            pooling, which this library's models have), or else at its only nn.AdaptiveAvgPool2d or nn.AvgPool2d.
        layer: the name of a module whose output, a tensor, the features are, instead.
        layer_input: whether they are that module's first positional input.
        pool: (images ``[P, C, H, W]``, labels int64 ``[P]``) to draw targets from, of the attacked images' dtype and
            in the data bounds. Default: the minibatch itself, and with a :attr:`share` the images at hand.

    Raises:
        TypeError, ValueError: for a bad argument, by name; where the features cannot be found. A call also raises
            ValueError where the pool has no image of another class than that of one of the images.
    """

    takes_targets = False

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        targets: int = 200,
        steps: int = 50,
        step_size: float | None = None,
        features: Features = "pre-pool",
        layer: str | None = None,
        layer_input: bool = False,
        pool: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> None:
        if "loss" in options:
            raise TypeError("loss is no option of FeatureAttack, which compares features: use PGD for a loss")
        super().__init__(model, epsilon, **options)
        if self.restarts > 1 and pool is None:
            raise ValueError(f"restarts needs a pool, or must be 1, got {self.restarts}")
        check_int("targets", targets, 1, 2**31)
        check_int("steps", steps, 0, 2**31)
        self.most_targets = targets
        self.steps = steps
        self.step_size = check_step_size(self.epsilon / 8 if step_size is None else step_size)
        self.features: Features = features
        self.layer = layer
        self.layer_input = layer_input
        self.feature_map = FeatureMap(self.model, features=features, layer=layer, layer_input=layer_input)
        self.feature_gradient = InputGradient(
            self.feature_map,
            loss=_Cosine(),
            model_mode=self.input_gradient.model_mode,
            options=self.input_gradient.options,
            radius=self.epsilon,
            check_finite=self.input_gradient.check_finite,
        )
        self.pool = None if pool is None else _checked_pool(pool, BatchCheck(model, self.lower, self.upper))
        self._features_checked = False

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``. It takes ``1 + targets`` draws of the noise, however many are tried.

        Draw 0 orders the targets, and draw ``1 + i`` is the start towards the i-th; an image's noise depends on its
        place in the minibatch, not on how the others fare.
        """
        x = with_layout(images.detach(), preferred_layout(images))
        noise = self.noise_on(x.device)
        pool_images, pool_labels = self._pool_for(x, labels)
        chosen, available = self._choose(labels, pool_labels)
        if not self._features_checked:
            self.feature_map.check(x[:1], self.input_gradient.model_mode)
            self._features_checked = True
        x_adv = x.clone()
        right = self._right(x, labels)
        for trial, targets in enumerate(chosen.unbind(1)):
            attacked = (right & (trial < available)).nonzero().squeeze(1)
            if len(attacked) == 0:
                break
            starts = linf_start(x, noise.state, draw=1 + trial, first_example=self.first_example, **self.ball)
            x_adv[attacked] = self._approach(starts[attacked], x[attacked], pool_images[targets[attacked]])
            right[attacked] = self._right(x_adv[attacked], labels[attacked])
        noise.advance(1 + self.most_targets)
        return x_adv.unsqueeze(0)

    def _approach(self, starts: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """One trial ``[n, C, H, W]``, for images that start and go as given."""
        settings = (*self.ball.values(), self.steps, self.step_size)
        pairs = torch.stack([images, targets], 1)
        (x_adv,) = self.feature_gradient.run(self._ascend, starts, pairs, key=(type(self), settings))
        return x_adv

    def _ascend(self, gradient: GradientSession, starts: Tensor, pairs: Tensor) -> tuple[Tensor]:
        """starts ``[n, C, H, W]``, pairs ``[n, 2, C, H, W]`` of an image and its target."""
        layout = gradient.layout(starts)
        images, targets = (with_layout(part, layout) for part in pairs.unbind(1))
        loss: Any = self.feature_gradient.loss
        wanted = loss.targets(gradient.logits(targets))
        x_adv = starts.clone(memory_format=layout)
        for _ in range(self.steps):
            ops.linf_step_(x_adv, gradient(x_adv, wanted).grad, images, step_size=self.step_size, **self.ball)
        return (x_adv,)

    def _right(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images the classifier gets right, bool ``[n]``."""
        (logits,) = self.run_on_engine(lambda session, images, _: (session.logits(images),), images, labels, None)
        if self.input_gradient.check_finite:
            check_logits(logits)
        return logits.argmax(1) == labels

    def _pool_for(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The pool on the images' device."""
        if self.pool is None:
            return images, labels
        pool_images, pool_labels = self.pool
        if pool_images.dtype != images.dtype:
            raise TypeError(f"pool must have images of the attacked ones' dtype, {images.dtype}, got "
                            f"{pool_images.dtype}")
        if pool_images.shape[1:] != images.shape[1:]:
            raise ValueError(f"pool must have images of the attacked ones' shape, {list(images.shape[1:])}, got "
                             f"{list(pool_images.shape[1:])}")
        self.pool = pool_images.to(images.device), pool_labels.to(images.device)
        return self.pool

    def _choose(self, labels: Tensor, pool_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of each image, indices in the pool ``[B, n]``, and how many of them are of another class ``[B]``."""
        other = labels.unsqueeze(1) != pool_labels  # [B, P]
        available = other.sum(1)
        if not bool(available.all()):
            alone = int(labels[available.argmin()])
            source = "images" if self.pool is None else "pool"
            remedy = "; or give a pool of targets" if self.pool is None else ""
            raise ValueError(f"{source} must have one of another class than {alone}, for a target{remedy}")
        # Uniform keys are the same on every device, and in every dtype of the images.
        zeros = torch.zeros(other.shape, device=labels.device)
        keys = symmetric_uniform(zeros, self.noise.state, first_example=self.first_example)
        order = keys.masked_fill_(~other, math.inf).argsort(stable=True, dim=1)
        return order[:, : self.most_targets], available


@dataclass(frozen=True)
class _Cosine(RelativeLoss):
    """The cosine between features and target features, ``[N, F]``: one number per example."""

    def targets(self, natural_logits: Tensor) -> Tensor:
        return natural_logits

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cosine_similarity(logits, targets)


def _checked_pool(pool: tuple[Tensor, Tensor], check: BatchCheck) -> tuple[Tensor, Tensor]:
    if not isinstance(pool, (tuple, list)) or len(pool) != 2:
        raise TypeError("pool must be a pair, (images [P, C, H, W], labels [P]), or None")
    try:
        check(*pool)
    except (TypeError, ValueError) as error:
        raise type(error)(f"pool: {error}") from None
    return pool[0].detach(), pool[1]
