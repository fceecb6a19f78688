"""What is measured of a trained model: a function a kind, from the model to plain numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from adt_fast._runs.generator_attacks import fitted_attack, is_generator_attack
from adt_fast._runs.trained_model import TrainedModel
from adt_fast.analysis import distribution_entropy, hessian_curvature, learned_distribution, loss_landscape
from adt_fast.analysis.sweep import maximizer_in_float32
from adt_fast.config import TrainConfig, TrainedModelConfig
from adt_fast.data import class_names
from adt_fast.evaluation import evaluate
from adt_fast.experiment import TrainingRun

from .plan import Measurement
from .store import ModelFolder

_CURVATURE_QUANTILES = 101


def can_be_measured(measurement: Measurement) -> bool:
    """Whether what a measurement needs is installed here."""
    return measurement.kind != "autoattack" or find_spec("autoattack") is not None


def measure(measurement: Measurement, folder: ModelFolder, config: TrainConfig) -> dict[str, Any]:
    """The result of a measurement of the model in a folder, on the first test images, and the seconds it took."""
    start = time.perf_counter()
    images = measurement.settings["test_images"]
    trained = TrainedModel(
        TrainedModelConfig(folder.run, data_dir=config.data_dir, test_limit=images, seed=config.seed)
    )
    result = _KINDS[measurement.kind](measurement, folder, trained, config)
    return result | {"seconds": time.perf_counter() - start}


def _accuracies(
    measurement: Measurement, folder: ModelFolder, trained: TrainedModel, config: TrainConfig
) -> dict[str, Any]:
    """Natural accuracy, that under each attack, and A_rob, from 0 to 1. An attack that has a generator trains it first,
    against the model (Section 5.4)."""
    attacks: dict[str, Any] = {}
    for name in measurement.settings["attacks"]:
        path = folder.file(measurement, f"{name.split(':')[0]}.safetensors")
        attacks[name] = fitted_attack(name, trained, path, progress=False) if is_generator_attack(name) else name
    report = evaluate(
        trained.model, trained.data, attacks, epsilon=trained.epsilon, seed=trained.config.seed, examples=0,
        state=folder.file(measurement, "state.safetensors"), resume=True,
    )  # fmt: skip
    return {"accuracies": {name: float(value) for name, value in report.accuracies().items()}}


def _entropy(
    measurement: Measurement, folder: ModelFolder, trained: TrainedModel, config: TrainConfig
) -> dict[str, Any]:
    """As accuracies, and the mean entropy of the method's distributions for the test images, in nats per element."""
    # The run itself, at its end: its maximizer has the generator that was trained with the model.
    run = TrainingRun(config, resume=True)
    try:
        entropy = distribution_entropy(
            maximizer_in_float32(run), trained.data, samples=measurement.settings["samples"], seed=trained.config.seed
        )
    finally:
        run.close()
    return _accuracies(measurement, folder, trained, config) | {
        "entropy_per_element": entropy.mean_per_element,
        "standard_error": entropy.standard_error_per_element,
        "highest_per_element": entropy.highest_per_element,
    }


def _curvature(
    measurement: Measurement, folder: ModelFolder, trained: TrainedModel, config: TrainConfig
) -> dict[str, Any]:
    """Dominant eigenvalues of the Hessian of each image's loss: mean, standard deviation and quantiles."""
    images, labels = _all_of(trained)
    found = hessian_curvature(trained.model, images, labels, seed=trained.config.seed)
    quantiles = torch.quantile(found.eigenvalues.double(), torch.linspace(0, 1, _CURVATURE_QUANTILES).double())
    return {
        "mean": found.mean, "std": found.std, "quantiles": quantiles.tolist(),
        "converged": float(found.converged.double().mean()),
    }  # fmt: skip


def _landscape(
    measurement: Measurement, folder: ModelFolder, trained: TrainedModel, config: TrainConfig
) -> dict[str, Any]:
    """The loss of one image over a plane, in nats, to six digits."""
    index = measurement.settings["image"]
    images, labels = (part[index : index + 1] for part in _all_of(trained))
    found = loss_landscape(
        trained.model, images, labels, epsilon=trained.epsilon, steps=measurement.settings["steps"], seed=0
    )
    losses = [[float(f"{loss:.6g}") for loss in line] for line in found.losses[0].tolist()]
    return {
        "offsets": (found.offsets / found.epsilon).tolist(), "losses": losses, "label": int(labels),
        "at_image": float(found.at_image[0]), "highest_in_ball": float(found.highest_in_ball[0]),
    }  # fmt: skip


def _distribution(
    measurement: Measurement, folder: ModelFolder, trained: TrainedModel, config: TrainConfig
) -> dict[str, Any]:
    """What EXP, as in training, has learned around some images; its picture is kept beside the result."""
    indices = list(measurement.settings["images"])
    images, labels = (part[indices] for part in _all_of(trained))
    run = TrainingRun(config, resume=True)
    try:
        found = learned_distribution(
            maximizer_in_float32(run), images, labels, class_names=class_names(trained.dataset), seed=config.seed
        )
    finally:
        run.close()
    found.save(folder.file(measurement, "picture"))
    return found.to_dict()


def _all_of(trained: TrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, C, H, W] and labels [N]."""
    images, labels = zip(*trained.loader)
    return torch.cat(images), torch.cat(labels)


_KINDS: dict[str, Callable[[Measurement, ModelFolder, TrainedModel, TrainConfig], dict[str, Any]]] = {
    "accuracies": _accuracies,
    "entropy": _entropy,
    "strength": _accuracies,
    "curvature": _curvature,
    "landscape": _landscape,
    "distribution": _distribution,
    "autoattack": _accuracies,
}
