"""Who takes part in the benchmark of whole training steps.

``Published`` is the published algorithm in plain PyTorch at library defaults. ``Strongest`` is plain PyTorch at its
best: gradients of the images only, from a frozen copy of the classifier, k samples folded into the batch,
channels_last, 16-bit where asked, with ``torch.compile`` or a CUDA graph where asked. ``Ours`` is adt_fast. All train
the same objective: the published recipe of ADT-EXP, AT-PGD from a random start, or standard training.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adt_fast import NoiseStream
from adt_fast.input_gradient import EngineOptions
from adt_fast.methods import create_method
from adt_fast.trainer import Trainer

from . import plain_operators as plain
from .model_flops import DTYPES, float32_products

ADT_EXP, AT_PGD, STANDARD = OBJECTIVES = ("adt-exp", "at-pgd", "standard")
PUBLISHED, STRONGEST, OURS, FEATURES, HEADLINE = GROUPS = ("published", "strongest", "ours", "features", "headline")
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}

_HALF = {"cpu": "bf16", "cuda": "fp16"}  # the 16-bit precision in which features are switched off
_FP16_LOSS_SCALE = 1024.0
_ADAM_EPSILON = 1e-8
_LOG_OFFSET = 1e-8  # inside the published logarithms


@dataclass(frozen=True)
class Task:
    """A minibatch, the weights that every contestant starts from, and what to train."""

    objective: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    steps: int = 7
    samples: int = 5
    epsilon: float = 8 / 255
    step_size: float = 0.3  # of ADT-EXP; AT-PGD's is epsilon / 4
    entropy_weight: float = 0.01
    learning_rate: float = 1e-4  # small, so that the weights stay put while they are timed
    weight_decay: float = 2e-4

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def inner_passes(self) -> int:
        """Input gradients for each image of the minibatch."""
        return {ADT_EXP: self.steps * self.samples, AT_PGD: self.steps, STANDARD: 0}[self.objective]

    @property
    def ball(self) -> dict[str, float]:
        return {"epsilon": self.epsilon, "lower": 0.0, "upper": 1.0}

    def first(self, batch: int) -> Task:
        """The same with the first images only."""
        return replace(self, images=self.images[:batch], labels=self.labels[:batch])

    def optimizer(self, model: nn.Module, **options: Any) -> torch.optim.SGD:
        settings = {"lr": self.learning_rate, "momentum": 0.9, "weight_decay": self.weight_decay}
        return torch.optim.SGD(model.parameters(), **settings, **options)


class Noise(Protocol):
    """Where a validated run takes its random numbers from."""

    seed: int

    def normals(self, images: Tensor, samples: int, draw: int) -> Tensor:
        """Standard normals ``[k, B, C, H, W]``: draw t is of inner step t, draw T of the last sample."""
        ...

    def uniforms(self, images: Tensor) -> Tensor:
        """On [-1, 1], like images: the random start."""
        ...


class Found(NamedTuple):
    """What the inner maximisation ended with."""

    x_adv: Tensor
    """The images that are trained on."""
    mu: Tensor | None
    """Of ADT-EXP."""


class Contestant(ABC):
    """One way to train. ``model`` and ``optimizer`` are its own; noise is its own too, unless it is given."""

    model: nn.Module
    optimizer: torch.optim.SGD

    @abstractmethod
    def maximize(self, noise: Noise | None = None) -> Found:
        """The inner maximisation."""

    @abstractmethod
    def step(self, noise: Noise | None = None) -> None:
        """One whole minibatch."""

    @abstractmethod
    def model_pass(self) -> None:
        """What the classifier does in one inner step: forward and backward."""

    def momentum(self) -> Iterator[Tensor]:
        """The optimizer's momentum: after the first step, the gradient of the weights and their decay."""
        return (self.optimizer.state[parameter]["momentum_buffer"] for parameter in self.model.parameters())

    def explain(self) -> str | None:
        """Which of its features are on."""
        return None


