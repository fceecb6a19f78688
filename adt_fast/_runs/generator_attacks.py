"""EXP-AM, IMP-AM and L2L as attacks on a trained model: their generator is trained against it first (Section 5.4)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._settings.dataset_defaults import DATASET_DEFAULTS
from .._support.checks import check_int
from .._support.option_text import parse_options
from .._support.random_state import kept_random_state
from ..attacks import AmortizedAttack, exp_am_recipe, imp_am_recipe
from ..checkpoint import digest_of_model
from ..data import BatchLoader
from ..methods import JointTraining, exp_am, fit_generator, imp_am, l2l
from ..noise import NoiseStream
from .trained_model import TrainedModel

_FACTORIES: dict[str, Callable[..., AmortizedAttack]] = {"exp-am": exp_am, "imp-am": imp_am, "l2l": l2l}
_RECIPES: dict[str, Callable[..., Any]] = {"exp-am": exp_am_recipe, "imp-am": imp_am_recipe}  # L2L has none
_BATCH_SIZE = 64
_TRAINING_OPTIONS = ("epochs", "train_limit", "generator_width", "generator_learning_rate")


def is_generator_attack(name: str) -> bool:
    """Whether a name, options aside, is one of these."""
    return name.split(":")[0] in _FACTORIES


def check_generator_attack(name: str, trained: TrainedModel) -> None:
    """Raises what :func:`fitted_attack` would raise for the name or the model's ball, and trains nothing."""
    _attack_and_training(name, trained)


def fitted_attack(name: str, trained: TrainedModel, path: Path | None, *, progress: bool | None) -> AmortizedAttack:
    """The attack, its generator trained on the model's training images.

    Options may follow the name, as in ``exp-am:epochs=3:generator_width=64``. Of its training: ``epochs``,
    ``train_limit``, to train on the first so many images, ``generator_width`` and ``generator_learning_rate``; by
    default they are those of the data set's training runs. Of the attack: ``gradient_scale`` and ``restarts``; and,
    but for L2L, ``recipe``, ``published`` or ``paper``, and ``entropy_weight``.

    Args:
        name: ``exp-am``, ``imp-am`` or ``l2l``.
        trained: the model.
        path: where the trained networks are kept: read if the file is there, else written; None for nowhere.
        progress: a progress bar where stderr is a terminal; False for none.

    Raises:
        ValueError: if an option is unknown or impossible, the model's ball is not the L-infinity ball, or the file
            holds a generator that was trained against another model, or otherwise.
        OSError: if the training images are missing.
    """
    attack, options = _attack_and_training(name, trained)
    training = JointTraining(attack, generator_learning_rate=options["generator_learning_rate"])
    trained_for = {
        "attack": name, "seed": trained.config.seed, "epsilon": trained.epsilon, "dataset": trained.dataset,
        "model": digest_of_model(trained.model),
    }  # fmt: skip
    if path is not None and path.exists():
        found = training.load(path)
        if differing := [key for key, value in trained_for.items() if found.get(key) != value]:
            raise ValueError(f"{path} holds another generator: {', '.join(differing)} differ. Give another output "
                             "folder")
        return attack
    loader = BatchLoader(
        trained.training_data(options["train_limit"]), _BATCH_SIZE, device=trained.device, shuffle=True,
        seed=trained.config.seed, channels_last=True,
    )  # fmt: skip
    fit_generator(
        attack, loader, epochs=options["epochs"], generator_learning_rate=options["generator_learning_rate"],
        progress=None if progress is False else f"fit {name.split(':')[0]}",
    )  # fmt: skip
    if path is not None:
        training.save(path, trained_for)
    return attack


def _attack_and_training(name: str, trained: TrainedModel) -> tuple[AmortizedAttack, dict[str, Any]]:
    """The attack with a new generator, and the options of its training, all of them checked."""
    stem, *texts = name.split(":")
    if trained.norm != "linf":
        raise ValueError(f"attack {stem!r} is of the L-infinity ball alone, and norm is {trained.norm!r}")
    of_distributions = ("recipe", "entropy_weight") if stem in _RECIPES else ()
    options = parse_options("attack", texts, (*_TRAINING_OPTIONS, "gradient_scale", "restarts", *of_distributions))
    by_dataset = DATASET_DEFAULTS[trained.dataset]
    training = {
        "epochs": by_dataset.epochs,
        "train_limit": None,
        "generator_width": by_dataset.generator_width,
        "generator_learning_rate": by_dataset.generator_learning_rate,
    } | {option: options.pop(option) for option in _TRAINING_OPTIONS if option in options}
    try:
        check_int("epochs", training["epochs"], 1, 2**31)
        if training["train_limit"] is not None:
            check_int("train_limit", training["train_limit"], 1, 2**63)
        attack = _new_attack(stem, trained, training["generator_width"], options)
        JointTraining(attack, generator_learning_rate=training["generator_learning_rate"])  # which checks it
    except TypeError as error:  # of what is not Python but a text, which has no types
        raise ValueError(f"{name}: {error}") from None
    return attack, training


def _new_attack(stem: str, trained: TrainedModel, generator_width: int, options: dict[str, Any]) -> AmortizedAttack:
    if stem in _RECIPES:
        scale = {"gradient_scale": options.pop("gradient_scale")} if "gradient_scale" in options else {}
        options["recipe"] = _RECIPES[stem](options.get("recipe", "published"), **scale)
    seed = trained.config.seed
    with kept_random_state(trained.device):  # initial weights are drawn from PyTorch's generator
        torch.manual_seed(seed)
        return _FACTORIES[stem](
            trained.model, trained.epsilon, image_shape=trained.data.image_shape, generator_width=generator_width,
            noise=NoiseStream(seed), **options,
        )  # fmt: skip
