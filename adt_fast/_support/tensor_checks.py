"""Checks of the operators' arguments that are tensors, made before anything is changed.

Errors name the argument, what was given and what is wanted.
"""

from __future__ import annotations

import math

import torch

from ..noise import MAX_BLOCKS, MAX_EXAMPLES, MAX_OFFSET, MAX_SAMPLES
from .checks import check_int, dtype_name
from .layout import channels_and_pixels, layout_of

COMPUTE_DTYPES = (torch.float32, torch.float64)
HALF_DTYPES = (torch.bfloat16, torch.float16)


def check_batch(name: str, tensor: torch.Tensor) -> None:
    """A float32 or float64 tensor ``[B, ...]`` whose examples have at least one element."""
    check_tensor(name, tensor)
    if tensor.dtype not in COMPUTE_DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {dtype_name(tensor.dtype)}")
    if tensor.dim() < 1 or math.prod(tensor.shape[1:]) == 0:
        raise ValueError(f"{name} must be a batch [B, ...] of examples that are not empty, got {_size(tensor)}")


def check_activation(name: str, tensor: torch.Tensor) -> None:
    """A floating tensor ``[N, C, ...]`` whose examples have at least one element."""
    check_tensor(name, tensor)
    if tensor.dtype not in (*COMPUTE_DTYPES, *HALF_DTYPES):
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {dtype_name(tensor.dtype)}")
    if tensor.dim() < 2 or math.prod(tensor.shape[1:]) == 0:
        raise ValueError(f"{name} must be [N, C, ...] with examples that are not empty, got {_size(tensor)}")
    if math.prod(tensor.shape[1:]) > 4 * MAX_BLOCKS:
        raise ValueError(f"{name} must have at most 2**34 elements an example, got {_size(tensor)}")


def check_coefficients(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """One number for each channel of ``like``, float32 (float64 for float64), outside of autograd."""
    check_tensor(name, tensor)
    wanted = torch.promote_types(like.dtype, torch.float32)
    if tensor.dtype != wanted:
        raise TypeError(f"{name} must be {dtype_name(wanted)} for {dtype_name(like.dtype)} {like_name}, got "
                        f"{dtype_name(tensor.dtype)}")
    if tensor.shape != like.shape[1:2]:
        raise ValueError(f"{name} must be {list(like.shape[1:2])}, a number for each channel, got {_size(tensor)}")
    _check_device(name, tensor, like_name, like)
    check_constant(name, tensor.requires_grad and torch.is_grad_enabled())


def check_constant(name: str, needs_grad: bool) -> None:
    """An argument that autograd does not follow."""
    if needs_grad:
        raise ValueError(f"{name} gets no gradient and must not require one; pass {name}.detach()")


def check_like(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """The same shape, dtype and device as another argument."""
    check_tensor(name, tensor)
    _check_shape(name, tensor, like_name, like)
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {like_name}, {dtype_name(like.dtype)}, got "
                        f"{dtype_name(tensor.dtype)}")
    _check_device(name, tensor, like_name, like)


def check_samples_of(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """k slabs ``[k, *like.shape]`` in like's dtype, or a 16-bit one when that is float32."""
    check_tensor(name, tensor)
    if tensor.dim() != like.dim() + 1 or tensor.shape[1:] != like.shape or tensor.shape[0] < 1:
        wanted = "[k" + "".join(f", {size}" for size in like.shape) + "]"
        raise ValueError(f"{name} must have the shape {wanted} with k >= 1, got {_size(tensor)}")
    check_storage_dtype(name, tensor.dtype, like_name, like)
    _check_device(name, tensor, like_name, like)
    check_samples(tensor.shape[0])


def check_storage_dtype(name: str, dtype: torch.dtype, like_name: str, like: torch.Tensor) -> None:
    """like's dtype, or bfloat16 or float16 when that is float32."""
    allowed = (like.dtype, *HALF_DTYPES) if like.dtype == torch.float32 else (like.dtype,)
    if dtype not in allowed:
        names = ", ".join(dtype_name(d) for d in allowed)
        raise TypeError(f"{name} must be one of {names} for {dtype_name(like.dtype)} {like_name}, got "
                        f"{dtype_name(dtype)}")


def check_iterate(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """A tensor of like's shape in like's dtype or a 16-bit one (an x_adv, or a gradient)."""
    check_tensor(name, tensor)
    _check_shape(name, tensor, like_name, like)
    check_storage_dtype(name, tensor.dtype, like_name, like)
    _check_device(name, tensor, like_name, like)


def check_noise(
    noise: torch.Tensor, like: torch.Tensor, draw: int, first_example: int, samples: int, like_name: str = "x"
) -> None:
    """The (seed, offset) tensor, and coordinates that fit the Philox counter."""
    if not isinstance(noise, torch.Tensor):
        raise TypeError(f"noise must be the state of a NoiseStream (an int64 tensor [2]), got {type(noise).__name__}")
    if noise.dtype != torch.int64 or noise.shape != (2,) or not noise.is_contiguous():
        raise ValueError(
            f"noise must be a contiguous int64 tensor [2], (seed, offset), got {dtype_name(noise.dtype)} {_size(noise)}"
        )
    _check_device("noise", noise, like_name, like)
    check_int("draw", draw, 0, MAX_OFFSET)
    check_int("first_example", first_example, 0, MAX_EXAMPLES)
    check_samples(samples)
    channels, pixels = channels_and_pixels(like.shape)
    last_example = first_example + like.shape[0]
    if last_example > MAX_EXAMPLES:
        raise ValueError(f"first_example plus the batch size must be at most 2**32, got {last_example}")
    if -(-pixels // 4) * channels > MAX_BLOCKS:
        raise ValueError(f"{like_name} must have at most 2**34 elements an example, got {_size(like)}")


def check_samples(samples: int) -> None:
    """k, which the Philox counter has room for."""
    check_int("samples", samples, 1, MAX_SAMPLES + 1)


def check_written(name: str, tensor: torch.Tensor, layout: torch.memory_format | None = None) -> None:
    """A tensor that is written in place: dense, outside of autograd, and in the layout of its companions."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} is changed in place and must not require grad; pass {name}.detach()")
    found = layout_of(tensor)
    if found is None:
        raise ValueError(
            f"{name} is changed in place and must be contiguous or channels_last, got strides {tuple(tensor.stride())}"
        )
    if layout is not None and found != layout:
        raise ValueError(f"{name} is changed in place and must have the memory layout {layout}, got {found}")


def check_separate(written: dict[str, torch.Tensor | None], read: dict[str, torch.Tensor | None]) -> None:
    """Tensors that are written must not share memory with one another or with those that are read."""
    seen: list[tuple[str, int, int]] = []
    for tensors, is_written in ((written, True), (read, False)):
        for name, tensor in tensors.items():
            if tensor is None or tensor.numel() == 0:
                continue
            first, last = _memory(tensor)
            for other, other_first, other_last in seen:
                if first < other_last and other_first < last:
                    raise ValueError(f"{name} must not share memory with {other}")
            if is_written:
                seen.append((name, first, last))


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    """The range of addresses that a tensor lies in."""
    first, size = tensor.data_ptr(), tensor.element_size()
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride()))
    return first, first + (reach + 1) * size


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """A dense tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")


def _check_shape(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {like_name}, {_size(like)}, got {_size(tensor)}")


def _check_device(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {tensor.device}")


def _size(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))
