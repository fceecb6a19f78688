"""Plain PyTorch at its best.

Gradients of the images only, from a frozen copy of the classifier, k samples folded into the batch, channels_last,
16-bit where asked, with ``torch.compile`` or a CUDA graph where asked.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import plain_operators as plain
from ..model_flops import DTYPES, float32_products
from .task import ADT_EXP, AT_PGD, STANDARD, Contestant, Found, Noise, Task

_FP16_LOSS_SCALE = 1024.0
_ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Form:
    """How the strongest plain PyTorch is run."""

    name: str
    compiled: bool = False
    graphed: bool = False  # the whole inner maximisation is one CUDA graph
    folded: bool = True  # k samples in one batch, rather than one after another as may suit a small cache


_BY_SAMPLE = (Form("eager by sample", folded=False), Form("compiled by sample", compiled=True, folded=False))
FORMS = {
    "cpu": (Form("eager"), Form("compiled", compiled=True), *_BY_SAMPLE),
    "cuda": (
        Form("eager"),
        Form("compiled", compiled=True),
        Form("graphed", graphed=True),
        Form("compiled graphed", compiled=True, graphed=True),
        Form("graphed by sample", graphed=True, folded=False),
    ),
}


class StrongestBase(Contestant):
    """Everything that helps and that PyTorch has; images are ``[B, D]`` in the order of channels_last memory.

    A subclass says what :meth:`_find` computes from the buffers, with gradients of the images alone.
    """

    def __init__(self, task: Task, precision: str, form: Form) -> None:
        self.task, self.precision, self.form = task, precision, form
        self.model = copy.deepcopy(task.model).to(memory_format=torch.channels_last)
        self.optimizer = task.optimizer(self.model, fused=True)
        self._scale = _FP16_LOSS_SCALE if precision == "fp16" else 1.0
        frozen = FrozenLoss(self.model, DTYPES[precision], self._scale)
        self._refresh = frozen.refresh
        self._allocate()
        self._choose_forms(frozen)
        self._graph = self._captured() if form.graphed and task.inner_passes else None

    def model_pass(self) -> None:
        with self._arithmetic():
            self._input_gradient(self._x.expand(self._folds, *self._x.shape).contiguous())

    def _allocate(self) -> None:
        task = self.task
        self._folds = task.samples if task.objective == ADT_EXP else 1
        self._x = flat(task.images).contiguous()
        self._x_adv = self._x.new_empty(self._folds, *self._x.shape)
        self._labels = task.labels.repeat(self._folds if self.form.folded else 1)

    def _choose_forms(self, frozen: FrozenLoss) -> None:
        """Eager or compiled, each in the form that suits it."""
        self._trained = self._perhaps_compiled(self.model)
        if not self.form.compiled:
            self._loss, self._projected = frozen, _projected
            return
        mode = None
        if self.task.device.type == "cuda":
            mode = "max-autotune-no-cudagraphs" if self.form.graphed else "reduce-overhead"
        self._loss = torch.compile(frozen, dynamic=False, mode=mode)
        self._projected = self._perhaps_compiled(_fused_projected)

    def _perhaps_compiled(self, part: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(part, dynamic=False) if self.form.compiled else part

    @abstractmethod
    def _draw(self, noise: Noise | None) -> None:
        """Fills the buffers of random numbers."""

    @abstractmethod
    def _find(self) -> None:
        """What needs gradients of the images, from buffers into buffers."""

    def _run_inner(self, noise: Noise | None) -> None:
        self._draw(noise)
        with self._arithmetic(), torch.no_grad():
            self._refresh()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._find()

    def _input_gradient(self, x_adv: Tensor) -> Tensor:
        """Of the sum of the losses, times the loss scale, ``[k, B, D]``."""
        if self.form.folded or len(x_adv) == 1:
            return self._gradient_of_batch(x_adv)
        return torch.cat([self._gradient_of_batch(sample) for sample in x_adv.split(1)])

    def _gradient_of_batch(self, x_adv: Tensor) -> Tensor:
        images = self._images(x_adv.flatten(0, 1)).detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(self._loss(images, self._labels), images)
        return flat(grad).view_as(x_adv)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """A graph of :meth:`_find`; its memory is shared, as graphs of one process never run at once."""
        stream = torch.cuda.Stream(self.task.device)
        stream.wait_stream(torch.cuda.current_stream(self.task.device))
        self._draw(None)
        with self._arithmetic(), torch.no_grad():
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._find()
            torch.cuda.current_stream(self.task.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, pool=_shared_graph_pool()):
                self._find()
        return graph

    def _adversarial_loss(self, x_adv: Tensor) -> Tensor:
        """Of the training pass."""
        with self._autocast():
            logits = self._trained(x_adv)
        return F.cross_entropy(logits.float(), self.task.labels)

    def _arithmetic(self) -> AbstractContextManager:
        return float32_products(self.precision, self.task.device)

    def _autocast(self) -> AbstractContextManager:
        """The training pass of a 16-bit contestant is bfloat16, which needs no loss scaler."""
        if self.precision in ("bf16", "fp16"):
            return torch.autocast(self.task.device.type, torch.bfloat16)
        return nullcontext()

    def _images(self, flat: Tensor) -> Tensor:
        """``[N, D]`` as channels_last images, without a copy."""
        channels, height, width = self.task.images.shape[1:]
        return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)


class Strongest(StrongestBase):
    """ADT-EXP, AT-PGD, and standard training."""

    def maximize(self, noise: Noise | None = None) -> Found:
        self._run_inner(noise)
        mu = self._images(self._mu) if self.task.objective == ADT_EXP else None
        return Found(self._images(self._result), mu)

    def step(self, noise: Noise | None = None) -> None:
        x_adv = self._images(self._x) if self.task.objective == STANDARD else self.maximize(noise).x_adv
        self.model.train()
        self.optimizer.zero_grad()
        with self._arithmetic():
            self._adversarial_loss(x_adv).backward()
        self.optimizer.step()

    def _allocate(self) -> None:
        super()._allocate()
        self._result = self._x.clone()
        self._mu, self._rho, self._sum_mu, self._sum_rho = (torch.zeros_like(self._x) for _ in range(4))
        steps = {ADT_EXP: self.task.steps, AT_PGD: 1, STANDARD: 0}[self.task.objective]
        # Normals of every step, or the random start; and normals of the last sample.
        self._noise = self._x.new_empty(steps, self._folds, *self._x.shape)
        self._last = self._x.new_empty(1, *self._x.shape)

    def _choose_forms(self, frozen: FrozenLoss) -> None:
        super()._choose_forms(frozen)
        parts = (_fused_sample, _fused_ascend) if self.form.compiled else (_sample, _ascend)
        self._sample, self._ascend = map(self._perhaps_compiled, parts)

    def _draw(self, noise: Noise | None) -> None:
        task = self.task
        if task.objective == ADT_EXP:
            if noise is None:
                self._noise.normal_()
                self._last.normal_()
                return
            for step, normals in enumerate(self._noise):
                normals.copy_(flat(noise.normals(task.images, task.samples, step)))
            self._last.copy_(flat(noise.normals(task.images, 1, task.steps)))
        elif task.objective == AT_PGD:
            if noise is None:
                self._noise.uniform_(-1.0, 1.0)
            else:
                self._noise.copy_(flat(noise.uniforms(task.images)))

    def _find(self) -> None:
        """The inner maximisation, into ``_result``."""
        if self.task.objective == ADT_EXP:
            self._adt_exp()
        elif self.task.objective == AT_PGD:
            self._pgd()

    def _adt_exp(self) -> None:
        task = self.task
        for tensor in (self._mu, self._rho, self._sum_mu, self._sum_rho):
            tensor.zero_()
        entropy_weight = task.entropy_weight / self._x.numel()
        for normals in self._noise:
            tanh = self._sample(self._x, self._mu, self._rho, normals, self._x_adv, **task.ball)
            grad = self._input_gradient(self._x_adv)
            self._ascend(
                self._mu, self._rho, self._sum_mu, self._sum_rho, grad, self._x, normals, tanh,
                step_size=task.step_size, grad_scale=1 / (len(task.images) * self._scale),
                entropy_weight=entropy_weight, **task.ball,
            )  # fmt: skip
        self._sample(self._x, self._mu, self._rho, self._last, self._result[None], **task.ball)

    def _pgd(self) -> None:
        task = self.task
        plain.uniform_start(self._x_adv[0], self._x, self._noise[0, 0], **task.ball)
        for _ in range(task.steps):
            grad = self._input_gradient(self._x_adv)
            self._projected(self._x_adv, grad, self._x, step_size=task.epsilon / 4, **task.ball)
        self._result.copy_(self._x_adv[0])


class FrozenLoss(nn.Module):
    """Images and labels -> the sum of the cross entropies of a frozen copy of the classifier, in a precision."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, scale: float) -> None:
        super().__init__()
        self.frozen = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.frozen.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):  # float32, which 16-bit images go with
                _convert(module, dtype)
        self.dtype, self.scale = dtype, scale
        self._pairs = [
            [pair for pair in zip(mine, live) if pair[0].is_floating_point()]
            for mine, live in ((self.frozen.parameters(), model.parameters()), (self.frozen.buffers(), model.buffers()))
        ]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.frozen(images.to(self.dtype)).float()
        return F.cross_entropy(logits, labels, reduction="sum") * self.scale

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the live weights and running statistics."""
        for pairs in self._pairs:
            if pairs:
                torch._foreach_copy_([mine for mine, _ in pairs], [live for _, live in pairs])


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """The parameters and buffers of a module, but not of those in it."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def flat(images: Tensor) -> Tensor:
    """``[..., C, H, W]`` -> ``[..., D]`` in the order of channels_last memory: a view if it is in that layout."""
    return images.movedim(-3, -1).flatten(-3)


