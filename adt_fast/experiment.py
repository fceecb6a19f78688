"""A run from its settings to its results: data, model, training, evaluation, run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ._checks import check_int
from .attacks import PGD
from .checkpoint import load_model, save_model
from .config import DATASET_DEFAULTS, EvaluateConfig, TrainConfig, check_known, default_test_limit, resolve_device
from .data import BatchLoader, ImageData, dataset_names, load_dataset
from .evaluation import Accuracy, evaluate_accuracy
from .methods import create_method
from .models import create_model
from .noise import NoiseStream
from .run_folder import CHECKPOINT_NAME, RunFolder
from .schedules import create_schedule
from .trainer import EpochResult, Trainer


class TrainingRun:
    """A training run, ready to start: everything that can be wrong with its settings has been looked at.

    Args:
        config: see :class:`adt_fast.config.TrainConfig`.

    Raises:
        ValueError: if a setting is unknown or impossible, or the output folder is in use.
        OSError: if data are missing or the folder cannot be written.
        ImportError: if the data set needs a package that is not installed.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config = config.resolved()
        train_data, test_data = (
            load_dataset(config.dataset, split, data_dir=config.data_dir, download=config.download, limit=limit)
            for split, limit in (("train", config.train_limit), ("test", config.test_limit))
        )
        self._model_kwargs = _model_kwargs(train_data)
        self._image_shape = tuple(train_data.images.shape[1:])
        torch.manual_seed(config.seed)
        self.model = create_model(config.model, **self._model_kwargs)
        self.model.to(config.device, memory_format=torch.channels_last)
        self.train_loader = self._train_loader(train_data)
        self.test_loader = _test_loader(test_data, config.device)
        self.trainer = self._trainer()
        self._agreements_logged = 0
        if config.output is None:
            self.folder = RunFolder.named_by_time(f"runs/{config.dataset}-{config.method}")
        else:
            self.folder = RunFolder(config.output)
        self.folder.write_config(config.as_dict())

    def train(self, report: Callable[[EpochResult], None] | None = None, progress: bool | None = None) -> None:
        """Trains and saves the model. ``report`` is called after every epoch; ``progress`` is Trainer.fit's."""
        scheduler = create_schedule(
            self.config.schedule, self.trainer.optimizer, epochs=self.config.epochs, batches=len(self.train_loader)
        )
        self.trainer.fit(
            self.train_loader,
            epochs=self.config.epochs,
            scheduler=scheduler,
            schedule_every="step",
            callbacks=[self._log_epoch, *([report] if report else [])],
            progress=progress,
        )
        save_model(
            self.folder.checkpoint,
            self.model,
            model_name=self.config.model,
            model_kwargs=self._model_kwargs,
            extra=self.config.as_dict(),
        )
        joint = self.trainer.method.joint
        if joint is not None:
            joint.save(self.folder.maximizer, self.config.as_dict())

    def evaluate(self) -> dict[str, Accuracy]:
        """Natural and PGD-20 accuracy on the test images; also logged."""
        attack = pgd_20(self.model, self.config.epsilon, self.config.seed)
        results = evaluate_natural_and_pgd(self.model, self.test_loader, attack)
        self.folder.log(event="test", **{name: asdict(accuracy) for name, accuracy in results.items()})
        return results

    def _train_loader(self, data: ImageData) -> BatchLoader:
        augmentation = DATASET_DEFAULTS[self.config.dataset]
        return BatchLoader(
            data,
            self.config.batch_size,
            device=self.config.device,
            shuffle=True,
            crop_padding=augmentation.crop_padding,
            flip=augmentation.flip,
            seed=self.config.seed,
            channels_last=True,
        )

    def _trainer(self) -> Trainer:
        config = self.config
        optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
        noise = NoiseStream(config.seed, config.device)
        method = create_method(
            config.method,
            self.model,
            epsilon=config.epsilon,
            noise=noise,
            engine=config.engine_options(),
            image_shape=self._image_shape,
            model_mode=config.model_mode,
            **config.method_options(),
        )
        outer_precision = {"auto": "auto", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "bf16"}
        return Trainer(
            self.model,
            optimizer,
            method,
            outer_mode=config.outer_mode,
            outer_precision=outer_precision[config.precision],
        )

    def _log_epoch(self, result: EpochResult) -> None:
        self.folder.log(event="epoch", **asdict(result))
        if self.trainer.method.maximizer is None:
            return
        engine = self.trainer.method.maximizer.input_gradient
        if result.epoch == 1:
            self.folder.log(event="engine", **engine.features())
        if engine.guard is not None:
            for agreement in engine.guard.history[self._agreements_logged :]:
                self.folder.log(event="precision", **agreement._asdict())
            self._agreements_logged = len(engine.guard.history)


