"""3x3 convolutions of stride 1 and padding 1 on the CPU, by Winograd's F(4x4, 3x3).

For frozen weights: they are transformed once and used many times. The gradient with respect to the input is such a
convolution too, with weights transformed as ``transposed``. Nothing here takes part in autograd.

Against ``torch.nn.functional.conv2d`` in float32 the arithmetic is a quarter, and the error about twice as large. An
infinity or NaN in the input makes NaN of every output of a tile that sees it, where torch makes it of fewer.
"""

from __future__ import annotations

import torch

from .._support.checks import check_int, dtype_name
from . import native

_FREQUENCIES, _PANEL = 36, 32  # of csrc/cpu/winograd.h and csrc/cpu/work.h
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supported() -> bool:
    """Whether the native module, and with it the convolution, is there."""
    return native.module is not None


def transform_weights(weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """The weights as ``conv3x3`` takes them.

    Args:
        weight: ``[Cout, Cin, 3, 3]`` in float32, bfloat16 or float16, in any memory layout.
        transposed: for the gradient with respect to the input, a convolution of Cout channels to Cin.

    Returns:
        A float32 tensor ``[ceil(Cout / 32), 36, Cin, 32]``; Cout and Cin change places when transposed.
    """
    _check_floats("weight", weight)
    if weight.dim() != 4 or weight.shape[2:] != (3, 3) or 0 in weight.shape:
        raise ValueError(f"weight must be [Cout, Cin, 3, 3], got {list(weight.shape)}")
    weight = weight.detach().float()
    out_channels, in_channels = weight.shape[:2]
    out_stride, in_stride, row_stride, column_stride = weight.stride()
    if transposed:
        out_channels, in_channels, out_stride, in_stride = in_channels, out_channels, in_stride, out_stride
    transformed = weight.new_empty(_transformed_shape(out_channels, in_channels))
    _check_supported()
    native.module.winograd_transform_weights(
        torch.get_num_threads(), in_channels, out_channels, (out_stride, in_stride, row_stride, column_stride),
        bool(transposed), weight.data_ptr(), transformed.data_ptr(),
    )
    return transformed


def conv3x3(
    x: torch.Tensor,
    transformed: torch.Tensor,
    out_channels: int,
    bias: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """The convolution of x, plus the bias, through a ReLU if wanted.

    Args:
        x: ``[B, Cin, H, W]`` in float32, bfloat16 or float16; a copy is made unless it is channels_last. The
            arithmetic is in float32 for all three.
        transformed: from ``transform_weights``.
        out_channels: Cout.
        bias: float32 ``[Cout]``.

    Returns:
        ``[B, Cout, H, W]`` in x's dtype, channels_last.
    """
    _check_images(x)
    check_int("out_channels", out_channels, 1, 2**31)
    batch, in_channels, height, width = x.shape
    _check_exactly("transformed", transformed, _transformed_shape(out_channels, in_channels))
    if bias is not None:
        _check_exactly("bias", bias, (out_channels,))
    x = x.detach().contiguous(memory_format=torch.channels_last)
    shape = batch, out_channels, height, width
    y = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
    _check_supported()
    native.module.winograd_conv3x3(
        torch.get_num_threads(), native.DTYPE_CODES[x.dtype], (batch, height, width, in_channels), out_channels,
        bool(relu), x.data_ptr(), transformed.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
    )
    return y


def _check_supported() -> None:
    if not supported():
        raise RuntimeError(f"the Winograd convolution needs the native module: {native.unavailable_because}")


def _transformed_shape(out_channels: int, in_channels: int) -> tuple[int, int, int, int]:
    return -(-out_channels // _PANEL), _FREQUENCIES, in_channels, _PANEL


def _check_floats(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...] = _DTYPES) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(dtype_name, dtypes))}, got {dtype_name(tensor.dtype)}")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor on the CPU, got {tensor.layout} on {tensor.device}")


def _check_images(x: torch.Tensor) -> None:
    _check_floats("x", x)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be images [B, C, H, W] that are not empty, got {list(x.shape)}")


def _check_exactly(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    _check_floats(name, tensor, (torch.float32,))
    if tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {list(shape)}, got {list(tensor.shape)} with strides {tensor.stride()}"
        )
