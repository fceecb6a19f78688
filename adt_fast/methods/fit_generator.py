"""Training the generator of an amortised attack against a classifier that stays as it is (paper, Section 5.4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._support.batch_check import BatchCheck, pairs
from .._support.checks import check_int
from .._support.model_state import device_of, frozen_parameters, model_mode
from ..attacks import AmortizedAttack
from ..losses import cross_entropy
from .joint import JointTraining


def fit_generator(
    attack: AmortizedAttack,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int = 1,
    generator_learning_rate: float = 2e-4,
    progress: str | None = None,
) -> list[float]:
    """Trains an attack's networks to raise the cross entropy of its model, and the entropy of their distribution.

    The model is in the attack's mode, in its own precision, and no gradient of its weights is computed; afterwards it
    is as it was. The networks train in train mode, and are in the mode they had afterwards.

    Args:
        attack: an EXPAM, IMPAM or L2L; its networks are trained in place, and its noise advances.
        batches: (images, labels), iterated over once an epoch, such as an :class:`adt_fast.data.BatchLoader`; they move
            to the model's device.
        epochs: >= 1.
        generator_learning_rate: of the networks' Adam, > 0; the paper's is 2e-4.
        progress: label of a progress bar, shown where stderr is a terminal; None for no bar.

    Returns:
        The mean loss of the model on the attack's images, one number for each epoch.

    Raises:
        TypeError, ValueError: for a bad argument, image or label, by name, or if there are no data.
        FloatingPointError: if the loss is no longer finite; the networks are then of no use.
    """
    check_int("epochs", epochs, 1, 2**31)
    if not isinstance(attack, AmortizedAttack):
        raise TypeError(f"attack, the maximizer, must be an AmortizedAttack, got {type(attack).__name__}")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must give (images, labels), got {type(batches).__name__}")
    training = JointTraining(attack, generator_learning_rate=generator_learning_rate)
    model = attack.model
    check_batch = BatchCheck(model, attack.lower, attack.upper)
    device = device_of(model) or torch.device("cpu")
    losses = []
    networks = nn.ModuleDict(training.networks)
    for _ in range(epochs):
        total = count = 0.0
        bar = tqdm(batches, desc=progress, unit="batch", leave=False, disable=True if progress is None else None)
        with bar, model_mode(model, attack.input_gradient.model_mode), model_mode(networks, "train"):
            for images, labels in pairs("batches", bar):
                images, labels = images.to(device), labels.to(device)
                check_batch(images, labels)
                loss = _step(attack, training, images, labels)
                total, count = total + loss * len(images), count + len(images)
        if count == 0:
            raise ValueError("batches must have at least one image in every epoch, got none")
        losses.append(total / count)
    return losses


def _step(attack: AmortizedAttack, training: JointTraining, images: Tensor, labels: Tensor) -> float:
    training.zero_grad()
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        x_adv, penalty = attack.sample(images, labels)
        with frozen_parameters(attack.model):
            loss = cross_entropy(attack.model(x_adv[0]), labels).mean()
        objective = -loss if penalty is None else penalty - loss
        if not bool(torch.isfinite(objective)):
            raise FloatingPointError(f"the generator's loss is {float(objective)}: lower its learning rate")
        objective.backward()
    training.step()
    return float(loss.detach())
