"""One case an operator: its inputs, our call, the truth in float64, and plain PyTorch, eager and compiled."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

from adt_fast import NoiseStream, ops, reference
from adt_fast._operators import launch
from adt_fast._operators.launch import Ball, Draw

from . import plain_operators as plain
from .timing import Call

OURS = "adt_fast"
COPY = "copy"
EAGER = "eager"
COMPILED = "compile"
NOISE_AND_COMPILED = "noise + compile"  # eager noise, the rest compiled
CONTESTANTS = (EAGER, COMPILED, NOISE_AND_COMPILED)

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_BALL = {"epsilon": 8 / 255, "lower": 0.0, "upper": 1.0}
_SEED = 20200620


@dataclass(frozen=True)
class Workload:
    """The sizes and types an operator is measured at; ``dtype`` is that of x_adv and its gradient."""

    device: torch.device
    samples: int  # k
    batch: int  # B
    image: tuple[int, int, int]  # C, H, W
    dtype: torch.dtype
    layout: str

    @property
    def elements(self) -> int:
        """B * D."""
        return self.batch * math.prod(self.image)


@functools.cache
def _compiled(function: Callable, device_type: str) -> Callable:
    mode = "max-autotune-no-cudagraphs" if device_type == "cuda" else None
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


def forget_compiled() -> None:
    """Drops all compiled code; needed before another workload, or torch gives up compiling after a few."""
    _compiled.cache_clear()
    torch.compiler.reset()


def _as_it_is(function: Callable) -> Callable:
    return function


def _then(first: Call, second: Call) -> Call:
    def both() -> object:
        first()
        return second()

    return both


class OperatorCase(ABC):
    """One operator, on inputs that depend on the workload and ``input_set`` only.

    Calls may change the inputs in place, so :meth:`truth`, :meth:`ours` and :meth:`plain`, whose results are compared,
    each want a case of their own. ``step_size_scale`` shrinks the ascent steps: in timing, where a call is repeated on
    what it changed, it keeps (mu, rho) where they are.
    """

    name: ClassVar[str]

    def __init__(self, workload: Workload, input_set: int = 0, step_size_scale: float = 1.0) -> None:
        self.workload = workload
        self.step_size_scale = step_size_scale
        self._generator = torch.Generator(workload.device).manual_seed(_SEED + input_set)
        self.noise = NoiseStream(_SEED + input_set, workload.device).state
        # The levels of 8-bit images, so that some elements lie on the bounds.
        levels = self._images(torch.float32, lambda t: t.uniform_(0, 256, generator=self._generator))
        self.x = levels.floor_().clamp_(max=255).div_(255)
        self._make_inputs()

    @abstractmethod
    def _make_inputs(self) -> None:
        """Makes the tensors this operator needs beside x and the noise."""

    @abstractmethod
    def ours(self) -> dict[str, torch.Tensor]:
        """Calls the operator; returns what it computed, by name."""

    @abstractmethod
    def truth(self) -> dict[str, torch.Tensor]:
        """The same by the reference in float64."""

    @abstractmethod
    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        """The same by plain PyTorch, with the reference's noise: the form meant for compiling, or the eager one."""

    @abstractmethod
    def contestants(self) -> dict[str, Call]:
        """The plain forms as they are timed, by name; a form that the operator does not have is left out."""

    @abstractmethod
    def bytes_moved(self) -> int:
        """The fewest bytes to move: each input read once, each output written once, no noise stored."""

    def compiled(self, function: Callable) -> Callable:
        """``torch.compile`` at its best for fixed shapes."""
        return _compiled(function, self.workload.device.type)

    def flat(self, images: torch.Tensor) -> torch.Tensor:
        """A view ``[B, D]`` or ``[k, B, D]`` in the order of memory: how the plain operators see images."""
        if self.workload.layout == "channels_last":
            images = images.movedim(-3, -1)
        return images.view(*images.shape[:-3], -1)

    def _flat_copy(self, images: torch.Tensor) -> torch.Tensor:
        """The same, of images in any layout."""
        if self.workload.layout == "channels_last":
            images = images.movedim(-3, -1)
        return images.flatten(-3).contiguous()

    def _unflat(self, flat: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`flat`."""
        channels, height, width = self.workload.image
        if self.workload.layout == "channels_last":
            return flat.unflatten(-1, (height, width, channels)).movedim(-1, -3)
        return flat.unflatten(-1, (channels, height, width))

    def _images(
        self, dtype: torch.dtype, fill: Callable[[torch.Tensor], torch.Tensor], samples: int | None = None
    ) -> torch.Tensor:
        """``[B, C, H, W]``, or ``[k, B, C, H, W]`` with ``samples``, in the workload's layout."""
        batch = self.workload.batch * (samples or 1)
        images = torch.empty(
            (batch, *self.workload.image), device=self.workload.device, memory_format=_LAYOUTS[self.workload.layout]
        )
        images = fill(images).to(dtype)
        return images if samples is None else images.unflatten(0, (samples, self.workload.batch))

    def _normal(self, scale: float, dtype: torch.dtype = torch.float32, samples: int | None = None) -> torch.Tensor:
        return self._images(dtype, lambda t: t.normal_(0.0, scale, generator=self._generator), samples)

    def _bytes(self, *, float32: int = 0, stored: int = 0, stored_samples: int = 0) -> int:
        """Bytes of so many ``[B, D]`` tensors in float32 and in x_adv's dtype, and ``[k, B, D]`` in the latter."""
        size = self.workload.dtype.itemsize
        return self.workload.elements * (4 * float32 + size * (stored + stored_samples * self.workload.samples))


class _TanhGaussianCase(OperatorCase):
    """What the operators of the tanh-Gaussian share: (mu, rho), and the r and tanh(u) that plain code keeps."""

    def _make_inputs(self) -> None:
        w = self.workload
        self.mu, self.rho = self._normal(0.3), self._normal(0.3)
        self.grad_x_adv = self._normal(1.0, w.dtype, w.samples)
        self.x_adv = self._images(w.dtype, torch.Tensor.zero_, w.samples)
        self.r = torch.empty((w.samples, *self.flat(self.x).shape), device=w.device)
        self.tanh = torch.empty_like(self.r)
        self._keep(self.r.normal_(generator=self._generator))

    def _keep(self, r: torch.Tensor) -> None:
        """Leaves r and tanh(u) as eager sampling with r leaves them."""
        self.r.copy_(r)
        torch.addcmul(self.flat(self.mu), F.softplus(self.flat(self.rho)), self.r, out=self.tanh).tanh_()

    def _reference_normals(self, draw: int = 0) -> torch.Tensor:
        """``[k, B, D]``, computed in float64, rounded to float32."""
        r = reference.normal(self.x.double(), self.noise, samples=self.workload.samples, draw=draw)
        return self._flat_copy(r).float()

    @property
    def _flat_x_mu_rho(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.flat(self.x), self.flat(self.mu), self.flat(self.rho)

    @property
    def _density_bytes(self) -> int:
        return 4 * self.workload.samples * self.workload.batch


class Sample(_TanhGaussianCase):
    name = "sample"

    def ours(self) -> dict[str, torch.Tensor]:
        x_adv, neg_log_density = ops.tanh_gaussian_sample(
            self.x, self.mu, self.rho, self.noise, samples=self.workload.samples, dtype=self.workload.dtype, **_BALL
        )
        return {"x_adv": x_adv, "neg_log_density": neg_log_density}

    def truth(self) -> dict[str, torch.Tensor]:
        x, mu, rho = self.x.double(), self.mu.double(), self.rho.double()
        x_adv, neg_log_density = reference.tanh_gaussian_sample(
            x, mu, rho, self.noise, samples=self.workload.samples, **_BALL
        )
        return {"x_adv": x_adv, "neg_log_density": neg_log_density}

    def _eager(self) -> Call:
        return partial(plain.sample, *self._flat_x_mu_rho, self.r, self.flat(self.x_adv), self.tanh, **_BALL)

    def _fused(self, transform: Callable) -> Call:
        return partial(transform(plain.fused_sample), *self._flat_x_mu_rho, self.r, self.flat(self.x_adv), **_BALL)

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        self.r.copy_(self._reference_normals())
        neg_log_density = self._fused(_as_it_is)() if fused else self._eager()()
        return {"x_adv": self.x_adv, "neg_log_density": neg_log_density}

    def contestants(self) -> dict[str, Call]:
        whole = self.compiled(plain.fused_draw_and_sample)
        return {
            EAGER: _then(self.r.normal_, self._eager()),
            COMPILED: partial(whole, *self._flat_x_mu_rho, self.flat(self.x_adv), **_BALL),
            NOISE_AND_COMPILED: _then(self.r.normal_, self._fused(self.compiled)),
        }

    def bytes_moved(self) -> int:
        return self._bytes(float32=3, stored_samples=1) + self._density_bytes


class SampleBackward(_TanhGaussianCase):
    """The gradients of mu and rho; x needs none."""

    name = "sample_backward"

    def _make_inputs(self) -> None:
        super()._make_inputs()
        w = self.workload
        self.grad_density = torch.empty(w.samples, w.batch, device=w.device)
        self.grad_density.normal_(0.0, 0.01, generator=self._generator)

    def ours(self) -> dict[str, torch.Tensor]:
        draw, ball = Draw(self.noise, 0, 0), Ball(**_BALL)
        _, grad_mu, grad_rho = launch.sample_backward(
            self.grad_x_adv, self.grad_density, self.x, self.mu, self.rho, draw, ball, 0.0, (False, True, True)
        )
        return {"grad_mu": grad_mu, "grad_rho": grad_rho}

    def truth(self) -> dict[str, torch.Tensor]:
        mu, rho = self.mu.double().requires_grad_(), self.rho.double().requires_grad_()
        with torch.enable_grad():
            outputs = reference.tanh_gaussian_sample(
                self.x.double(), mu, rho, self.noise, samples=self.workload.samples, **_BALL
            )
        output_grads = self.grad_x_adv.double(), self.grad_density.double()
        grad_mu, grad_rho = torch.autograd.grad(outputs, (mu, rho), output_grads)
        return {"grad_mu": grad_mu, "grad_rho": grad_rho}

    def _eager(self) -> Call:
        x, _, rho = self._flat_x_mu_rho
        arguments = self.flat(self.grad_x_adv), self.grad_density, x, rho, self.r, self.tanh
        return partial(plain.sample_backward, *arguments, **_BALL)

    def _fused(self, transform: Callable) -> Call:
        arguments = self.flat(self.grad_x_adv), self.grad_density, *self._flat_x_mu_rho, self.r
        return partial(transform(plain.fused_sample_backward), *arguments, **_BALL)

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        self._keep(self._reference_normals())
        grad_mu, grad_rho = self._fused(_as_it_is)() if fused else self._eager()()
        return {"grad_mu": self._unflat(grad_mu), "grad_rho": self._unflat(grad_rho)}

    def contestants(self) -> dict[str, Call]:
        return {EAGER: self._eager(), COMPILED: self._fused(self.compiled)}

    def bytes_moved(self) -> int:
        return self._bytes(float32=5, stored_samples=1) + self._density_bytes


class AscentStep(_TanhGaussianCase):
    name = "ascent_step"

    @property
    def _options(self) -> dict[str, float]:
        """``entropy_weight`` is per element: 0.01 of the mean over batch and elements."""
        entropy_weight = 0.01 / self.workload.elements
        return {"step_size": 0.3 * self.step_size_scale, "entropy_weight": entropy_weight, **_BALL}

    def ours(self) -> dict[str, torch.Tensor]:
        ops.tanh_gaussian_ascent_step_(self.mu, self.rho, self.grad_x_adv, self.x, self.noise, **self._options)
        return {"mu": self.mu, "rho": self.rho}

    def truth(self) -> dict[str, torch.Tensor]:
        mu, rho, grad_x_adv, x = (t.double() for t in (self.mu, self.rho, self.grad_x_adv, self.x))
        reference.tanh_gaussian_ascent_step_(mu, rho, grad_x_adv, x, self.noise, **self._options)
        return {"mu": mu, "rho": rho}

    @property
    def _flat_inputs(self) -> tuple[torch.Tensor, ...]:
        x, mu, rho = self._flat_x_mu_rho
        return mu, rho, self.flat(self.grad_x_adv), x, self.r

    def _eager(self) -> Call:
        return partial(plain.ascent_step, *self._flat_inputs, self.tanh, **self._options)

    def _fused(self, transform: Callable) -> Call:
        return partial(transform(plain.fused_ascent_step), *self._flat_inputs, **self._options)

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        self._keep(self._reference_normals())
        self._fused(_as_it_is)() if fused else self._eager()()
        return {"mu": self.mu, "rho": self.rho}

    def contestants(self) -> dict[str, Call]:
        return {EAGER: self._eager(), COMPILED: self._fused(self.compiled)}

    def bytes_moved(self) -> int:
        return self._bytes(float32=5, stored_samples=1)


class AscentStepAndSample(AscentStep):
    """Without the density, as in the inner loop."""

    name = "ascent_step_and_sample"

    def _make_inputs(self) -> None:
        super()._make_inputs()
        self.next_r = torch.empty_like(self.r).normal_(generator=self._generator)

    def ours(self) -> dict[str, torch.Tensor]:
        ops.tanh_gaussian_ascent_step_and_sample_(
            self.mu, self.rho, self.grad_x_adv, self.x, self.noise, out=self.x_adv, **self._options
        )
        return {"mu": self.mu, "rho": self.rho, "x_adv": self.x_adv}

    def truth(self) -> dict[str, torch.Tensor]:
        mu, rho, grad_x_adv, x = (t.double() for t in (self.mu, self.rho, self.grad_x_adv, self.x))
        x_adv, _ = reference.tanh_gaussian_ascent_step_and_sample_(mu, rho, grad_x_adv, x, self.noise, **self._options)
        return {"mu": mu, "rho": rho, "x_adv": x_adv}

    def _eager(self) -> Call:
        arguments = *self._flat_inputs, self.tanh, self.next_r, self.flat(self.x_adv)
        return partial(plain.ascent_step_and_sample, *arguments, **self._options)

    def _fused(self, transform: Callable) -> Call:
        arguments = *self._flat_inputs, self.next_r, self.flat(self.x_adv)
        return partial(transform(plain.fused_ascent_step_and_sample), *arguments, **self._options)

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        self.next_r.copy_(self._reference_normals(draw=1))
        return super().plain(fused) | {"x_adv": self.x_adv}

    def contestants(self) -> dict[str, Call]:
        whole = self.compiled(plain.fused_ascent_step_draw_and_sample)
        return {
            EAGER: _then(self.next_r.normal_, self._eager()),
            COMPILED: partial(whole, *self._flat_inputs, self.flat(self.x_adv), **self._options),
            NOISE_AND_COMPILED: _then(self.next_r.normal_, self._fused(self.compiled)),
        }

    def bytes_moved(self) -> int:
        return self._bytes(float32=5, stored_samples=2)


class LinfStep(OperatorCase):
    name = "linf_step"
    epsilon = _BALL["epsilon"]
    step_size = 2 / 255

    def _make_inputs(self) -> None:
        self.grad = self._normal(1e-3, self.workload.dtype)
        radius = _BALL["epsilon"]
        start = self._images(torch.float32, lambda t: t.uniform_(-radius, radius, generator=self._generator))
        self.x_adv = start.add_(self.x).clamp_(0.0, 1.0).to(self.workload.dtype)

    @property
    def _options(self) -> dict[str, float]:
        return _BALL | {"step_size": self.step_size, "epsilon": self.epsilon}

    def _changed(self) -> tuple[torch.Tensor, ...]:
        """The tensors that the operator changes, x_adv first."""
        return (self.x_adv,)

    def _outputs(self, changed: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(("x_adv", "momentum"), changed, strict=False))  # momentum_linf_step alone has one

    def ours(self) -> dict[str, torch.Tensor]:
        getattr(ops, self.name + "_")(*self._changed(), self.grad, self.x, **self._options)
        return self._outputs(self._changed())

    def truth(self) -> dict[str, torch.Tensor]:
        changed = [tensor.double() for tensor in self._changed()]
        getattr(reference, self.name + "_")(*changed, self.grad.double(), self.x.double(), **self._options)
        return self._outputs(changed)

    def _call(self, function: Callable) -> Call:
        return partial(function, *map(self.flat, (*self._changed(), self.grad, self.x)), **self._options)

    def _eager(self) -> Call:
        return self._call(getattr(plain, self.name))

    def _fused(self, transform: Callable) -> Call:
        return self._call(transform(getattr(plain, "fused_" + self.name)))

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        if fused:
            return self._outputs(map(self._unflat, self._fused(_as_it_is)()))
        self._eager()()
        return self._outputs(self._changed())

    def contestants(self) -> dict[str, Call]:
        return {EAGER: self._eager(), COMPILED: self._fused(self.compiled)}

    def bytes_moved(self) -> int:
        return self._bytes(float32=1, stored=3)


class L2Step(LinfStep):
    name = "l2_step"
    epsilon = 0.5
    step_size = 0.1


class MomentumLinfStep(LinfStep):
    name = "momentum_linf_step"

    def _make_inputs(self) -> None:
        super()._make_inputs()
        self.momentum = self._normal(1e-3)

    @property
    def _options(self) -> dict[str, float]:
        return {"decay": 1.0, **super()._options}

    def _changed(self) -> tuple[torch.Tensor, ...]:
        return self.x_adv, self.momentum

    def bytes_moved(self) -> int:
        return super().bytes_moved() + self._bytes(float32=2)


class UniformStart(OperatorCase):
    name = "uniform_start"

    def _make_inputs(self) -> None:
        self.x_adv = self._images(self.workload.dtype, torch.Tensor.zero_)
        self.uniform = torch.empty(self.flat(self.x).shape, device=self.workload.device)

    def ours(self) -> dict[str, torch.Tensor]:
        return {"x_adv": ops.uniform_start_(self.x_adv, self.x, self.noise, **_BALL)}

    def truth(self) -> dict[str, torch.Tensor]:
        x_adv = torch.empty_like(self.x, dtype=torch.float64)
        return {"x_adv": reference.uniform_start_(x_adv, self.x.double(), self.noise, **_BALL)}

    def _call(self, function: Callable) -> Call:
        return partial(function, self.flat(self.x_adv), self.flat(self.x), self.uniform, **_BALL)

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        zero = torch.zeros_like(self.x)  # a start around zero is the noise itself
        start = reference.uniform_start_(zero.clone(), zero, self.noise, epsilon=1.0, lower=-1.0, upper=1.0)
        self.uniform.copy_(self.flat(start))
        self._call(plain.fused_uniform_start if fused else plain.uniform_start)()
        return {"x_adv": self.x_adv}

    def contestants(self) -> dict[str, Call]:
        whole = self.compiled(plain.fused_draw_and_uniform_start)
        draw = partial(self.uniform.uniform_, -1.0, 1.0)
        return {
            EAGER: _then(draw, self._call(plain.uniform_start)),
            COMPILED: partial(whole, self.flat(self.x_adv), self.flat(self.x), **_BALL),
            NOISE_AND_COMPILED: _then(draw, self._call(self.compiled(plain.fused_uniform_start))),
        }

    def bytes_moved(self) -> int:
        return self._bytes(float32=1, stored=1)


class AffineRelu(OperatorCase):
    """Of images in x_adv's dtype, beside a BatchNorm in eval mode and the ReLU behind it."""

    name = "affine_relu"

    def _make_inputs(self) -> None:
        w = self.workload
        self.activation, self.grad_y = (
            self._images(w.dtype, lambda t: t.uniform_(-1.0, 1.0, generator=self._generator)) for _ in range(2)
        )
        statistics = torch.empty(4, w.image[0], device=w.device)  # mean, variance, weight, bias
        self.batch_norm = tuple(statistics.uniform_(0.5, 0.75, generator=self._generator))
        mean, variance, weight, bias = self.batch_norm
        self.scale = weight / (variance + plain.BATCH_NORM_EPS).sqrt()
        self.shift = bias - mean * self.scale
        self.y = ops.affine_relu(self.activation, self.scale, self.shift)

    @property
    def _scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """In float64."""
        return self.scale.double(), self.shift.double()

    def ours(self) -> dict[str, torch.Tensor]:
        return {"y": ops.affine_relu(self.activation, self.scale, self.shift)}

    def truth(self) -> dict[str, torch.Tensor]:
        return {"y": reference.affine_relu(self.activation.double(), *self._scale_and_shift)}

    def _call(self, transform: Callable) -> Call:
        return partial(transform(plain.batch_norm_relu), self.activation, *self.batch_norm)

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        return {"y": self._call(_as_it_is)()}

    def contestants(self) -> dict[str, Call]:
        return {EAGER: self._call(_as_it_is), COMPILED: self._call(self.compiled)}

    def bytes_moved(self) -> int:
        return self._bytes(stored=2)


class AffineReluBackward(AffineRelu):
    name = "affine_relu_backward"

    def ours(self) -> dict[str, torch.Tensor]:
        return {"grad_x": launch.affine_relu_backward(self.grad_y, self.y, self.scale)}

    def truth(self) -> dict[str, torch.Tensor]:
        scale, _ = self._scale_and_shift
        return {"grad_x": reference.affine_relu_backward(self.grad_y.double(), self.y.double(), scale)}

    def _call(self, transform: Callable) -> Call:
        mean, variance, weight, _ = self.batch_norm
        function = transform(plain.batch_norm_relu_backward)
        return partial(function, self.grad_y, self.y, self.activation, mean, variance, weight)

    def plain(self, fused: bool) -> dict[str, torch.Tensor]:
        return {"grad_x": self._call(_as_it_is)()}

    def bytes_moved(self) -> int:
        return self._bytes(stored=3)


CASES: dict[str, type[OperatorCase]] = {
    case.name: case
    for case in (
        Sample,
        SampleBackward,
        AscentStep,
        AscentStepAndSample,
        LinfStep,
        L2Step,
        MomentumLinfStep,
        UniformStart,
        AffineRelu,
        AffineReluBackward,
    )
}
