"""What a training step costs in arithmetic, and how much of it this machine could do at best.

Counted is what the objective needs: T k forward passes and input gradients, or the two that a generator is given, and
one training step, of the generator and the encoder too. A contestant that computes more, such as the weight gradients
that the published loop throws away, gets no credit for it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations for one image; a multiplication and an addition count as two."""

    forward: int
    input_gradient: int
    """Forward, and backward to the image, of a model whose weights are frozen."""
    training: int
    """Forward, and backward to the weights."""

    def of_step(self, batch: int, inner_passes: int) -> int:
        """Of a whole minibatch, with so many input gradients for each image before the training step."""
        return batch * (inner_passes * self.input_gradient + self.training)


def count_model_flops(model: nn.Module, image: tuple[int, int, int]) -> ModelFlops:
    """Counts convolutions and matrix products by their shapes, without computing anything."""
    model = copy.deepcopy(model).to("meta").eval()
    training = _count(model, torch.empty(1, *image, device="meta"))
    model.requires_grad_(False)
    input_gradient = _count(model, torch.empty(1, *image, device="meta", requires_grad=True))
    with torch.no_grad():
        forward = _count(model, torch.empty(1, *image, device="meta"))
    return ModelFlops(forward, input_gradient, training)


def count_joint_flops(model: nn.Module, networks: nn.ModuleDict, image: tuple[int, int, int]) -> int:
    """For one image, of the pass that trains a classifier and the networks that perturb its images.

    Forward, and backward to the weights of them all: the classifier's goes through the image to the generator.

    Args:
        networks: "generator", of the image and two gradients; with it "encoder", where the generator is given noise.
    """
    model, networks = (copy.deepcopy(network).to("meta").eval() for network in (model, networks))
    channels, *size = image
    inputs = [torch.empty(1, 3 * channels, *size, device="meta")]
    generator = networks["generator"]
    if generator.latent is not None:
        inputs.append(torch.empty(1, generator.latent[0].in_features, device="meta"))
    with FlopCounterMode(display=False) as counter:
        direction = generator(*inputs)
        loss = F.cross_entropy(model(direction[:, :channels]), torch.zeros(1, dtype=torch.int64, device="meta"))
        if "encoder" in networks:
            loss = loss + sum(part.sum() for part in networks["encoder"](direction))
        loss.backward()
    return counter.get_total_flops()


def forward_flops(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Of one call, whose arguments may be on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def _count(model: nn.Module, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(model(images), torch.zeros(1, dtype=torch.int64, device="meta"))
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops()


def matmul_ceiling(precision: str, device: torch.device, size: int | None = None, repeats: int = 7) -> float:
    """FLOP/s of a product of two large square matrices in a precision: the fastest of the repeats."""
    size = _MATRIX_SIZE[device.type] if size is None else size
    matrix = torch.randn(size, size, device=device).to(DTYPES[precision])
    out = torch.empty_like(matrix)
    with float32_products(precision, device):
        seconds = min(_seconds(matrix, out) for _ in range(1 + repeats))
    return 2 * size**3 / seconds


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """On CUDA: float32 convolutions and matrix products in IEEE float32, or in TF32 if that is the precision."""
    if device.type != "cuda":
        yield
        return
    # The older of PyTorch's two interfaces: torch.compile reads it, and it raises where only the newer one was set.
    settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = precision == "tf32"
        yield
    finally:
        for setting, value in zip(settings, before):
            setting.allow_tf32 = value


def _seconds(matrix: torch.Tensor, out: torch.Tensor) -> float:
    if matrix.device.type != "cuda":
        start = time.perf_counter()
        torch.matmul(matrix, matrix, out=out)
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    torch.matmul(matrix, matrix, out=out)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