# ---- The published algorithm, at library defaults -------------------------------------------------------------------
class Published(Contestant):
    """ADT-EXP as its authors' script does it, AT-PGD as the widely used loops do it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = copy.deepcopy(task.model)
        self.optimizer = task.optimizer(self.model)

    def maximize(self, noise: Noise | None = None) -> Found:
        find = {ADT_EXP: self._adt_exp, AT_PGD: self._pgd, STANDARD: lambda noise: Found(self.task.images, None)}
        return find[self.task.objective](noise)

    def step(self, noise: Noise | None = None) -> None:
        x_adv = self.maximize(noise).x_adv
        self.model.train()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x_adv), self.task.labels).backward()
        self.optimizer.step()

    def model_pass(self) -> None:
        task = self.task
        self.model.eval()
        for _ in range(task.inner_passes // task.steps):
            images = task.images.detach().requires_grad_()
            loss = F.cross_entropy(self.model(images), task.labels)
            if task.objective == ADT_EXP:
                loss.backward()
            else:
                torch.autograd.grad(loss, images)

    def _adt_exp(self, noise: Noise | None) -> Found:
        task, x = self.task, self.task.images
        self.model.eval()
        mean, var = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
        adam = torch.optim.Adam([mean, var], lr=task.step_size, betas=(0.0, 0.0))
        for step in range(task.steps):  # the gradient is never zeroed
            for r in self._normals(noise, task.samples, step):
                std = F.softplus(var)
                tanh = torch.tanh(mean + r * std)
                log_derivative = (1 - tanh**2 + _LOG_OFFSET).log()
                entropy = (r**2 / 2 + (std + _LOG_OFFSET).log() + log_derivative).mean()
                x_adv = torch.clamp(x + task.epsilon * tanh, 0.0, 1.0)
                loss = F.cross_entropy(self.model(x_adv), task.labels) + task.entropy_weight * entropy
                (-loss).backward()  # to the weights too
            adam.step()
        r = self._normals(noise, 1, task.steps)[0]
        mean, var = mean.detach(), var.detach()
        return Found(torch.clamp(x + task.epsilon * torch.tanh(mean + r * F.softplus(var)), 0.0, 1.0), mean)

    def _pgd(self, noise: Noise | None) -> Found:
        task, x, epsilon = self.task, self.task.images, self.task.epsilon
        self.model.eval()
        start = torch.empty_like(x).uniform_(-1, 1) if noise is None else noise.uniforms(x)
        x_adv = torch.clamp(x + epsilon * start, 0.0, 1.0)
        for _ in range(task.steps):
            x_adv.requires_grad_()
            # The form of the popular libraries: asked for one gradient, autograd skips those of the weights.
            (grad,) = torch.autograd.grad(F.cross_entropy(self.model(x_adv), task.labels), x_adv)
            x_adv = x_adv.detach() + epsilon / 4 * grad.sign()
            x_adv = torch.clamp(x + torch.clamp(x_adv - x, -epsilon, epsilon), 0.0, 1.0)
        return Found(x_adv.detach(), None)

    def _normals(self, noise: Noise | None, samples: int, draw: int) -> Tensor:
        x = self.task.images
        if noise is None:
            return torch.randn(samples, *x.shape, device=x.device, dtype=x.dtype)
        return noise.normals(x, samples, draw)


# ---- Plain PyTorch at its best --------------------------------------------------------------------------------------
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


class Strongest(Contestant):
    """Everything that helps and that PyTorch has; images are ``[B, D]`` in the order of channels_last memory."""

    def __init__(self, task: Task, precision: str, form: Form) -> None:
        self.task, self.precision, self.form = task, precision, form
        self.model = copy.deepcopy(task.model).to(memory_format=torch.channels_last)
        self.optimizer = task.optimizer(self.model, fused=True)
        self._scale = _FP16_LOSS_SCALE if precision == "fp16" else 1.0
        frozen = _FrozenLoss(self.model, DTYPES[precision], self._scale)
        self._refresh = frozen.refresh
        self._allocate()
        self._choose_forms(frozen)
        self._graph = self._captured() if form.graphed and task.objective != STANDARD else None

    def maximize(self, noise: Noise | None = None) -> Found:
        self._draw(noise)
        with self._arithmetic(), torch.no_grad():
            self._refresh()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._find()
        mu = self._images(self._mu) if self.task.objective == ADT_EXP else None
        return Found(self._images(self._result), mu)

    def step(self, noise: Noise | None = None) -> None:
        x_adv = self._images(self._x) if self.task.objective == STANDARD else self.maximize(noise).x_adv
        self.model.train()
        self.optimizer.zero_grad()
        with self._arithmetic():
            with self._autocast():
                logits = self._trained(x_adv)
            F.cross_entropy(logits.float(), self.task.labels).backward()
        self.optimizer.step()

    def model_pass(self) -> None:
        with self._arithmetic():
            self._input_gradient(self._x.expand(self._folds, *self._x.shape).contiguous())

    def _allocate(self) -> None:
        task = self.task
        self._x = _flat(task.images).contiguous()
        self._result = self._x.clone()
        self._mu, self._rho, self._sum_mu, self._sum_rho = (torch.zeros_like(self._x) for _ in range(4))
        self._folds = task.samples if task.objective == ADT_EXP else 1
        steps = {ADT_EXP: task.steps, AT_PGD: 1, STANDARD: 0}[task.objective]
        # Normals of every step, or the random start; and normals of the last sample.
        self._noise = self._x.new_empty(steps, self._folds, *self._x.shape)
        self._last = self._x.new_empty(1, *self._x.shape)
        self._x_adv = self._x.new_empty(self._folds, *self._x.shape)
        self._labels = task.labels.repeat(self._folds if self.form.folded else 1)

    def _choose_forms(self, frozen: _FrozenLoss) -> None:
        """Eager or compiled, each in the form that suits it."""
        if not self.form.compiled:
            self._loss, self._trained, self._sample, self._ascend = frozen, self.model, _sample, _ascend
            self._projected = _projected
            return
        mode = None
        if self.task.device.type == "cuda":
            mode = "max-autotune-no-cudagraphs" if self.form.graphed else "reduce-overhead"
        self._loss = torch.compile(frozen, dynamic=False, mode=mode)
        self._trained, self._sample, self._ascend, self._projected = (
            torch.compile(part, dynamic=False) for part in (self.model, _fused_sample, _fused_ascend, _fused_projected)
        )

    def _draw(self, noise: Noise | None) -> None:
        task = self.task
        if task.objective == ADT_EXP:
            if noise is None:
                self._noise.normal_()
                self._last.normal_()
                return
            for step, normals in enumerate(self._noise):
                normals.copy_(_flat(noise.normals(task.images, task.samples, step)))
            self._last.copy_(_flat(noise.normals(task.images, 1, task.steps)))
        elif task.objective == AT_PGD:
            if noise is None:
                self._noise.uniform_(-1.0, 1.0)
            else:
                self._noise.copy_(_flat(noise.uniforms(task.images)))

    def _find(self) -> None:
        """The inner maximisation, from the buffers into ``_result``."""
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

    def _input_gradient(self, x_adv: Tensor) -> Tensor:
        """Of the sum of the losses, times the loss scale, ``[k, B, D]``."""
        if self.form.folded or len(x_adv) == 1:
            return self._gradient_of_batch(x_adv)
        return torch.cat([self._gradient_of_batch(sample) for sample in x_adv.split(1)])

    def _gradient_of_batch(self, x_adv: Tensor) -> Tensor:
        images = self._images(x_adv.flatten(0, 1)).detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(self._loss(images, self._labels), images)
        return _flat(grad).view_as(x_adv)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """A graph of the inner maximisation; its memory is shared, as graphs of one process never run at once."""
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


class _FrozenLoss(nn.Module):
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


def _flat(images: Tensor) -> Tensor:
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


# ---- adt_fast -------------------------------------------------------------------------------------------------------
class Ours(Contestant):
    """adt_fast's own trainer."""

    def __init__(self, task: Task, precision: str, **features: Any) -> None:
        self.task, self.precision = task, precision
        self.model = copy.deepcopy(task.model).to(memory_format=torch.channels_last)
        self.optimizer = task.optimizer(self.model, fused=True)
        self._images = task.images.contiguous(memory_format=torch.channels_last)
        self._noise = NoiseStream(0, task.device)
        self._method = create_method(
            task.objective, self.model, epsilon=task.epsilon, noise=self._noise,
            engine=EngineOptions(precision=precision, **features), **self._options(),
        )  # fmt: skip
        # As for the strongest, the training pass of a 16-bit contestant is bfloat16.
        outer_precision = "bf16" if precision in ("bf16", "fp16") else "fp32"
        self._trainer = Trainer(self.model, self.optimizer, self._method, outer_precision=outer_precision)

    def maximize(self, noise: Noise | None = None) -> Found:
        self._start_at(noise)
        maximizer = self._method.maximizer
        if self.task.objective == ADT_EXP:
            found = maximizer.maximize(self._images, self.task.labels)
            return Found(found.x_adv[0], found.mu)
        if self.task.objective == AT_PGD:
            return Found(maximizer.perturb(self._images, self.task.labels)[0], None)
        return Found(self._images, None)

    def step(self, noise: Noise | None = None) -> None:
        self._start_at(noise)
        with float32_products(self.precision, self.task.device):  # of the training pass
            self._trainer.step(self._images, self.task.labels)

    def model_pass(self) -> None:
        folds = self.task.inner_passes // self.task.steps
        labels = self.task.labels.repeat(folds)
        images = self._images.repeat(folds, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        engine = self._method.maximizer.input_gradient
        session = engine._last_session  # as the last minibatch ran
        model = self.model.eval() if engine.twin is None else engine.twin.run
        size = session.chunk or len(images)
        for part, part_labels in zip(images.split(size), labels.split(size)):
            with float32_products(self.precision, self.task.device), torch.enable_grad():
                part = part.to(session.dtype).requires_grad_()
                torch.autograd.grad(F.cross_entropy(model(part).float(), part_labels, reduction="sum"), part)

    def explain(self) -> str | None:
        maximizer = self._method.maximizer
        return None if maximizer is None else maximizer.input_gradient.explain()

    def _options(self) -> dict[str, Any]:
        task = self.task
        if task.objective == ADT_EXP:
            return {
                "steps": task.steps, "samples": task.samples, "step_size": task.step_size,
                "entropy_weight": task.entropy_weight, "recipe": "published",
            }  # fmt: skip
        return {"steps": task.steps} if task.objective == AT_PGD else {}

    def _start_at(self, noise: Noise | None) -> None:
        if noise is not None:
            self._noise.load_state_dict({"seed": noise.seed, "offset": 0})


# ---- The list of them -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Entry:
    """A contestant before it has a task."""

    name: str
    group: str
    precision: str
    build: Callable[[Task], Contestant]
    compiled: bool = False


def entries(objective: str, device_type: str) -> list[Entry]:
    """Everybody who takes part in an objective on a kind of device."""
    # PyTorch's defaults on CUDA: convolutions, where the time goes, in TF32.
    default_precision = "tf32" if device_type == "cuda" else "fp32"
    found = [Entry("published", PUBLISHED, default_precision, Published)]
    if objective == ADT_EXP:
        found.append(Entry("published at-pgd", HEADLINE, default_precision, _published_at_pgd))
    for precision in PRECISIONS[device_type]:
        found += _strongest_entries(objective, device_type, precision)
    found += [
        Entry(f"adt_fast {precision}", OURS, precision, partial(Ours, precision=precision))
        for precision in PRECISIONS[device_type]
    ]
    if objective != STANDARD:
        found += _feature_entries(device_type)
    return found


def choose(found: Sequence[Entry], names: Sequence[str], precisions: Sequence[str], compiled: bool) -> list[Entry]:
    """Those of the groups or names, and of the precisions; the published ones are of whatever precision they are."""
    return [
        entry
        for entry in found
        if (entry.group in names or entry.name in names)
        and (entry.precision in precisions or entry.group in (PUBLISHED, HEADLINE))
        and (compiled or not entry.compiled)
    ]


def _published_at_pgd(task: Task) -> Contestant:
    """AT-PGD at library defaults takes its turn among the contestants of ADT-EXP, to be compared with them."""
    return Published(replace(task, objective=AT_PGD))


def _strongest_entries(objective: str, device_type: str, precision: str) -> list[Entry]:
    forms = [form for form in FORMS[device_type] if form.folded or objective == ADT_EXP]
    if objective == STANDARD:
        forms = [form for form in forms if not form.graphed]
    return [
        Entry(
            f"{form.name} {precision}", STRONGEST, precision,
            partial(Strongest, precision=precision, form=form), form.compiled,
        )
        for form in forms
    ]  # fmt: skip


def _feature_entries(device_type: str) -> list[Entry]:
    """Ours with a feature off, and with the one that is off by default on."""
    half = _HALF[device_type]
    changes: list[tuple[str, dict[str, Any]]] = [("fp32", {"twin": False})]
    for precision in ("fp32", half):
        changes += [(precision, {"chunk": None}), (precision, {"compile": True})]
    if device_type == "cuda":
        changes.append((half, {"graph": False}))
    return [
        Entry(
            f"adt_fast {precision} {name}={value}", FEATURES, precision,
            partial(Ours, precision=precision, **{name: value}), compiled=name == "compile",
        )
        for precision, change in changes
        for name, value in change.items()
    ]  # fmt: skip
