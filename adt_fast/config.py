"""What a run is made of: typed settings, with defaults that depend on the data set and on the method."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
import tyro

from ._settings.arguments import Folder, Integer, Number, Text, argument, default_is
from ._settings.dataset_defaults import DATASET_DEFAULTS, TEST_LIMIT_DEFAULT, by_dataset, default_test_limit
from ._settings.method_options import METHOD_OPTIONS, MethodOptions, without_foreign_options
from ._settings.training_options import DataOptions, LoopOptions
from ._support.checks import check_choice, check_int, check_not_negative, check_positive
from ._support.devices import resolve_device
from ._support.model_state import ModelMode
from ._support.suggest import unknown_name_message
from .attacks import Norm
from .data import dataset_names
from .input_gradient import EngineOptions, Precision
from .methods import check_options, method_names, method_spec
from .schedules import ScheduleName

PLACES = ("data_dir", "download", "output")
"""Settings that say where files are, on which no result depends."""


@dataclass(frozen=True)
class _Task:
    """What is to be trained, and on what."""

    # None stands for a default that depends on the other settings; resolved() fills it in.

    method: Annotated[str, tyro.conf.arg(metavar="|".join(method_names()))] = "adt-exp"
    """Training method; `adt-fast methods` describes them."""

    dataset: Annotated[str, tyro.conf.arg(metavar="|".join(dataset_names()))] = "digits"
    """Images to train on; the digits come with scikit-learn."""

    data_dir: Annotated[Path | None, Folder, default_is("$ADT_FAST_DATA, or ./data")] = None
    """Folder with the data set's published files."""

    download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fetch the published files into --data-dir where they are not there."""

    model: Annotated[str | None, Text, by_dataset("model")] = None
    """Classifier: small-cnn, preactresnet-18, or wrn-DEPTH-WIDTH such as wrn-28-10."""

    epochs: Annotated[int | None, Integer, by_dataset("epochs")] = None
    """Passes over the training images."""

    batch_size: Annotated[int | None, Integer, by_dataset("batch_size")] = None
    """Images in a minibatch."""

    train_limit: Annotated[int | None, Integer, default_is("all")] = None
    """Train on the first so many images only."""

    test_limit: Annotated[int | None, Integer, TEST_LIMIT_DEFAULT] = None
    """Test on the first so many images only."""

    epsilon: Annotated[float | None, Number, by_dataset("epsilon")] = None
    """Radius of the L-infinity ball, in units where images are in [0, 1]; fractions such as 8/255 will do."""


@dataclass(frozen=True)
class TrainConfig(LoopOptions, DataOptions, MethodOptions, _Task):
    """Train a classifier, and report its natural and PGD-20 accuracy."""

    model_mode: ModelMode = "eval"
    """Mode of the network while images are perturbed; keep is each module's own. The paper does not say, its code has
    eval."""

    outer_mode: ModelMode = "train"
    """Mode of the network in the pass that trains."""

    learning_rate: Annotated[float | None, Number, by_dataset("learning_rate")] = None
    """Highest learning rate of SGD. On the digits, methods on the TRADES loss, which is several times as steep, have
    0.1."""

    momentum: Annotated[float, Number] = 0.9
    """Momentum of SGD, >= 0."""

    weight_decay: Annotated[float, Number] = 2e-4
    """Weight decay of SGD, >= 0: so many times half the squared length of the weights is added to the loss."""

    schedule: ScheduleName = "one-cycle"
    """Course of the learning rate: one-cycle (up, then down to 0), cosine, step (the paper's: a tenth of it for the
    last 2 epochs of 76), or constant."""

    precision: Precision = "auto"
    """Arithmetic of the network while images are perturbed: fp32; tf32 (CUDA); bf16 or fp16, watched and given up where
    they are not close enough to fp32; auto, 16 bits where the device is fast at them. The training pass then runs in
    bf16."""

    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compile the network that is attacked, which takes a minute."""

    graph: Literal["auto", "on", "off"] = "auto"
    """Capture the inner loop in a CUDA graph; auto is on."""

    chunk: Annotated[int | None, Integer, default_is("what memory suggests")] = None
    """At most so many images at once through the network that is attacked."""

    seed: Annotated[int, Integer] = 0
    """Seed of the initial weights, the order of the images, their augmentation, and the noise; >= 0."""

    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """Where to compute: auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""

    output: Annotated[Path | None, Folder, default_is("runs/DATASET-METHOD-TIME")] = None
    """Run folder for config, metrics and checkpoint; must be new or empty, or the folder of the run to --resume."""

    def resolved(self) -> ResolvedConfig:
        """The same settings with every default filled in that depends on others; ``data_dir`` and ``output`` stay.

        A ``ResolvedConfig`` is a ``TrainConfig``, of which type checkers know that those defaults are no longer None.
        ``test_limit`` and ``train_limit`` stay None where all images are meant, and a method's options where the
        method has no such option.

        Raises:
            ValueError: if a setting is unknown or impossible; the message names it.
        """
        check_known("dataset", self.dataset, dataset_names())
        device = resolve_device(self.device)
        if self.norm == "l2" and self.epsilon is None:
            raise ValueError("epsilon must be given with norm l2, as a Euclidean length such as 0.5: the defaults are "
                             "radii of the L-infinity ball")
        config: Any = replace(self, device=str(device), **self._dataset_defaults(device), **self._method_defaults())
        choices = {"schedule": get_args(ScheduleName), "graph": ("auto", "on", "off"),
                   "model_mode": get_args(ModelMode), "outer_mode": get_args(ModelMode)}
        for name, known in choices.items():
            check_choice(name, getattr(config, name), known)
        for name in ("epochs", "batch_size"):
            check_int(name, getattr(config, name), 1, 2**31)
        for name in ("train_limit", "test_limit"):
            if getattr(config, name) is not None:
                check_int(name, getattr(config, name), 1, 2**63)
        for name in ("epsilon", "learning_rate"):
            check_positive(name, getattr(config, name))
        for name in ("momentum", "weight_decay"):
            check_not_negative(name, getattr(config, name))
        check_int("seed", config.seed, 0, 2**63)
        config.engine_options()
        config.check_data_options()
        config.check_loop_options(config.batch_size)
        resolved: ResolvedConfig = config
        return resolved

    def engine_options(self) -> EngineOptions:
        """How the maximizer's gradients are computed."""
        graph: dict[str, Literal["auto"] | bool] = {"auto": "auto", "on": True, "off": False}
        return EngineOptions(
            precision=self.precision,
            compile=self.compile,
            graph=graph[self.graph],
            chunk="auto" if self.chunk is None else self.chunk,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file, without the options that the method does not have."""
        settings = without_foreign_options(asdict(self), self.method)
        return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}

    def _dataset_defaults(self, device: torch.device) -> dict[str, Any]:
        defaults = asdict(DATASET_DEFAULTS[self.dataset])
        defaults["test_limit"] = default_test_limit(self.dataset, device)
        if "trades_weight" in method_spec(self.method).defaults() and defaults["trades_learning_rate"]:
            defaults["learning_rate"] = defaults["trades_learning_rate"]
        mine = {field.name for field in fields(_Task)} | {"learning_rate", "crop_padding", "flip"}
        return {name: value for name, value in defaults.items() if name in mine and getattr(self, name) is None}

    def _method_defaults(self) -> dict[str, Any]:
        spec, given = method_spec(self.method), self.method_options()
        check_options(spec, given)
        defaults = spec.defaults()
        by_dataset = asdict(DATASET_DEFAULTS[self.dataset])
        defaults |= {name: by_dataset[name] for name in defaults if name in by_dataset}
        return {name: defaults[name] for name in METHOD_OPTIONS if name in defaults and name not in given}


if TYPE_CHECKING:

    class ResolvedConfig(TrainConfig):
        """What :meth:`TrainConfig.resolved` gives: settings whose defaults have been filled in."""

        model: str
        epochs: int
        batch_size: int
        epsilon: float
        learning_rate: float
        crop_padding: int
        flip: bool
        norm: Norm | None

else:
    ResolvedConfig = TrainConfig


@dataclass(frozen=True, kw_only=True)
class _Test:
    """On which images a trained model is tested, and in which ball."""

    dataset: Annotated[str | None, Text, default_is("the one it was trained on")] = None
    """Images to test on."""

    data_dir: Annotated[Path | None, Folder, default_is("$ADT_FAST_DATA, or ./data")] = None
    """Folder with the data set's published files."""

    download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Fetch the published files into --data-dir where they are not there."""

    test_limit: Annotated[int | None, Integer, TEST_LIMIT_DEFAULT] = None
    """Test on the first so many images only."""

    epsilon: Annotated[float | None, Number, default_is("the one it was trained with")] = None
    """Radius of the L-infinity ball, in units where images are in [0, 1]; fractions such as 8/255 will do."""

    norm: Annotated[str | None, argument(str, "linf|l2"), default_is("the one it was trained with, or linf")] = None
    """Norm of the ball; in l2, --epsilon is a Euclidean length."""

    batch_size: Annotated[int, Integer] = 256
    """Images that are attacked at once."""

    seed: Annotated[int, Integer] = 0
    """Seed of the random numbers, >= 0."""

    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """Where to compute: auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class TrainedModelConfig(_Test):
    """Which trained model, and on which images."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_OR_CHECKPOINT")]
    """A run folder, for its model.safetensors, or a checkpoint, such as its best.safetensors."""


@dataclass(frozen=True)
class TrainedModelsConfig(_Test):
    """Which trained models, and on which images."""

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="RUN_OR_CHECKPOINT ...", help_behavior_hint="(one or more)"),
    ]
    """Run folders, or their model.safetensors."""

    names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ..."), default_is("the folders'")] = ()
    """What to call them, as many as there are runs."""

    def each(self) -> dict[str, TrainedModelConfig]:
        """The models one by one, by name.

        Raises:
            ValueError: if there are none, or not as many names, or two have the same.
        """
        if not self.runs:
            raise ValueError("runs must be one or more, got none")
        names = self.names or tuple((run if run.is_dir() else run.parent).resolve().name for run in self.runs)
        if len(names) != len(self.runs) or len(set(names)) < len(names):
            raise ValueError(f"names must be {len(self.runs)}, all different, one for each run, got {', '.join(names)}")
        test = {field.name: getattr(self, field.name) for field in fields(_Test)}
        return {name: TrainedModelConfig(run, **test) for name, run in zip(names, self.runs)}


def check_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    """Raises ValueError with the nearest known name, where the name is unknown; ``kind`` says of what it is one."""
    if name not in known:
        raise ValueError(unknown_name_message(kind, name, known))
