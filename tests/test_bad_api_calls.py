"""Hundreds of bad calls of what is above the operators: each raises a documented error that names the argument, and
changes nothing.

A good call of each function is written down once, with what its arguments are; the bad ones are generated from that.
Those of the operators are in test_bad_calls.py.
"""

from __future__ import annotations

import copy
import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import ADTExpTrainer, NoiseStream, Trainer, analysis, attacks, data, evaluation, methods, models
from adt_fast.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from adt_fast.config import TrainConfig
from adt_fast.data import ImageData
from adt_fast.input_gradient import EngineOptions
from adt_fast.methods.joint import JointTraining
from adt_fast.schedules import create_schedule

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")

NAN, INF, HUGE = math.nan, math.inf, 10**400

NOT_INTS = {
    "None": None, "str": "3", "list": [3], "bool": True, "float": 1.0, "complex": 1j, "NumPy": np.int64(3),
    "tensor": torch.tensor(3), "nan": NAN, "inf": INF, "far too large": HUGE, "longer than can be shown": 10**5000,
}  # fmt: skip
NOT_NUMBERS = {
    "None": None, "str": "0.1", "list": [0.1], "bool": True, "complex": 0.1j, "tensor": torch.tensor(0.1), "nan": NAN,
    "inf": INF, "-inf": -INF, "far too large": HUGE, "longer than can be shown": 10**5000,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What an argument is: flaw -> a value that it must not have."""

    flaws: Mapping[str, Any]

    def besides(self, *allowed: str, **more: Any) -> Kind:
        """The same without some flaws, and with more of them."""
        return Kind({flaw: value for flaw, value in self.flaws.items() if flaw not in allowed} | more)


def integer(lowest: int) -> Kind:
    return Kind(NOT_INTS | {"too small": lowest - 1})


def number(**more: Any) -> Kind:
    return Kind(NOT_NUMBERS | more)


POSITIVE = number(zero=0.0, negative=-0.1)
NOT_NEGATIVE = number(negative=-0.1)
BOOL = Kind({"None": None, "int": 1, "float": 0.0, "str": "yes", "tensor": torch.tensor(True)})
CHOICE = Kind({"None": None, "other": "maximum", "int": 1, "empty": "", "list": ["linf"], "dict": {}, "bytes": b"linf"})
MODEL = Kind({"None": None, "function": lambda x: x, "class": TinyClassifier, "str": "wrn-28-10", "dict": {}})
ENGINE = Kind({"str": "fp32", "dict": {"precision": "fp32"}, "class": EngineOptions, "int": 3})
NOISE = Kind({"int": 3, "str": "seed", "tensor": torch.tensor([1, 2]), "generator": torch.Generator()})
OPTIMIZER = Kind({"None": None, "str": "sgd", "class": torch.optim.SGD, "list": []})
TEXT = Kind({"None": None, "int": 3, "list": ["x"], "bytes": b"x"})
METHOD = Kind({"None": None, "str": "adt-exp", "class": methods.Method, "function": lambda x, y: x})

ATTACK = {
    "model": MODEL, "epsilon": POSITIVE, "lower": Kind({"None": None, "str": "0", "nan": NAN, "above upper": 2.0}),
    "upper": Kind({"None": None, "str": "1", "nan": NAN, "below lower": -2.0}), "target": CHOICE,
    "restarts": integer(1), "model_mode": CHOICE, "engine": ENGINE, "noise": NOISE,
    "loss": Kind({"None": None, "str": "ce", "int": 3}), "check_finite": BOOL,
}  # fmt: skip
PGD = ATTACK | {
    "steps": integer(0), "step_size": POSITIVE.besides("None"), "norm": CHOICE,
    "random_start": BOOL.besides(other="uniform"),
}  # fmt: skip
EXP = {
    "steps": integer(0), "samples": integer(1), "step_size": POSITIVE, "entropy_weight": number(),
    "recipe": CHOICE,
}  # fmt: skip


def tiny_data(images: int = 4) -> ImageData:
    pixels, labels = tiny_batch(images)
    return ImageData((pixels * 255).to(torch.uint8), labels, 4, "tiny", (0.5,) * 3, (0.2,) * 3)


def trainer_arguments() -> dict[str, Any]:
    model = TinyClassifier()
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def plateau() -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)], lr=0.1))


def a_trainer() -> Trainer:
    """With a maximizer, whose noise must not move on either."""
    arguments = trainer_arguments()
    return Trainer(**arguments, method=methods.create_method("at-fgsm", arguments["model"], noise=NoiseStream(1)))


def an_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(TinyClassifier().parameters(), lr=0.1)


def a_method(name: str = "standard") -> methods.Method:
    return methods.create_method(name, TinyClassifier(), image_shape=(3, 6, 5), noise=NoiseStream(1))


def generator(outputs: int = 6) -> nn.Module:
    return models.PerturbationGenerator(9, outputs, width=2, image_size=(6, 5))


def images() -> torch.Tensor:
    return tiny_batch(3)[0]


def labels() -> torch.Tensor:
    return tiny_batch(3)[1]


IMAGES = Kind({
    "None": None, "list": [[0.5]], "array": np.full((3, 3, 6, 5), 0.5, np.float32), "str": "x",
    "bytes of images": (images() * 255).to(torch.uint8), "half": images().half(),
    "complex": images().to(torch.complex64),
    "nan": torch.full_like(images(), NAN), "inf": torch.full_like(images(), INF), "above 1": images() + 1,
    "below 0": images() - 1, "of 255": images() * 255, "no images": images()[:0], "one number": torch.tensor(0.5),
    "sparse": images().to_sparse(),
})  # fmt: skip
LABELS = Kind({
    "None": None, "list": [0, 1, 2], "array": np.zeros(3, np.int64), "float": labels().float(), "int32": labels().int(),
    "one less": labels()[:2], "one more": torch.cat([labels(), labels()[:1]]), "negative": labels() - 9,
    "too large": labels() + 9, "2-d": labels()[:, None], "0-d": labels()[0], "one-hot": torch.eye(4)[labels()],
})  # fmt: skip

METHOD_OPTIONS: dict[str, Kind] = {
    "steps": integer(0), "samples": integer(1), "entropy_weight": number(), "recipe": CHOICE,
    "label_smoothing": number(negative=-0.1, one=1.5), "logit_weight": NOT_NEGATIVE, "norm": CHOICE,
    "random_start": BOOL.besides(other="uniform"), "trades_weight": NOT_NEGATIVE, "repeat_natural": BOOL,
    "generator_width": integer(1), "generator_learning_rate": POSITIVE, "latent_dim": integer(1), "target": CHOICE,
    "step_size": POSITIVE, "regularization": POSITIVE, "iterations": integer(1), "tolerance": NOT_NEGATIVE,
    "narrow_third_block": BOOL, "gradient_scale": CHOICE,
}  # fmt: skip
OPTIONAL = {"step_size", "entropy_weight"}
"""Options of methods whose default is None."""


@dataclass(frozen=True)
class Good:
    """A good call, and what of it can be made bad."""

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    kinds: Mapping[str, Kind]


def attack_of(make: type, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model": TinyClassifier(), **{name: value() if callable(value) else value
                                                 for name, value in more.items()}}  # fmt: skip


def method_calls() -> Iterator[tuple[str, Good]]:
    for name in methods.method_names():
        defaults = methods.method_spec(name).defaults()
        kinds = {
            option: METHOD_OPTIONS[option].besides(*["None"] if default is None else [])
            for option, default in defaults.items()
        }
        if name == "l2l" or "-am" in name:
            kinds["image_shape"] = Kind({
                "None": None, "int": 3, "str": "336", "pair": (3, 6), "floats": (3.0, 6.0, 5.0), "zero": (3, 0, 5),
                "bools": (True, True, True),
            })  # fmt: skip
        yield f"create_method {name}", Good(
            lambda name=name, **options: methods.create_method(name, **options),
            lambda: {"model": TinyClassifier(), "image_shape": (3, 6, 5)},
            kinds,
        )


def attack_calls() -> Iterator[tuple[str, Good]]:
    constructors = {
        "FGSM": (attacks.FGSM, attack_of(attacks.FGSM), ATTACK),
        "PGD": (attacks.PGD, attack_of(attacks.PGD), PGD),
        "MIM": (attacks.MIM, attack_of(attacks.MIM),
                ATTACK | {"steps": integer(0), "step_size": POSITIVE.besides("None"), "decay": NOT_NEGATIVE}),
        "CW": (attacks.CW, attack_of(attacks.CW),
               {"model": MODEL, "epsilon": POSITIVE, "steps": integer(0), "confidence": number()}),
        "EXP": (attacks.EXP, attack_of(attacks.EXP), {"model": MODEL, "epsilon": POSITIVE, **EXP}),
        "SPSA": (attacks.SPSA, attack_of(attacks.SPSA), {
            "model": MODEL, "epsilon": POSITIVE, "samples": integer(1), "steps": integer(0), "step_size": POSITIVE,
            "sigma": POSITIVE, "random_start": BOOL, "query_batch": integer(1).besides("None"),
        }),
        "FeatureScatter": (attacks.FeatureScatter, attack_of(attacks.FeatureScatter), {
            "model": MODEL, "epsilon": POSITIVE, "steps": integer(0), "step_size": POSITIVE.besides("None"),
            "regularization": POSITIVE, "iterations": integer(1), "tolerance": NOT_NEGATIVE,
        }),
        "FeatureAttack": (attacks.FeatureAttack, attack_of(attacks.FeatureAttack, layer="conv"), {
            "model": MODEL, "epsilon": POSITIVE, "targets": integer(1), "steps": integer(0),
            "step_size": POSITIVE.besides("None"), "layer": Kind({"int": 3, "nowhere": "nowhere", "list": ["conv"]}),
            "layer_input": BOOL,
        }),
        "EXPAM": (attacks.EXPAM, attack_of(attacks.EXPAM, generator=generator), {
            "model": MODEL, "epsilon": POSITIVE, "generator": MODEL, "entropy_weight": number(), "recipe": CHOICE,
        }),
        "L2L": (attacks.L2L, attack_of(attacks.L2L, generator=lambda: generator(3)),
                {"model": MODEL, "epsilon": POSITIVE, "generator": MODEL, "gradient_scale": CHOICE}),
        "Transfer": (attacks.Transfer, lambda: {"source": TinyClassifier()}, {"source": MODEL, "epsilon": POSITIVE}),
    }  # fmt: skip
    for name, (make, arguments, kinds) in constructors.items():
        yield name, Good(make, arguments, kinds)
    for name in ("FGSM", "PGD", "MIM", "CW", "EXP", "SPSA", "FeatureScatter", "L2L", "Transfer"):
        make, arguments, _ = constructors[name]
        yield f"{name} called", Good(
            lambda attack, images, labels: attack(images, labels),
            lambda make=make, arguments=arguments: {
                "attack": make(**arguments()), "images": images(), "labels": labels()
            },
            {"images": IMAGES, "labels": LABELS},
        )


def trainer_calls() -> Iterator[tuple[str, Good]]:
    modes = {"outer_mode": CHOICE, "outer_precision": CHOICE}
    yield "Trainer", Good(Trainer, lambda: trainer_arguments() | {"method": a_method()},
                          {"model": MODEL, "optimizer": OPTIMIZER, "method": METHOD, **modes})  # fmt: skip
    yield "ADTExpTrainer", Good(ADTExpTrainer, trainer_arguments, {
        "model": MODEL, "optimizer": OPTIMIZER, "epsilon": POSITIVE, **EXP, **modes, "seed": integer(-(2**63)),
        "engine": ENGINE,
    })  # fmt: skip
    yield "Trainer.step", Good(
        lambda trainer, **batch: trainer.step(**batch),
        lambda: {"trainer": a_trainer(), "images": images(), "labels": labels()},
        {"images": IMAGES, "labels": LABELS},
    )
    yield "Trainer.fit", Good(
        lambda trainer, **fit: trainer.fit(progress=False, **fit),
        lambda: {"trainer": a_trainer(), "loader": [(images(), labels())], "epochs": 1},
        {
            "loader": Kind({"None": None, "int": 3, "empty": [], "tensors alone": [images()], "None inside": [None],
                            "triples": [(images(), labels(), 1)], "dicts": [{"images": images(), "labels": labels()}],
                            "numbers": [1, 2]}),
            "epochs": integer(1), "schedule_every": CHOICE,
            "scheduler": Kind({"str": "cosine", "int": 3, "class": torch.optim.lr_scheduler.StepLR,
                               "one that needs a metric": plateau()}),
            "callbacks": Kind({"None": None, "int": 3, "one function": print, "not callable": [3]}),
            "between_steps": Kind({"int": 3, "str": "x"}),
        },
    )  # fmt: skip
    yield "JointTraining", Good(JointTraining, lambda: {"maximizer": a_method("l2l").maximizer}, {
        "maximizer": METHOD, "generator_learning_rate": POSITIVE,
    })  # fmt: skip
    yield "create_schedule", Good(
        create_schedule, lambda: {"name": "cosine", "optimizer": an_optimizer(), "epochs": 2, "batches": 3},
        {"name": CHOICE, "optimizer": OPTIMIZER, "epochs": integer(1), "batches": integer(1)},
    )  # fmt: skip
    yield "fit_generator", Good(
        methods.fit_generator, lambda: {"attack": a_method("l2l").maximizer, "batches": [(images(), labels())]},
        {"attack": METHOD, "epochs": integer(1), "generator_learning_rate": POSITIVE,
         "batches": Kind({"None": None, "int": 3, "empty": []})},
    )  # fmt: skip


def data_calls() -> Iterator[tuple[str, Good]]:
    yield "ImageData", Good(
        ImageData,
        lambda: {"images": tiny_data().images, "labels": tiny_data().labels, "num_classes": 4, "name": "tiny",
                 "mean": (0.5,) * 3, "std": (0.2,) * 3},
        {"images": Kind({"None": None, "float": images(), "3-d": tiny_data().images[0],
                         "empty": tiny_data().images[:0]}),
         "labels": Kind({"None": None, "float": torch.zeros(4), "few": torch.zeros(3, dtype=torch.int64),
                         "large": torch.full((4,), 4), "negative": torch.full((4,), -1), "list": [0] * 4}),
         "num_classes": integer(1), "name": TEXT,
         "mean": Kind({"None": None, "number": 0.5, "few": (0.5,), "nan": (NAN,) * 3, "str": "abc",
                       "texts": ("a",) * 3}),
         "std": Kind({"None": None, "few": (0.5,), "zero": (0.0,) * 3, "negative": (-1.0,) * 3, "inf": (INF,) * 3})},
    )  # fmt: skip
    yield "BatchLoader", Good(data.BatchLoader, lambda: {"data": tiny_data(), "batch_size": 2}, {
        "data": Kind({"None": None, "pair": (images(), labels()), "list": []}), "batch_size": integer(1),
        "crop_padding": integer(0).besides("far too large"), "seed": integer(0), "shuffle": BOOL, "flip": BOOL,
        "drop_last": BOOL, "channels_last": BOOL,
    })  # fmt: skip
    yield "load_dataset", Good(data.load_dataset, lambda: {"name": "digits", "split": "test"}, {
        "name": CHOICE, "split": CHOICE, "limit": integer(1).besides("None"), "download": BOOL, "verify": BOOL,
        "data_dir": Kind({"int": 3, "list": []}),
    })  # fmt: skip


def model_calls() -> Iterator[tuple[str, Good]]:
    statistics = {
        "mean": Kind({"alone": (0.5,) * 3, "number": 0.5, "str": "abc"}),
        "std": Kind({"alone": (0.2,) * 3, "zero": (0.0,) * 3, "number": 0.5}),
    }
    sizes = {"num_classes": integer(1), "in_channels": integer(1)}
    yield "create_model", Good(models.create_model, lambda: {"name": "wrn-10-1"}, {
        "name": CHOICE.besides(huge="wrn-999999994-1", depth="wrn-11-1", width="wrn-10-0"), **sizes, **statistics,
        "activation": CHOICE.besides("None", "empty"), "padding": CHOICE.besides("None", "empty"),
        "shortcut": CHOICE.besides("None"),
    })  # fmt: skip
    yield "WideResNet", Good(models.WideResNet, lambda: {"depth": 10, "width": 1}, {
        "depth": integer(10), "width": integer(1), **sizes, "activation": CHOICE, "padding": CHOICE,
    })  # fmt: skip
    yield "SmallCNN", Good(models.SmallCNN, dict, sizes)
    yield "PerturbationGenerator", Good(models.PerturbationGenerator, lambda: {"width": 2}, {
        "in_channels": integer(1), "out_channels": integer(1), "width": integer(1), "narrow_third_block": BOOL,
        "latent_dim": integer(0),
    })  # fmt: skip
    yield "VariationalEncoder", Good(models.VariationalEncoder, dict, {
        "in_channels": integer(1), "latent_dim": integer(1),
    })  # fmt: skip
    yield "Normalize", Good(models.Normalize, lambda: {"mean": (0.5,), "std": (0.2,)}, {
        "mean": Kind({"None": None, "number": 0.5, "texts": ("a",), "text": "1", "bool": (True,), "nan": (NAN,),
                      "empty": (),
                      "far too large": (HUGE,), "two": (0.5, 0.5)}),
        "std": Kind({"None": None, "number": 0.5, "texts": ("a",), "text": "1", "zero": (0.0,), "negative": (-1.0,),
                     "inf": (INF,), "far too large": (HUGE,)}),
    })  # fmt: skip
    options = {
        "precision": CHOICE, "twin": BOOL, "winograd": BOOL, "compile": BOOL, "graph": BOOL.besides(other="on"),
        "chunk": integer(1).besides("None"), "check_every": integer(1), "min_cosine": number(above=1.5, below=-1.5),
        "min_sign_agreement": number(above=1.5, below=-1.5), "loss_scale": POSITIVE,
    }  # fmt: skip
    yield "EngineOptions", Good(EngineOptions, dict, options)
    yield "NoiseStream", Good(NoiseStream, lambda: {"seed": 1}, {
        "seed": integer(-(2**63)), "offset": integer(0),
    })  # fmt: skip


def file_calls() -> Iterator[tuple[str, Good]]:
    paths = Kind({"None": None, "int": 3, "list": ["x"]})
    yield "save_checkpoint", Good(
        save_checkpoint, lambda: {"path": "a.safetensors", "tensors": {"a": torch.ones(2)}, "metadata": {}},
        {"path": paths, "tensors": Kind({
            "None": None, "list": [torch.ones(2)], "floats": {"a": 0.5}, "int names": {1: torch.ones(2)},
            "reserved": {"__metadata__": torch.ones(2)}, "complex": {"a": torch.ones(2, dtype=torch.complex64)},
            "sparse": {"a": torch.eye(2).to_sparse()}, "meta": {"a": torch.ones(2, device="meta")},
            "tensor": torch.ones(2)}),
         "metadata": Kind({"None": None, "list": [], "tensor": {"a": torch.ones(2)}, "path": {"a": Path("x")},
                           "set": {"a": {1}}, "int keys": {1: 2}, "deep": {"a": [{"b": object()}]},
                           "NumPy": {"a": np.int64(1)},
                           "bytes": {"a": b"x"}})},
    )  # fmt: skip
    yield "load_checkpoint", Good(load_checkpoint, lambda: {"path": saved("a.safetensors")}, {"path": paths})
    yield "save_model", Good(
        save_model, lambda: {"path": "m.safetensors", "model": models.create_model("wrn-10-1"),
        "model_name": "wrn-10-1"},
        {"path": paths, "model": MODEL.besides("function", other=TinyClassifier()), "model_name": CHOICE,
         "model_kwargs": Kind({"list": [3], "str": "x", "tensor": {"mean": torch.ones(3)}}),
                               "extra": Kind({"list": [3], "str": "x"})},
    )  # fmt: skip
    yield "load_model", Good(load_model, lambda: {"path": saved_model("m.safetensors")}, {
        "path": paths, "model_name": Kind({"int": 3, "other": "wrn-16-1", "list": ["x"]}),
        "mean": Kind({"needless": (0.5,) * 3}), "shortcut": Kind({"needless": "input"}),
                      "entry": Kind({"needless": "x"}),
    })  # fmt: skip


def saved(path: str) -> str:
    save_checkpoint(path, {"a": torch.ones(2)}, {})
    return path


def saved_model(path: str) -> str:
    save_model(path, models.create_model("wrn-10-1"), model_name="wrn-10-1")
    return path


def analysis_calls() -> Iterator[tuple[str, Good]]:
    batches = Kind({"None": None, "int": 3, "empty": [], "tensors": [images()]})
    batch = {"images": IMAGES, "labels": LABELS}
    yield "evaluate", Good(
        evaluation.evaluate, lambda: {"model": TinyClassifier(), "data": [(images(), labels())], "attacks": "fgsm"},
        {"model": MODEL, "data": batches, "epsilon": POSITIVE, "norm": CHOICE, "batch_size": integer(1),
        "seed": integer(0),
         "survivors_only": BOOL, "engine": ENGINE, "source": MODEL.besides("None"),
         "attacks": Kind({"None": None, "int": 3, "other": "pgd-x", "empty": "", "none": (), "ints": (1, 2),
                          "uncallable": {"a": 3}})},
    )  # fmt: skip
    yield "evaluate_accuracy", Good(
        evaluation.evaluate_accuracy, lambda: {"model": TinyClassifier(), "data": [(images(), labels())]},
        {"model": MODEL, "data": batches, "batch_size": integer(1), "attack": Kind({"str": "pgd", "int": 3})},
    )  # fmt: skip
    yield "create_attack", Good(
        evaluation.create_attack, lambda: {"name": "pgd-2", "model": TinyClassifier()},
        {"name": CHOICE, "model": MODEL, "epsilon": POSITIVE, "norm": CHOICE, "noise": NOISE, "engine": ENGINE},
    )  # fmt: skip
    yield "hessian_curvature", Good(
        analysis.hessian_curvature, lambda: {"model": TinyClassifier(), "images": images(), "labels": labels(),
        "iterations": 3},
        {"model": MODEL, **batch, "solver": CHOICE, "iterations": integer(1), "tolerance": POSITIVE,
         "reduction": CHOICE, "batch_size": integer(1), "seed": integer(0)},
    )  # fmt: skip
    yield "loss_landscape", Good(
        analysis.loss_landscape, lambda: {"model": TinyClassifier(), "images": images(), "labels": labels(),
        "steps": 3},
        {"model": MODEL, **batch, "epsilon": POSITIVE, "radius": POSITIVE.besides("None"), "steps": integer(2),
         "direction": CHOICE, "batch_size": integer(1), "seed": integer(0),
         "bounds": Kind({"number": 1.0, "str": "01", "triple": (0, 0.5, 1), "crossed": (1.0, 0.0), "nan": (NAN, 1.0)})},
    )  # fmt: skip
    yield "exp_convergence", Good(
        analysis.exp_convergence,
        lambda: {"models": {"a": TinyClassifier()}, "data": [(images(), labels())], "steps": 1, "samples": 1},
        {"models": Kind({"None": None, "model": TinyClassifier(), "empty": {}, "list": [TinyClassifier()],
                         "texts": {"a": "b"}}),
         "data": batches, "epsilon": POSITIVE, **EXP, "seed": integer(-(2**63))},
    )  # fmt: skip
    yield "distribution_entropy", Good(
        analysis.distribution_entropy,
        lambda: {"attack": attacks.EXP(TinyClassifier(), steps=1, samples=1), "data": [(images(), labels())],
        "samples": 2},
        {"attack": METHOD, "data": batches, "samples": integer(2), "seed": integer(-(2**63))},
    )  # fmt: skip
    yield "learned_distribution", Good(
        analysis.learned_distribution,
        lambda: {"attack": attacks.EXP(TinyClassifier(), steps=1, samples=1), "images": images(), "labels": labels(),
        "samples": 1, "shown": 1},
        {"attack": METHOD, **batch, "samples": integer(1), "shown": integer(1), "batch_size": integer(1),
         "seed": integer(-(2**63)),
         "class_names": Kind({"number": 3, "str": "abcd", "numbers": [1, 2, 3, 4], "too few": ["a"], "empty": []})},
    )  # fmt: skip
    yield "transfer_attacks", Good(analysis.transfer_attacks, dict, {"epsilon": POSITIVE, "seed": integer(-(2**63))})
    some_models = Kind({"None": None, "model": TinyClassifier(), "empty": {}, "texts": {"a": "b"}})
    yield "transfer_accuracy", Good(
        analysis.transfer_accuracy,
        lambda: {"sources": {"a": TinyClassifier()}, "targets": {"b": TinyClassifier()}, "data": [(images(), labels())],
                 "attacks": {"fgsm": attacks.FGSM}},
        {"sources": some_models, "targets": some_models, "data": batches,
         "attacks": Kind({"list": [attacks.FGSM], "empty": {}, "texts": {"a": "b"}})},
    )  # fmt: skip


def config_calls() -> Iterator[tuple[str, Good]]:
    optional_int = integer(1).besides("None")
    yield "TrainConfig.resolved", Good(lambda **settings: TrainConfig(**settings).resolved(), dict, {
        "method": CHOICE, "dataset": CHOICE, "epochs": optional_int, "batch_size": optional_int,
        "train_limit": optional_int, "test_limit": optional_int, "epsilon": POSITIVE.besides("None"),
        "learning_rate": POSITIVE.besides("None"), "momentum": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE,
        "seed": integer(0), "device": CHOICE.besides(far="cuda:99"), "schedule": CHOICE, "precision": CHOICE,
        "graph": CHOICE, "chunk": optional_int, "model_mode": CHOICE, "outer_mode": CHOICE, "compile": BOOL,
    })  # fmt: skip


GOOD_CALLS = dict([
    *method_calls(), *attack_calls(), *trainer_calls(), *data_calls(), *model_calls(), *file_calls(), *analysis_calls(),
    *config_calls(),
])  # fmt: skip
BAD_CALLS = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{flaw}".replace(" ", "_"))
    for name, good in GOOD_CALLS.items()
    for argument, kind in good.kinds.items()
    for flaw, value in kind.flaws.items()
]

# Where an error may name something else than the argument.
ALSO_NAMED = {
    "path": "PathLike", "source": "model", "lower": "upper", "upper": "lower", "mean": "std", "std": "mean",
    "labels": "images", "images": "labels|batch",
    "method": "maximizer", "loader": "images|labels|batch", "data": "images|labels|batches", "batches": "images|labels",
    "device": "device|Device", "name": "model|method|dataset|attack|depth|width", "model_name": "model|name",
    "entry": "",
    "model_kwargs": "metadata", "extra": "metadata", "callbacks": "callback", "attacks": "attack",
    "generator_width": "width", "epsilon": "", "models": "model", "sources": "models|model", "targets": "models|model",
}  # fmt: skip


def state(value: Any) -> Any:
    """Everything that a call could change in an argument."""
    if isinstance(value, nn.Module):
        modes = [module.training for module in value.modules()]
        flags = [parameter.requires_grad for parameter in value.parameters()]
        return [{name: tensor.clone() for name, tensor in value.state_dict().items()}, modes, flags]
    if isinstance(value, torch.optim.Optimizer):
        return copy.deepcopy(value.state_dict())
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, NoiseStream):
        return value.state_dict()
    if isinstance(value, Trainer):
        return [copy.deepcopy(value.state_dict()), state(value.model)]
    if isinstance(value, attacks.Attack):
        return [state(value.model), state(value.noise)]
    if isinstance(value, (list, tuple)):
        return [state(item) for item in value]
    return None


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(torch.nan_to_num(one.to_dense()), torch.nan_to_num(other.to_dense())) \
            if not one.is_complex() else torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture(autouse=True)
def seconds_for_a_call() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError("the call goes on and on")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 20.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_at_least_500() -> None:
    assert len({call.id for call in BAD_CALLS}) == len(BAD_CALLS)
    print(f"{len(BAD_CALLS)} bad calls of {len(GOOD_CALLS)} functions")
    assert len(BAD_CALLS) >= 500


@pytest.mark.parametrize("name", GOOD_CALLS)
def test_the_good_call_is_good(name: str) -> None:
    GOOD_CALLS[name].function(**GOOD_CALLS[name].arguments())


@pytest.mark.parametrize(("name", "argument", "value"), BAD_CALLS)
def test_a_bad_call_is_refused(name: str, argument: str, value: Any) -> None:
    good = GOOD_CALLS[name]
    arguments = good.arguments() | {argument: value}
    before, random = {key: state(item) for key, item in arguments.items()}, torch.get_rng_state()
    files = sorted(Path().iterdir())
    with pytest.raises((TypeError, ValueError)) as error:
        good.function(**arguments)
    named = "|".join(filter(None, [argument, ALSO_NAMED.get(argument, "")]))
    assert re.search(rf"\b({named})\b", str(error.value)), f"{argument} is not named in: {error.value}"
    assert not re.search(r"unexpected keyword|__\w+__\(\)", str(error.value)), "Python's own error"
    assert same({key: state(item) for key, item in arguments.items()}, before)
    assert sorted(Path().iterdir()) == files
    if "called" in name or name.startswith("Trainer."):  # others make things whose first numbers are drawn
        assert torch.equal(torch.get_rng_state(), random)
