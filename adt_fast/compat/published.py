"""For users of the paper's published script: its ``adt_loss``, with the same meaning, faster.

Replace the script's function by ``from adt_fast.compat import adt_loss``.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from .._support.batch_check import BatchCheck
from .._support.model_state import check_model, device_of, unwrap
from ..attacks import EXP
from ..input_gradient import EngineOptions
from ..noise import NoiseStream, seeded_by_torch

# A script calls once a minibatch: what a check and a maximizer prepare is kept as long as the optimizer lives.
_checks: WeakKeyDictionary[Optimizer, BatchCheck] = WeakKeyDictionary()
_maximizers: WeakKeyDictionary[Optimizer, tuple[dict[str, Any], EXP, NoiseStream]] = WeakKeyDictionary()


def adt_loss(
    model: nn.Module,
    x_natural: Tensor,
    y: Tensor,
    optimizer: Optimizer,
    learning_rate: float = 1.0,
    epsilon: float = 8.0 / 255.0,
    perturb_steps: int = 10,
    num_samples: int = 10,
    lbd: float = 0.0,
    *,
    noise: NoiseStream | None = None,
) -> Tensor:
    """The ADT-EXP loss of a minibatch, as the published script computes it (``recipe="published"``).

    As there, the model is in eval mode for the inner steps and in train mode afterwards, and the optimizer's gradients
    are zeroed before the outer forward pass. Unlike there, the inner steps compute no weight gradients, so gradients
    of parameters that the optimizer does not know stay as they are, and the device need not be CUDA. On CUDA, inner
    convolutions run in TF32, PyTorch's default for them.

    Args:
        model: images -> logits; attacked without its DataParallel wrapper, trained with it.
        x_natural: images ``[B, C, H, W]``, float32 or float64, in [0, 1], on the model's device.
        y: int64 ``[B]``, the classes.
        optimizer: of the model; only its ``zero_grad`` is called.
        learning_rate: of the inner Adam, the step size on (mu, rho).
        epsilon: radius of the L-infinity ball.
        perturb_steps: T, inner steps.
        num_samples: k, Monte Carlo samples of each step.
        lbd: lambda, the weight of the entropy (mean over batch and elements).
        noise: where random numbers come from; it is advanced. Default: seeded from torch's default generator, so that
            ``torch.manual_seed`` governs, as in the script (with other numbers).

    Returns:
        The mean cross entropy on one fresh sample of each distribution, with its graph: call ``backward()``.

    Raises:
        TypeError, ValueError: for a bad argument, by name, before anything is changed; images and labels are
            ``images`` and ``labels`` there.
        FloatingPointError: if an inner gradient is NaN or infinite.
    """
    check_model(model)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if noise is not None and not isinstance(noise, NoiseStream):
        raise TypeError(f"noise must be a NoiseStream or None, got {type(noise).__name__}")
    _batch_check(model, optimizer)(x_natural, y)
    settings = {
        "epsilon": epsilon,
        "steps": perturb_steps,
        "samples": num_samples,
        "step_size": learning_rate,
        "entropy_weight": lbd,
    }
    maximizer = _maximizer(model, optimizer, settings, noise)
    x_adv = maximizer.perturb(x_natural, y)[0]
    model.train()
    optimizer.zero_grad()
    return F.cross_entropy(model(x_adv), y)


def _batch_check(model: nn.Module, optimizer: Optimizer) -> BatchCheck:
    check = _checks.get(optimizer)
    if check is None or check.model is not unwrap(model):
        check = _checks[optimizer] = BatchCheck(model)
    return check


def _maximizer(model: nn.Module, optimizer: Optimizer, settings: dict[str, Any], noise: NoiseStream | None) -> EXP:
    kept = _maximizers.get(optimizer)
    if kept is None or kept[0] != settings or kept[1].model is not unwrap(model):
        own = NoiseStream(0, device_of(model) or "cpu")
        options: dict[str, Any] = {"recipe": "published", "engine": EngineOptions(precision="tf32")} | settings
        kept = settings, EXP(model, noise=own if noise is None else noise, **options), own
        _maximizers[optimizer] = kept
    _, maximizer, own = kept
    if noise is None:
        own.state.copy_(seeded_by_torch().state)  # in place, for a CUDA graph reads it where it is
    maximizer.noise = own if noise is None else noise
    return maximizer
