"""A training run from its settings to its results: data, model, training, evaluation, run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ._checks import check_bool, check_not_negative
from ._stop_signals import postponed_stop
from .checkpoint import CheckpointError, load_model, save_model
from .config import DATASET_DEFAULTS, TrainConfig
from .config_files import check_same_settings, load_config_file
from .data import BatchLoader, ImageData, load_dataset
from .evaluation import Accuracy, evaluate
from .methods import create_method
from .models import create_model
from .noise import NoiseStream
from .run_checkpoint import RunCheckpoint
from .run_folder import RunFolder, recorded_config
from .schedules import create_schedule
from .trainer import EpochResult, Trainer

DEFAULT_SAVE_EVERY = 300.0
"""Seconds between two saves within an epoch."""

CLOSING_ATTACKS = "pgd-20"
"""What a trained model is tested with at the end: 20 steps of size epsilon / 4 from a random start (Section 5.2)."""


class TrainingRun:
    """A training run, ready to start or to go on: everything that can be wrong with its settings has been looked at.

    While it trains, its state is saved after every epoch, every ``save_every`` seconds within one, and when Ctrl-C or
    SIGTERM stops it after a minibatch; docs/training.md tells what a resumed run has in common with an unbroken one.

    Args:
        config: see :class:`adt_fast.config.TrainConfig`.
        resume: go on with the run whose folder ``config.output`` is. The other settings must be those it has, but for
            where its data set is found.
        save_every: seconds, >= 0; with 0 after every minibatch. The default loses five minutes at most, and takes about
            half a percent of them: the 292 MB of a WideResNet-28-10 are written in 1 to 2 seconds.

    Raises:
        ValueError: if a setting is unknown or impossible, the output folder is in use, or what is in it cannot be
            resumed; CheckpointError where that is damaged.
        OSError: if data are missing or the folder cannot be written.
        ImportError: if the data set needs a package that is not installed.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False, save_every: float = DEFAULT_SAVE_EVERY) -> None:
        check_bool("resume", resume)
        check_not_negative("save_every", save_every)
        self.config = config = _resumed_settings(config) if resume else config.resolved()
        self._save_every = save_every
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
        self.is_trained = False
        """Whether the model is the one that the run ends with."""
        self.stands_at = "the beginning"
        """Where it goes on, in words."""
        if config.output is None:
            self.folder = RunFolder.named_by_time(f"runs/{config.dataset}-{config.method}")
        else:
            self.folder = RunFolder(config.output, resume=resume)
        self._checkpoint = RunCheckpoint(self.folder.path, config.device)
        self._saved_at = time.monotonic()
        if resume:
            self._resume()
        else:
            self.folder.write_config(config.as_dict())

    @property
    def warnings(self) -> list[str]:
        """What the user should know of a run that was resumed."""
        return self._checkpoint.warnings

    @property
    def results(self) -> dict[str, Accuracy] | None:
        """What :meth:`evaluate` has found, also before a stop; None if it has not come to its end."""
        tests = self.folder.events("test")
        if not self.is_trained or not tests:
            return None
        return {name: Accuracy(**value) for name, value in tests[-1].items() if isinstance(value, dict)}

    def train(self, report: Callable[[EpochResult], None] | None = None, progress: bool | None = None) -> None:
        """Trains and saves the model, or does nothing where that was done before the run was resumed.

        Args:
            report: called after every epoch.
            progress: see :meth:`Trainer.fit`.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the minibatch is done and the state is saved.
        """
        if self.is_trained:
            return
        scheduler = create_schedule(
            self.config.schedule, self.trainer.optimizer, epochs=self.config.epochs, batches=len(self.train_loader)
        )
        self._saved_at = time.monotonic()
        with postponed_stop() as stop_is_wanted:

            def save_if_due(is_due: bool) -> None:
                if is_due or stop_is_wanted():
                    self._save()
                if stop_is_wanted():
                    raise KeyboardInterrupt

            self.trainer.fit(
                self.train_loader,
                epochs=self.config.epochs,
                scheduler=scheduler,
                schedule_every="step",
                callbacks=[self._log_epoch, *([report] if report else []), lambda result: save_if_due(True)],
                between_steps=lambda: save_if_due(time.monotonic() - self._saved_at >= self._save_every),
                progress=progress,
            )
        joint = self.trainer.method.joint
        if joint is not None:
            joint.save(self.folder.maximizer, self.config.as_dict())
        # The last of the results: where it is, the others are.
        save_model(
            self.folder.checkpoint,
            self.model,
            model_name=self.config.model,
            model_kwargs=self._model_kwargs,
            extra=self.config.as_dict(),
        )
        self._checkpoint.remove()
        self.is_trained = True

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

    def _save(self) -> None:
        """Where the run stands, between two minibatches or after an epoch."""
        self._checkpoint.save(
            {
                "config": self.config.as_dict(),
                "trainer": self.trainer.state_dict(),
                "agreements_logged": self._agreements_logged,
                "metrics_length": self.folder.sync_metrics(),
            }
        )
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Goes to where the run was saved last: to its end, into its training, or to its beginning."""
        state = self._checkpoint.load()
        if state is not None:
            check_same_settings(self.config, state["config"], str(self._checkpoint.path))
            self.trainer.load_state_dict(state["trainer"])
            self._agreements_logged = state["agreements_logged"]
            self.folder.cut_metrics(state["metrics_length"])
            self.stands_at = self._described(state["trainer"]["fit"]["progress"])
        elif self.folder.checkpoint.exists():
            model, _ = load_model(self.folder.checkpoint, model_name=self.config.model)
            self.model.load_state_dict(model.state_dict())
            if self.trainer.method.joint is not None:
                self.trainer.method.joint.load(self.folder.maximizer)
            self.folder.cut_metrics()
            self.is_trained = True
            self.stands_at = "the end" if self.results else "the test of the trained model"
        elif len(self.folder.events("epoch")) > 1:
            raise CheckpointError(f"{self.folder.path} has the metrics of a run, but neither its state, "
                                  f"{self._checkpoint.path.name}, nor its model. Begin again, in another folder")
        else:  # it was killed before its first save, which follows the log of the first epoch
            self.folder.cut_metrics(0)

    def _described(self, progress: dict[str, Any]) -> str:
        epoch = len(progress["results"]) + 1
        if epoch > self.config.epochs:
            return "the end of the last epoch"
        return f"epoch {epoch} of {self.config.epochs}, minibatch {progress['sums']['batches'] + 1} of " \
               f"{len(self.train_loader)}"

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


def _resumed_settings(config: TrainConfig) -> TrainConfig:
    """The settings of the run to be resumed, which those given must not differ from."""
    if config.output is None:
        raise ValueError("output must be given to resume a run: its folder")
    path = str(recorded_config(config.output))
    recorded = load_config_file(path).config().resolved().as_dict()
    for name in ("dataset", "method"):  # first: the defaults and options of others depend on them
        check_same_settings(config, {name: recorded[name]}, path)
    resolved = config.resolved()
    check_same_settings(resolved, recorded, path)
    return resolved


def _model_kwargs(data: ImageData) -> dict[str, Any]:
    """What a model for the data set is made with."""
    return {
        "num_classes": data.num_classes,
        "in_channels": data.images.shape[1],
        "mean": list(data.mean),
        "std": list(data.std),
    }
