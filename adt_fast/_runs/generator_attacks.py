"""EXP-AM, IMP-AM and L2L as attacks on a trained model: their generator is trained against it first (Section 5.4)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._settings.dataset_defaults import DATASET_DEFAULTS
from .._support.option_text import parse_options
from .._support.random_state import kept_random_state
from ..attacks import AmortizedAttack
from ..checkpoint import digest_of_model
from ..data import BatchLoader
from ..methods import JointTraining, exp_am, fit_generator, imp_am, l2l
from ..noise import NoiseStream
from .trained_model import TrainedModel

_FACTORIES: dict[str, Callable[..., AmortizedAttack]] = {"exp-am": exp_am, "imp-am": imp_am, "l2l": l2l}
_BATCH_SIZE = 64
_OPTIONS = ("epochs", "train_limit", "generator_width", "generator_learning_rate")


def is_generator_attack(name: str) -> bool:
    """Whether a name, options aside, is one of these."""
    return name.split(":")[0] in _FACTORIES


def generator_options(name: str, trained: TrainedModel) -> dict[str, Any]:
    """The options of such an attack, those that its name leaves out included.

    Raises:
        ValueError: if an option is unknown, or the model's ball is not the L-infinity ball.
    """
    stem, *texts = name.split(":")
    by_dataset = DATASET_DEFAULTS[trained.dataset]
    options = {
        "epochs": by_dataset.epochs,
        "train_limit": None,
        "generator_width": by_dataset.generator_width,
        "generator_learning_rate": by_dataset.generator_learning_rate,
    } | parse_options("attack", texts, _OPTIONS)
    if trained.norm != "linf":
        raise ValueError(f"attack {stem!r} is of the L-infinity ball alone, and norm is {trained.norm!r}")
    return options


def fitted_attack(name: str, trained: TrainedModel, path: Path | None, *, progress: bool | None) -> AmortizedAttack:
    """The attack, its generator trained on the model's training images.

    Options may follow the name, as in ``exp-am:epochs=3:generator_width=64``; ``train_limit`` trains on the first so
    many images. By default epochs, width and learning rate are those of the data set's training runs.

    Args:
        name: ``exp-am``, ``imp-am`` or ``l2l``.
        trained: the model.
        path: where the trained networks are kept: read if the file is there, else written; None for nowhere.
        progress: a progress bar where stderr is a terminal; False for none.

    Raises:
        TypeError, ValueError: if an option is unknown or impossible, or the file holds a generator that was trained
            against another model, or otherwise.
        OSError: if the training images are missing.
    """
    stem, options = name.split(":")[0], generator_options(name, trained)
    seed = trained.config.seed
    data = trained.training_data(options["train_limit"])
    with kept_random_state(trained.device):  # initial weights are drawn from PyTorch's generator
        torch.manual_seed(seed)
        attack = _FACTORIES[stem](
            trained.model, trained.epsilon, image_shape=data.image_shape,
            generator_width=options["generator_width"], noise=NoiseStream(seed),
        )  # fmt: skip
    training = JointTraining(attack, generator_learning_rate=options["generator_learning_rate"])
    trained_for = {
        "attack": name, "seed": seed, "epsilon": trained.epsilon, "dataset": trained.dataset,
        "model": digest_of_model(trained.model),
    }  # fmt: skip
    if path is not None and path.exists():
        found = training.load(path)
        if differing := [key for key, value in trained_for.items() if found.get(key) != value]:
            raise ValueError(f"{path} holds another generator: {', '.join(differing)} differ. Give another output "
                             "folder")
        return attack
    loader = BatchLoader(data, _BATCH_SIZE, device=trained.device, shuffle=True, seed=seed, channels_last=True)
    fit_generator(
        attack, loader, epochs=options["epochs"], generator_learning_rate=options["generator_learning_rate"],
        progress=None if progress is False else f"fit {stem}",
    )  # fmt: skip
    if path is not None:
        training.save(path, trained_for)
    return attack
