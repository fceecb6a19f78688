"""The engine's options: one set, the same for every attack and every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .._support.checks import check_bool, check_choice, check_finite, check_int, check_positive

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
"""See :class:`EngineOptions`."""

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How :class:`InputGradient` computes. Every feature that does not suit a model or a machine falls back, and
    :meth:`InputGradient.explain` says why; only an option that is wrong by itself is an error.

    Raises TypeError or ValueError that names the option.
    """

    precision: Precision = "auto"
    """What the classifier's convolutions and matrix products run in. ``"fp32"``: IEEE float32, also on a GPU whose
    convolutions PyTorch would by default run in TF32. ``"tf32"``: that, on CUDA. ``"bf16"``, ``"fp16"``: 16 bits,
    watched by the guard (below); images, (mu, rho), the loss and the update stay float32. ``"auto"``: fp16 on CUDA
    (closer to float32 than bf16, and as fast), bf16 on a CPU that multiplies it in hardware, float32 elsewhere."""

    twin: bool = True
    """Run a frozen copy of the classifier, in eval mode, channels_last, with batch norms folded into the convolutions
    before them where the model's graph can be read, and refreshed from the live weights. False: run the classifier
    itself, in float32."""

    winograd: bool = True
    """On a CPU, compute the twin's 3x3 convolutions by Winograd's F(4x4, 3x3), in a quarter of the multiplications. Its
    float32 rounding error is about twice that of PyTorch's convolution."""

    compile: bool = False
    """``torch.compile`` the twin: faster on some models and machines, after a minute of compilation."""

    graph: bool | Literal["auto"] = "auto"
    """Capture the whole inner loop of an attack in a CUDA graph, one for each shape of a minibatch and, where it is
    shared or goes through in parts, each place of the images in it. Of more than 32 the one used longest ago goes. All
    work in the same memory. ``"auto"``: on CUDA."""

    chunk: int | Literal["auto"] | None = "auto"
    """At most this many examples go through the classifier at once, >= 1; None for all. ``"auto"``: as many as fit in
    half of a GPU's free memory, or in a few times a CPU's cache, where a smaller working set is faster; all where
    a batch norm uses the statistics of the batch, for which a number is an error."""

    check_every: int = 100
    """16-bit gradients are compared with float32 ones in the first and then in every so many minibatches, >= 1."""

    min_cosine: float = 0.95
    """Below this cosine between the 16-bit and the float32 gradient of a few images, float32 is used, with one warning,
    until a later check passes."""

    min_sign_agreement: float = 0.85
    """The same for the share of elements whose signs agree, which is what a sign-gradient step uses."""

    loss_scale: float = 1024.0
    """fp16 gradients are computed of the loss times this, > 0, so that small ones do not vanish; it is undone before
    the update. It should be a power of two."""

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, get_args(Precision))
        for name in ("twin", "winograd", "compile"):
            check_bool(name, getattr(self, name))
        if not isinstance(self.graph, bool) and self.graph != "auto":
            raise ValueError(f"graph must be True, False or 'auto', got {self.graph!r}")
        if self.chunk is not None and self.chunk != "auto":
            check_int("chunk", self.chunk, 1, 2**63)
        check_int("check_every", self.check_every, 1, 2**63)
        for name in ("min_cosine", "min_sign_agreement"):
            check_finite(name, getattr(self, name))
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [-1, 1], got {getattr(self, name)}")
        check_positive("loss_scale", self.loss_scale)

    def half_dtype(self, device: torch.device) -> torch.dtype | None:
        """bfloat16 or float16, as the precision asks for on this device; None for 32 bits."""
        precision = _automatic_precision(device) if self.precision == "auto" else self.precision
        return HALF.get(precision)


FLOAT32 = EngineOptions(precision="fp32")
"""What attacks use unless told otherwise: an evaluation in 16 bits could take a rounding error for robustness."""


def _automatic_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "fp32"
