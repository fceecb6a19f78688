"""SPSA (Uesato et al., 2018; paper, Section 5.3): ascent on a gradient estimated from the logits alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._support.checks import check_bool, check_int, check_positive
from .._support.layout import preferred_layout, with_layout
from ..input_gradient import FLOAT32, EngineOptions, GradientSession
from ..losses import Margin, PerExampleLoss
from ..noise import MAX_SAMPLES
from ._ball import linf_start
from ._checks import check_logits, check_start, check_step_size
from .base import Attack, repeated

_MARGIN = Margin()
_BETAS = (0.9, 0.999)
_ADAM_EPSILON = 1e-8


class SPSA(Attack):
    """Adam on a gradient estimated by simultaneous perturbation, projected onto the ball and the data bounds.

    The estimate at x is the mean of ``(loss(x + sigma v) - loss(x - sigma v)) / (2 sigma) v`` over ``samples / 2``
    directions v of independent signs. ``samples`` counts the images that are evaluated for an estimate, both ends of
    each direction, as in the authors' code (cleverhans), and as the paper's "batch size" is read here. They may lie
    outside of ball and data bounds by sigma.

    An image is done once it is misclassified (or, with a target, taken for that class), which one query finds out after
    each step; one that is so from the start is left alone. The attack uses no gradient of the model. The engine takes
    one of its first two images, where there is one, to check the frozen copy that it runs (:attr:`EngineOptions.twin`)
    and to size chunks.

    Args:
        model, epsilon, **options: see :class:`Attack`.
        samples: queries per estimate, even, >= 2. The paper has 256 to 2048.
        steps: at most, >= 0. The paper has 100.
        step_size: Adam's learning rate, in the images' units, > 0.
        sigma: half the distance between the ends of a direction, in the images' units, > 0.
        random_start: start from a uniform point of the ball, clamped to the data bounds, as in the authors' code,
            instead of from the image.
        query_batch: the engine's ``chunk``: at most this many images go through the model at once, >= 1. Default: as
            the engine's options have it, ``"auto"``.
        loss: what is climbed. Default: the margin.
        engine: as in :class:`Attack`, but in float32: in fewer bits steps of sigma are lost.
    """

    is_black_box = True

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        samples: int = 256,
        steps: int = 100,
        step_size: float = 0.01,
        sigma: float = 0.001,
        random_start: bool = True,
        query_batch: int | None = None,
        loss: PerExampleLoss = _MARGIN,
        engine: EngineOptions = FLOAT32,
        **options: Any,
    ) -> None:
        if query_batch is not None:
            check_int("query_batch", query_batch, 1, 2**31)
            engine = replace(engine, chunk=query_batch) if isinstance(engine, EngineOptions) else engine
        super().__init__(model, epsilon, loss=loss, engine=engine, **options)
        if engine.precision != "fp32":
            raise ValueError("engine must have precision='fp32', for a loss at images that differ by sigma, got "
                             f"{engine.precision!r}")
        check_int("samples", samples, 2, 2 * MAX_SAMPLES)
        if samples % 2:
            raise ValueError(f"samples must be even, two queries for each direction, got {samples}")
        check_int("steps", steps, 0, 2**31)
        check_positive("sigma", sigma)
        check_bool("random_start", random_start)
        check_start(loss, random_start)
        self.samples = samples
        self.steps = steps
        self.step_size = check_step_size(step_size)
        self.sigma = float(sigma)
        self.random_start = random_start
        self.queries: Tensor | None = None
        """How often the last run asked the model about each image, int64 ``[B]``; None before the first. Of several
        restarts it is the last one that was run, on the images that were left."""

    @torch.no_grad()
    def perturb(self, images: Tensor, labels: Tensor) -> Tensor:
        """One candidate, ``[1, B, C, H, W]``. It takes a draw of the noise for a random start, and one for each step,
        of :attr:`steps`, however many are taken; an image's noise depends on its place in the minibatch alone.
        """
        noise = self.noise_on(images.device)
        x_adv, self.queries = self.run_on_engine(self._climb, images, labels, None, reads=(noise.state,))
        noise.advance(self.steps + self.random_start)
        return with_layout(x_adv, preferred_layout(images)).unsqueeze(0)

    def _climb(self, session: GradientSession, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The adversarial images, and the queries that each took."""
        x = with_layout(images, session.layout(images))
        targets = self.targets(session, x, labels)
        # Targets other than the labels took a query.
        queries = torch.full_like(labels, 1 if targets is labels else 2)
        running = self._not_done(session, x, labels, targets).nonzero().squeeze(1)  # indices
        x_adv, adam = x.clone(), _Adam(x, self.step_size)
        if self.random_start:
            start = linf_start(x, self.noise.state, first_example=self.first_example, **self.ball)
            x_adv[running] = start[running]
        for step in range(self.steps):
            if len(running) == 0:
                break
            grad = self._estimate(session, x_adv[running], targets[running], running, step + self.random_start)
            x_adv[running] = self._projected(x_adv[running] + adam.step(running, grad), x[running])
            queries[running] += self.samples + 1
            running = running[self._not_done(session, x_adv[running], labels[running], targets[running])]
        return x_adv, queries

    def _estimate(
        self, session: GradientSession, x: Tensor, targets: Tensor, examples: Tensor, draw: int
    ) -> Tensor:
        """The gradient at ``[n, C, H, W]``; examples ``[n]`` are the images' places in the minibatch."""
        # As many images together as the engine takes at once, but one at least.
        images = max(1, (session.chunk or self.samples) // self.samples)
        parts = zip(x.split(images), targets.split(images), examples.split(images), strict=True)
        grad = torch.cat([self._estimate_at_once(session, *part, draw) for part in parts])
        if self.input_gradient.check_finite and not bool(torch.isfinite(grad).all()):
            bad = int((~torch.isfinite(grad)).flatten(1).any(1).sum())
            raise FloatingPointError(f"the estimated gradient of {bad} of {len(grad)} images is NaN or infinite, as "
                                     "their losses are. Check the model's weights")
        return grad

    def _estimate_at_once(
        self, session: GradientSession, x: Tensor, targets: Tensor, examples: Tensor, draw: int
    ) -> Tensor:
        signs = self._signs(x, examples, draw)  # [samples / 2, n, C, H, W]
        queried = torch.cat([x + self.sigma * signs, x - self.sigma * signs]).flatten(0, 1)
        losses = session.losses(queried, repeated(targets, self.samples)).view(2, len(signs), len(x))
        slopes = (losses[0] - losses[1]) / (2 * self.sigma)
        return torch.einsum("kn,kn...->n...", slopes, signs) / len(signs)

    def _signs(self, x: Tensor, examples: Tensor, draw: int) -> Tensor:
        """+1 or -1, each as likely: the signs of the normals of each example."""
        normals = [
            ops.normal(one, self.noise.state, samples=self.samples // 2, draw=draw, first_example=example)
            for one, example in zip(x.split(1), (self.first_example + examples).tolist(), strict=True)
        ]
        return torch.where(torch.cat(normals, 1) < 0, -1.0, 1.0).to(x.dtype)

    def _projected(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return x_adv.clamp(x - self.epsilon, x + self.epsilon).clamp_(self.lower, self.upper)

    def _not_done(self, session: GradientSession, x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Which images the attack has not succeeded on yet, bool ``[n]``; one query each."""
        logits = session.logits(x)
        if self.input_gradient.check_finite:
            check_logits(logits)
        return ~self._is_reached(logits, labels, targets)


class _Adam:
    """Adam's moments of every image of a minibatch; a step moves some of them, all having gone as far.

    torch.optim.Adam would move, by its momentum, images that have no gradient any more.
    """

    def __init__(self, x: Tensor, step_size: float) -> None:
        self.step_size = step_size
        self.steps = 0
        self.moments = torch.zeros_like(x), torch.zeros_like(x)

    def step(self, examples: Tensor, grad: Tensor) -> Tensor:
        """Where the examples ``[n]`` of a minibatch go from here, uphill, ``[n, C, H, W]``."""
        self.steps += 1
        unbiased = []
        for moment, value, beta in zip(self.moments, (grad, grad.square()), _BETAS, strict=True):
            moment[examples] = torch.lerp(moment[examples], value, 1 - beta)
            unbiased.append(moment[examples] / (1 - beta**self.steps))
        first, second = unbiased
        return self.step_size * first / (second.sqrt() + _ADAM_EPSILON)