def _sample(x: Tensor, mu: Tensor, rho: Tensor, r: Tensor, x_adv: Tensor, **ball: float) -> Tensor:
    """Writes x_adv; returns tanh(u) ``[k, B, D]``."""
    tanh = torch.empty_like(r)
    plain.sample(x, mu, rho, r, x_adv, tanh, density=False, **ball)
    return tanh


def _fused_sample(x: Tensor, mu: Tensor, rho: Tensor, r: Tensor, x_adv: Tensor, **ball: float) -> None:
    plain.fused_sample(x, mu, rho, r, x_adv, density=False, **ball)


def _ascend(
    mu: Tensor, rho: Tensor, sum_mu: Tensor, sum_rho: Tensor, grad: Tensor, x: Tensor, r: Tensor, tanh: Tensor, *,
    step_size: float, grad_scale: float, entropy_weight: float, epsilon: float, lower: float, upper: float,
) -> None:  # fmt: skip
    """Adam(0, 0) along the accumulated gradient of (mu, rho), in place, given tanh(u) of the samples."""
    v = torch.add(x, tanh, alpha=epsilon)
    passed = v.clamp(lower, upper).eq_(v)
    scale = epsilon * grad_scale
    d_u = torch.addcmul(torch.full((), scale, device=x.device), tanh, tanh, value=-scale)
    d_u.mul_(grad).mul_(passed).sub_(tanh, alpha=2.0 * entropy_weight)
    d_sigma = torch.addcmul(entropy_weight * len(r) / F.softplus(rho), d_u[0], r[0])
    for sample_d_u, sample_r in zip(d_u[1:], r[1:]):
        d_sigma.addcmul_(sample_d_u, sample_r)
    sum_mu.add_(d_u.sum(0))
    sum_rho.addcmul_(d_sigma, torch.sigmoid(rho))
    mu.addcdiv_(sum_mu, sum_mu.abs().add_(_ADAM_EPSILON), value=step_size)
    rho.addcdiv_(sum_rho, sum_rho.abs().add_(_ADAM_EPSILON), value=step_size)