def pgd_20(model: nn.Module, epsilon: float, seed: int) -> PGD:
    """The attack of the closing table: 20 steps of size epsilon / 4 from a random start (paper, Section 5.2)."""
    return PGD(model, epsilon, steps=20, noise=NoiseStream(seed))


def evaluate_natural_and_pgd(model: nn.Module, data: BatchLoader, attack: PGD) -> dict[str, Accuracy]:
    """The rows of the closing table."""
    return {
        "natural": evaluate_accuracy(model, data, progress="natural"),
        f"PGD-{attack.steps}": evaluate_accuracy(model, data, attack, progress=f"PGD-{attack.steps}"),
    }


class EvaluationRun:
    """The evaluation of a trained model, ready to start.

    Args:
        config: see :class:`adt_fast.config.EvaluateConfig`.

    Raises:
        ValueError: if a setting is unknown or impossible, or the file is no checkpoint of a model.
        OSError: if the checkpoint or data are missing.
        ImportError: if the data set needs a package that is not installed.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        check_int("seed", config.seed, 0, 2**63)
        device = resolve_device(config.device)
        path = config.run / CHECKPOINT_NAME if config.run.is_dir() else config.run
        model, metadata = load_model(path)
        trained_with: dict[str, Any] = metadata["extra"]
        self.dataset = self._setting("dataset", trained_with)
        check_known("dataset", self.dataset, dataset_names())
        self.epsilon: float = self._setting("epsilon", trained_with)
        limit = config.test_limit if config.test_limit is not None else default_test_limit(self.dataset, device)
        data = load_dataset(self.dataset, "test", data_dir=config.data_dir, download=config.download, limit=limit)
        _check_fits(data, metadata["model_kwargs"])
        self.model = model.to(device, memory_format=torch.channels_last)
        self.loader = _test_loader(data, device, config.batch_size)
        self.attack = pgd_20(self.model, self.epsilon, config.seed)

    def evaluate(self) -> dict[str, Accuracy]:
        """Natural and PGD-20 accuracy on the test images."""
        return evaluate_natural_and_pgd(self.model, self.loader, self.attack)

    def _setting(self, name: str, trained_with: dict[str, Any]) -> Any:
        value = getattr(self.config, name)
        value = trained_with.get(name) if value is None else value
        if value is None:
            raise ValueError(f"{name} must be given: the checkpoint does not tell which it was trained with")
        return value


def _model_kwargs(data: ImageData) -> dict[str, Any]:
    """What a model for the data set is made with."""
    return {
        "num_classes": data.num_classes,
        "in_channels": data.images.shape[1],
        "mean": list(data.mean),
        "std": list(data.std),
    }


def _test_loader(data: ImageData, device: torch.device | str, batch_size: int = 256) -> BatchLoader:
    return BatchLoader(data, batch_size, device=device, channels_last=True)


def _check_fits(data: ImageData, model_kwargs: dict[str, Any]) -> None:
    """Raises ValueError where a model of these settings takes no such images, or knows other classes."""
    for name, wanted in _model_kwargs(data).items():
        if name in ("num_classes", "in_channels") and model_kwargs.get(name, wanted) != wanted:
            raise ValueError(f"dataset {data.name!r} does not fit the model: it has {name}={wanted}, the model "
                             f"{model_kwargs[name]}")
