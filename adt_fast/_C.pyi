"""The native core (csrc/bindings.cpp): raw addresses in, nothing out. Tensors are given by their ``data_ptr()``.

Every operator takes the target (device, stream, threads), device -1 being the CPU, and types as the codes of
:data:`adt_fast._operators.native.DTYPE_CODES`. What an argument means is said in csrc/kernels.h.
"""

from typing import TypeAlias

_Target: TypeAlias = tuple[int, int, int]  # device, stream, threads
_Shape: TypeAlias = tuple[int, int, int, bool]  # batch, channels, pixels, channels_last
_Ball: TypeAlias = tuple[float, float, float]  # epsilon, lower, upper
_Noise: TypeAlias = tuple[int, int, int]  # address of the state, draw, first_example
_Images: TypeAlias = tuple[int, int, int, int]  # batch, height, width, channels
_Strides: TypeAlias = tuple[int, int, int, int]  # out, in, row, column

with_cuda: bool
cuda_architectures: str
cuda_toolkit: str
without_cuda_because: str
compiler: str

def tanh_gaussian_sample(
    target: _Target, dtype: int, storage: int, shape: _Shape, ball: _Ball, noise: _Noise, samples: int,
    log_offset: float, x: int, mu: int, rho: int, x_adv: int, neg_log_density: int, partials: int, /,
) -> None: ...
def tanh_gaussian_sample_backward(
    target: _Target, dtype: int, storage: int, shape: _Shape, ball: _Ball, noise: _Noise, samples: int,
    log_offset: float, grad_x_adv: int, grad_neg_log_density: int, x: int, mu: int, rho: int, grad_x: int,
    grad_mu: int, grad_rho: int, /,
) -> None: ...
def tanh_gaussian_ascent(
    target: _Target, dtype: int, storage: int, shape: _Shape, ball: _Ball, noise: _Noise, samples: int, update: int,
    step_size: float, grad_scale: float, entropy_weight: float, log_offset: float, grad_x_adv: int, x: int, mu: int,
    rho: int, accumulated_mu: int, accumulated_rho: int, next_draw: int, x_adv: int, neg_log_density: int,
    partials: int, /,
) -> None: ...
def linf_step(
    target: _Target, dtype: int, storage: int, gradient: int, shape: _Shape, ball: _Ball, step_size: float, grad: int,
    x: int, x_adv: int, /,
) -> None: ...
def l2_step(
    target: _Target, dtype: int, storage: int, gradient: int, shape: _Shape, ball: _Ball, step_size: float, grad: int,
    x: int, x_adv: int, /,
) -> None: ...
def momentum_linf_step(
    target: _Target, dtype: int, storage: int, gradient: int, shape: _Shape, ball: _Ball, step_size: float,
    decay: float, grad: int, x: int, x_adv: int, momentum: int, /,
) -> None: ...
def uniform_start(
    target: _Target, dtype: int, storage: int, shape: _Shape, ball: _Ball, noise: _Noise, x: int, x_adv: int, /,
) -> None: ...
def normal(target: _Target, dtype: int, shape: _Shape, noise: _Noise, samples: int, out: int, /) -> None: ...
def affine_relu(
    target: _Target, dtype: int, storage: int, shape: _Shape, relu: bool, x: int, scale: int, shift: int, y: int, /,
) -> None: ...
def affine_relu_backward(
    target: _Target, dtype: int, storage: int, shape: _Shape, grad_y: int, y: int, scale: int, grad_x: int, /,
) -> None: ...
def winograd_conv3x3(
    threads: int, storage: int, images: _Images, out_channels: int, relu: bool, x: int, weights: int, bias: int,
    y: int, /,
) -> None: ...
def winograd_transform_weights(
    threads: int, in_channels: int, out_channels: int, strides: _Strides, flipped: bool, weight: int,
    transformed: int, /,
) -> None: ...
def density_partials(shape: _Shape, /) -> int: ...
def cuda_devices() -> tuple[int, str]: ...
def instruction_set() -> str: ...
def instruction_sets() -> str: ...
def use_instruction_set(name: str, /) -> None: ...
def thread_runtime() -> str: ...