def _fused_ascend(
    mu: Tensor, rho: Tensor, sum_mu: Tensor, sum_rho: Tensor, grad: Tensor, x: Tensor, r: Tensor, _: None, *,
    step_size: float, grad_scale: float, entropy_weight: float, epsilon: float, lower: float, upper: float,
) -> None:  # fmt: skip
    """:func:`_ascend` in few operations, with tanh(u) computed again."""
    sigma = F.softplus(rho)
    tanh = torch.tanh(mu + sigma * r)
    v = x + epsilon * tanh
    passed = torch.where((v >= lower) & (v <= upper), grad, 0.0)
    d_u = epsilon * grad_scale * (1.0 - tanh.square()) * passed - 2.0 * entropy_weight * tanh
    d_sigma = (d_u * r).sum(0) + entropy_weight * r.shape[0] / sigma
    sum_mu.add_(d_u.sum(0))
    sum_rho.add_(d_sigma * torch.sigmoid(rho))
    mu.add_(step_size * sum_mu / (sum_mu.abs() + _ADAM_EPSILON))
    rho.add_(step_size * sum_rho / (sum_rho.abs() + _ADAM_EPSILON))


def _projected(x_adv: Tensor, grad: Tensor, x: Tensor, **options: float) -> None:
    plain.linf_step(x_adv, grad, x, **options)


def _fused_projected(x_adv: Tensor, grad: Tensor, x: Tensor, **options: float) -> None:
    x_adv.copy_(plain.fused_linf_step(x_adv, grad, x, **options)[0])


_graph_pool: list[Any] = []


def _shared_graph_pool() -> Any:
    if not _graph_pool:
        _graph_pool.append(torch.cuda.graph_pool_handle())
    return _graph_pool[0]
