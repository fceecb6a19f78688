"""The layers of an attack twin: what ``fusion.py`` puts in the place of a classifier's own.

Each knows by name whose weights it has, and takes them anew with ``load``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .. import ops
from .._operators import winograd
from ..models.sync_batch_norm import BATCH_NORMS

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ChannelAffine(nn.Module):
    """``scale[c] * x + shift[c]``, and a ReLU where there was one: what a batch norm or a normalisation becomes.

    Args:
        source: the name of the module whose map it is.
        relu: whether a ReLU follows.
        native: use the fused operator; otherwise PyTorch's own, which ``torch.compile`` fuses itself.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, source: str, like: Tensor, relu: bool, native: bool) -> None:
        super().__init__()
        self.source = source
        self.relu = relu
        self.native = native
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.zeros_like(like, memory_format=torch.contiguous_format).flatten())

    def load(self, scale: Tensor, shift: Tensor) -> None:
        self.scale.copy_(scale)
        self.shift.copy_(shift)

    def forward(self, x: Tensor) -> Tensor:
        if self.native:
            return ops.affine_relu(x, self.scale, self.shift, relu=self.relu)
        per_channel = (-1,) + (1,) * (x.dim() - 2)
        out = x * self.scale.view(per_channel) + self.shift.view(per_channel)
        return (torch.relu(out) if self.relu else out).to(x.dtype)


def folded_weights(
    convolution: _ConvNd, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of a convolution and the ``scale[c] * out + shift[c]`` after it, if any, as one."""
    weight, bias = convolution.weight, convolution.bias
    if scale is None or shift is None:
        return weight, bias
    weight = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
    return weight, shift if bias is None else bias * scale + shift


class FoldedConvolution(nn.Module):
    """A convolution with the batch norm after it in its weights, and a ReLU where there was one.

    Args:
        convolution: a copy of the classifier's; its weights are replaced.
        source, norm_source: the names of the convolution and of the batch norm; None for none.
    """

    def __init__(self, convolution: _ConvNd, source: str, norm_source: str | None, relu: bool) -> None:
        super().__init__()
        self.convolution = convolution
        self.source = source
        self.norm_source = norm_source
        self.relu = relu
        if norm_source is not None and convolution.bias is None:
            weight = convolution.weight
            convolution.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)

    def load(self, original: _ConvNd, scale: Tensor | None, shift: Tensor | None) -> None:
        weight, bias = folded_weights(original, scale, shift)
        self.convolution.weight.copy_(weight)
        if bias is not None:
            assert self.convolution.bias is not None  # made where there is a norm
            self.convolution.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.convolution(x)
        # In place, as nobody else reads a convolution's output, its backward included.
        return torch.relu_(out) if self.relu else out


class WinogradConvolution(nn.Module):
    """:class:`FoldedConvolution` for 3x3 convolutions on a CPU, with a quarter of the multiplications.

    The arithmetic is float32, whatever the dtype of the input, which the output has too.

    Args:
        convolution, source, norm_source, relu: see :class:`FoldedConvolution`.
    """

    forward_weights: Tensor
    backward_weights: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d, source: str, norm_source: str | None, relu: bool) -> None:
        super().__init__()
        self.source = source
        self.norm_source = norm_source
        self.relu = relu
        self.channels = (convolution.in_channels, convolution.out_channels)
        weight = convolution.weight.detach()
        self.register_buffer("forward_weights", winograd.transform_weights(weight))
        self.register_buffer("backward_weights", winograd.transform_weights(weight, transposed=True))
        self.register_buffer("bias", weight.new_zeros(convolution.out_channels))

    @staticmethod
    def can_be(convolution: nn.Module) -> bool:
        """Whether it computes the same as this convolution, and faster: with few channels there is little to save."""
        return (
            winograd.supported()
            and isinstance(convolution, nn.Conv2d)
            and convolution.weight.device.type == "cpu"
            and convolution.weight.dtype == torch.float32
            and convolution.kernel_size == (3, 3)
            and convolution.stride == convolution.padding == convolution.dilation == (1, 1)
            and convolution.groups == 1
            and convolution.padding_mode == "zeros"
            and min(convolution.in_channels, convolution.out_channels) >= _FEWEST_CHANNELS
        )

    def load(self, original: _ConvNd, scale: Tensor | None, shift: Tensor | None) -> None:
        weight, bias = folded_weights(original, scale, shift)
        self.forward_weights.copy_(winograd.transform_weights(weight))
        self.backward_weights.copy_(winograd.transform_weights(weight, transposed=True))
        if bias is not None:
            self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return _WinogradFunction.apply(
            x, self.forward_weights, self.backward_weights, self.bias, self.channels, self.relu
        )


_FEWEST_CHANNELS = 16


class _WinogradFunction(torch.autograd.Function):
    """The convolution, and its gradient with respect to x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, forward_weights: Tensor, backward_weights: Tensor, bias: Tensor,
        channels: tuple[int, int], relu: bool,
    ) -> Tensor:  # fmt: skip
        ctx.in_channels, out_channels = channels
        out = winograd.conv3x3(x, forward_weights, out_channels, bias, relu)
        ctx.save_for_backward(backward_weights, *([out] if relu else []))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward_weights, *outs = ctx.saved_tensors
        for out in outs:  # of the ReLU
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        return winograd.conv3x3(grad, backward_weights, ctx.in_channels), None, None, None, None, None


class Float32Linear(nn.Linear):
    """The layer that gives the logits, in the classifier's own precision: its rounding would be the loss's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


FUSED = (ChannelAffine, FoldedConvolution, WinogradConvolution)
"""Layers that load their weights themselves."""

KEEPS_PRECISION = (ChannelAffine, WinogradConvolution, Float32Linear, *BATCH_NORMS)
"""Layers whose parameters stay as precise as the classifier's in a 16-bit twin."""
