"""Batch norm over the images of all processes that train one model together, on CPUs too."""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._support.model_state import device_of


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm for CPUs, on which PyTorch's own refuses to run: input [N, C, ...], output alike.

    In train mode the mean and variance of a channel are over the images of all processes, of which each may have
    another number; the gradient with respect to the input goes through them. The gradients of weight and bias are of
    the process's own images: DistributedDataParallel adds them up. So all processes have to run it equally often,
    forward and backward, and in one order. In eval mode, and for one process, it is nn.BatchNorm1d to 3d; so is its
    state dict. float16 and bfloat16 input is summed in the weight's dtype, or in float32 where it has no weight.

    process_group: the processes; None, the default, is the default group at the time of a pass. A deep copy has the
        same ones.
    The other arguments are those of nn.BatchNorm2d.

    A pass in train mode raises ValueError, in all processes, where a channel has one value in all of them together.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_group = process_group

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        group = self._group() if self.training else None
        if group is None:
            return super().forward(x)
        with torch.no_grad():
            dtype = torch.promote_types(x.dtype, torch.float32) if self.weight is None else self.weight.dtype
            count, mean, variance = _statistics(x, dtype, group)
            if self.track_running_stats:
                self._track(mean, variance * (count / (count - 1)))
        mean, variance = mean.to(dtype), variance.to(dtype)
        return _Normalize.apply(x, self.weight, self.bias, mean, variance, count, self.eps, group)

    def _group(self) -> dist.ProcessGroup | None:
        """The processes, if there are several."""
        if not dist.is_available() or not dist.is_initialized():
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"x must be [N, {self.num_features}, ...], got {list(input.shape)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        memo[id(self.process_group)] = self.process_group
        memo[id(self)] = twin = self.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm)
"""What is the same map in eval mode: scale[c] * x + shift[c] with the running statistics."""


def convert_sync_batchnorm(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """The model with its batch norms over all processes: torch.nn.SyncBatchNorm, or :class:`SyncBatchNorm` on a CPU.

    Parameters and buffers stay the same objects under the same names, so optimizers and checkpoints know them. In eval
    mode, and for attacks in eval mode, nothing changes.

    model: changed in place, and returned; one that is a batch norm itself is replaced.
    process_group: the processes; None, the default, is the default group. On a GPU a model with another group than
        that cannot be deep-copied, for torch.nn.SyncBatchNorm cannot.

    Raises TypeError, before anything is changed, where the CPU model has a batch norm of a class that PyTorch has not
    (its forward would be lost), or one with hooks.
    """
    if process_group is not None and process_group is dist.group.WORLD:
        process_group = None  # which copies can be made of
    device = device_of(model)
    if device is not None and device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group)
    names = [(name, module) for name, module in model.named_modules(remove_duplicate=False) if _is_batch_norm(module)]
    for name, module in names:
        _check_convertible(name or "the model", module)
    converted: dict[nn.Module, SyncBatchNorm] = {module: _converted(module, process_group) for _, module in names}
    if model in converted:
        return converted[model]
    for name, module in names:
        model.set_submodule(name, converted[module])
    return model


def _is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm)


def _check_convertible(name: str, module: nn.Module) -> None:
    if type(module) not in BATCH_NORMS:
        known = ", ".join(kind.__name__ for kind in BATCH_NORMS)
        raise TypeError(f"{name} must be one of {known} to be synchronised, got {type(module).__name__}")
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise TypeError(f"{name} must not have hooks, which would be lost: convert first, register them then")


def _converted(norm: _BatchNorm, process_group: dist.ProcessGroup | None) -> SyncBatchNorm:
    new = SyncBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, process_group
    )
    new._parameters.update(norm._parameters)
    new._buffers.update(norm._buffers)
    return new.train(norm.training)


def _statistics(x: Tensor, dtype: torch.dtype, group: dist.ProcessGroup) -> tuple[int, Tensor, Tensor]:
    """How many values a channel has in all processes; their mean and biased variance [C], float64.

    Each process sums in `dtype`, about its own mean, and what it found is combined in float64 as by Chan et al. (1983):
    no large sums of squares are subtracted. All processes get the same bits.
    """
    channels = x.shape[1]
    own = x.new_zeros(2 * channels + 1, dtype=torch.float64)
    if x.numel():  # the kernels divide by the number of images
        zeros = x.new_zeros(2, channels, dtype=dtype)
        mean, variance = torch.batch_norm_update_stats(x, zeros[0], zeros[1], 0.0)
        own = torch.cat([mean.double(), variance.double(), own.new_tensor([x.numel() // channels])])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    means, variances, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)  # [P, C], [P, C], [P, 1]
    count = int(counts.sum())
    if count < 2:
        raise ValueError(f"x must have more than 1 value per channel in all processes together in train mode, it has "
                         f"{count}")
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return count, mean, variance


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with x's gradient through the mean and the variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
        count: int, eps: float, group: dist.ProcessGroup,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        # [C] each: the sum of grad, and of grad times the normalised x, over this process's images.
        grad_weight, grad_bias = _sums(grad, x, mean, variance, ctx.eps)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_x = None
        if wants_x:
            means = torch.stack([grad_weight, grad_bias]).double()
            dist.all_reduce(means, group=ctx.group)
            scale = (variance + ctx.eps).rsqrt() * (1 if weight is None else weight)
            slope, shift = -scale * (means / ctx.count).to(scale.dtype)
            grad_x = F.batch_norm(x, mean, variance, slope, shift, eps=ctx.eps)
            grad_x.addcmul_(grad, scale.view(-1, *(1,) * (x.dim() - 2)))
        return grad_x, grad_weight if wants_weight else None, grad_bias if wants_bias else None, *(None,) * 5


def _sums(grad: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients [C] of the weight and the bias, as with constant statistics: by PyTorch's kernel for eval mode."""
    if not x.numel():
        return torch.zeros_like(mean), torch.zeros_like(mean)
    ones = torch.ones_like(mean)
    needed = [False, True, True]
    _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, ones, mean, variance, None, None, False, eps, needed
    )
    return grad_weight, grad_bias
