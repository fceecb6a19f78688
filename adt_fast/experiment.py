"""A training run from its settings to its results: data, model, training, evaluation, run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from .checkpoint import save_model
from .config import DATASET_DEFAULTS, TrainConfig
from .data import BatchLoader, ImageData, load_dataset
from .evaluation import Accuracy, evaluate
from .methods import create_method
from .models import create_model
from .noise import NoiseStream
from .run_folder import RunFolder
from .schedules import create_schedule
from .trainer import EpochResult, Trainer

CLOSING_ATTACKS = "pgd-20"
"""What a trained model is tested with at the end: 20 steps of size epsilon / 4 from a random start (Section 5.2)."""


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
        train_data, self.test_data = (
            load_dataset(config.dataset, split, data_dir=config.data_dir, download=config.download, limit=limit)
            for split, limit in (("train", config.train_limit), ("test", config.test_limit))
        )
        self._model_kwargs = _model_kwargs(train_data)
        self._image_shape = tuple(train_data.images.shape[1:])
        torch.manual_seed(config.seed)
        self.model = create_model(config.model, **self._model_kwargs)
        self.model.to(config.device, memory_format=torch.channels_last)
        self.train_loader = self._train_loader(train_data)
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
        """Natural accuracy and that under PGD-20, by name, on the test images; also logged."""
        config = self.config
        report = evaluate(
            self.model, self.test_data, CLOSING_ATTACKS, epsilon=config.epsilon, norm=config.norm or "linf",
            seed=config.seed, examples=0, progress=None,
        )  # fmt: skip
        results = report.accuracies()
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


def _model_kwargs(data: ImageData) -> dict[str, Any]:
    """What a model for the data set is made with."""
    return {
        "num_classes": data.num_classes,
        "in_channels": data.images.shape[1],
        "mean": list(data.mean),
        "std": list(data.std),
    }
