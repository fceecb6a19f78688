"""A training run from its settings to its results: data, model, training, validation, test, run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ._runs.checkpoint import RunCheckpoint
from ._runs.data import load_run_data
from ._runs.folder import RunFolder
from ._runs.resume import accuracies_of, found_in, resumed_settings, told_of
from ._runs.stop_signals import postponed_stop
from ._runs.trainer import create_trainer
from ._support.checks import check_bool, check_int, check_not_negative
from ._support.layout import to_channels_last
from ._training.progress import FitProgress, FitSettings
from ._training.state import check_scheduler_state
from .checkpoint import load_model, save_model
from .config import TrainConfig
from .data import ImageData
from .evaluation import Accuracy, evaluate
from .loggers import TensorBoardLogger, WandbLogger
from .models import create_model
from .processes import Processes, local_device
from .schedules import create_schedule
from .trainer import EpochResult
from .validation import Validated, Validation

DEFAULT_SAVE_EVERY = 300.0
"""Seconds between two saves within an epoch."""

CLOSING_ATTACKS = "pgd-20"
"""What a trained model is tested with at the end: 20 steps of size epsilon / 4 from a random start (Section 5.2)."""


class TrainingRun:
    """A training run, ready to start or to go on: everything that can be wrong with its settings has been looked at.

    While it trains, its state is saved after every epoch, every ``save_every`` seconds within one, and when Ctrl-C or
    SIGTERM stops it after a minibatch; docs/training.md tells what a resumed run has in common with an unbroken one.

    Several processes that share a run make one each, call the same methods, and share every minibatch and the tests;
    files are written by the first process alone.

    Args:
        config: see :class:`adt_fast.config.TrainConfig`.
        resume: go on with the run whose folder ``config.output`` is. The other settings must be those it has, but for
            where its data set is found.
        save_every: seconds, >= 0; with 0 after every minibatch. The default loses five minutes at most.
        processes: those that share the run. Default: this process alone.

    Raises:
        ValueError: if a setting is unknown or impossible, the output folder is in use, or what is in it cannot be
            resumed; CheckpointError where that is damaged; AnotherProcessFailed where one of these was raised in
            another process.
        OSError: if data are missing or the folder cannot be written.
        ImportError: if the data set, or a logger, needs a package that is not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        resume: bool = False,
        save_every: float = DEFAULT_SAVE_EVERY,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes = Processes.alone() if processes is None else processes
        with processes.all_or_none():
            check_bool("resume", resume)
            check_not_negative("save_every", save_every)
            self.config = settings = resumed_settings(config) if resume else config.resolved()
            self.device = local_device(torch.device(settings.device))
            self._check_loggers()
        self._save_every = save_every
        with processes.first_goes_first() if settings.download else processes.all_or_none():
            data = load_run_data(settings)
        self.test_data = data.test
        self._extra_checksum = data.extra_checksum
        self._model_kwargs = _model_kwargs(data.train)
        with processes.all_or_none():
            self.train_loader = data.loader(settings, self.device, processes)
            torch.manual_seed(settings.seed)
            self.model = create_model(settings.model, **self._model_kwargs)
            self.validation = None if data.validation is None else self._validation(data.validation)
        self.trainer = create_trainer(settings, self.model, data.train.image_shape, self.device, processes)
        self._agreements_logged = 0
        self.is_trained = False
        """Whether the model is the one that the run ends with."""
        self.results: dict[str, Accuracy] | None = None
        """What :meth:`evaluate` has found, also before a stop; None if it has not come to its end."""
        self.best_results: dict[str, Accuracy] | None = None
        """The same of the model that was best in validation; None where there is none."""
        self.stands_at = "the beginning"
        """Where it goes on, in words."""
        self.warnings: list[str] = []
        """What the user should know of a run that was resumed."""
        with processes.all_or_none():
            self.folder = self._open_folder(resume) if processes.is_first else None
            """The run's; None in other processes than the first."""
        self.path = Path(processes.from_first(None if self.folder is None else str(self.folder.path)))
        """Of the run's folder."""
        self._checkpoint = RunCheckpoint(self.path, self.config.device)
        if resume:
            self._resume()
        with processes.all_or_none():
            self._open_loggers()

    @property
    def trained_model(self) -> nn.Module:
        """The classifier: the average of its weights, where there is to be one."""
        return self.trainer.trained_model

    def train(
        self, report: Callable[[EpochResult, Validated | None], None] | None = None, progress: bool | None = None
    ) -> None:
        """Trains and saves the model, or does nothing where that was done before the run was resumed.

        Args:
            report: called after every epoch, with what its validation found if it had one.
            progress: see :meth:`Trainer.fit`.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the minibatch is done and the state is saved.
        """
        if self.is_trained:
            return
        saved_at = time.monotonic()
        with postponed_stop(quiet=not self.processes.is_first) as stop_is_wanted:

            def save_if_due(epoch_is_over: bool) -> None:
                nonlocal saved_at
                is_due = epoch_is_over or time.monotonic() - saved_at >= self._save_every
                # All processes save, or none: as the first one's clock has it, or a signal to any of them.
                dues, stops = self.processes.sum([is_due and self.processes.is_first, stop_is_wanted()])
                if dues or stops:
                    self._save()
                    saved_at = time.monotonic()
                if stops:
                    raise KeyboardInterrupt

            def end_epoch(result: EpochResult) -> None:
                self._log_epoch(result)
                found = self._validate(result.epoch)
                if report is not None:
                    report(result, found)
                save_if_due(True)

            self.trainer.fit(
                self.train_loader,
                **self._fit_settings(self.trainer.optimizer),
                callbacks=[end_epoch],
                between_steps=lambda: save_if_due(False),
                progress=progress,
            )
        if self.folder is not None:
            self._save_results(self.folder)
        self.processes.barrier()  # who sees the run as trained finds its files
        self.is_trained = True
        self.results = self.best_results = None

    def evaluate(self) -> dict[str, Accuracy]:
        """Natural accuracy and that under PGD-20, by name, on the test images; also logged, and kept in
        :attr:`results`. Where there was validation, the best model is tested too. What was tested before the run was
        resumed is not tested again."""
        if self.results is None:
            self.results = self._test(self.trained_model, "model.safetensors")
        if self.validation is not None and self.best_results is None:
            self.best_results = self._test(self._best_model(), "best.safetensors")
        return self.results

    def close(self) -> None:
        """Loggers write what they still have, and the folder is free for other processes; to be called last."""
        if self.folder is not None:
            self.folder.close()

    def _test(self, model: nn.Module, checkpoint: str) -> dict[str, Accuracy]:
        config = self.config
        report = evaluate(
            model, self.test_data, CLOSING_ATTACKS, epsilon=config.epsilon, norm=config.norm or "linf",
            seed=config.seed, examples=0, progress=None, processes=self.processes,
        )  # fmt: skip
        results = report.accuracies()
        accuracies = {name: asdict(accuracy) for name, accuracy in results.items()}
        self._log("test", checkpoint=checkpoint, **accuracies)
        return results

    def _best_model(self) -> nn.Module:
        """The one of best.safetensors, which the first process reads."""
        with self.processes.all_or_none():
            state = None if self.folder is None else load_model(self.folder.best)[0].state_dict()
        model = create_model(self.config.model, **self._model_kwargs)
        model.load_state_dict(self.processes.from_first(state))
        return to_channels_last(model, self.device)

    def _validate(self, epoch: int) -> Validated | None:
        if self.validation is None or not self.validation.is_due(epoch):
            return None
        found = self.validation(self.trained_model, epoch)
        is_best = found is self.validation.best
        if is_best and self.folder is not None:
            self._save_model(self.folder.best, validation=asdict(found))
        self._log(
            "validation", epoch=epoch, attack=self.config.validation_attack, natural=float(found.natural),
            robust=float(found.robust), images=found.robust.total, is_best=is_best,
        )  # fmt: skip
        return found

    def _save(self) -> None:
        """Where the run stands, between two minibatches or after an epoch."""
        state = {
            "config": self.config.as_dict(),
            "trainer": self.trainer.state_dict(),
            "validation": None if self.validation is None else self.validation.state_dict(),
            "agreements_logged": self._agreements_logged,
            "extra_checksum": self._extra_checksum,
        }
        if self.folder is not None:
            self._checkpoint.save(state | {"metrics_length": self.folder.sync_metrics()})

    def _save_results(self, folder: RunFolder) -> None:
        joint = self.trainer.method.joint
        if joint is not None:
            joint.save(folder.maximizer, self.config.as_dict())
        self._save_model(folder.checkpoint)  # the last of the results: where it is, the others are
        self._checkpoint.remove()

    def _save_model(self, path: Path, **extra: Any) -> None:
        save_model(
            path,
            self.trained_model,
            model_name=self.config.model,
            model_kwargs=self._model_kwargs,
            extra=self.config.as_dict() | extra,
        )

    def _open_folder(self, resume: bool) -> RunFolder:
        config = self.config
        if config.output is None:
            folder = RunFolder.named_by_time(f"runs/{config.dataset}-{config.method}")
        else:
            folder = RunFolder(config.output, resume=resume)
        if not resume:
            folder.write_config(config.as_dict(), self.processes.size)
        return folder

    def _check_loggers(self) -> None:
        """Before anything is begun, for what they need to be installed."""
        if self.config.tensorboard:
            TensorBoardLogger.package()
        if self.config.wandb is not None:
            WandbLogger.package()

    def _open_loggers(self) -> None:
        if self.folder is None:
            return
        if self.config.tensorboard:
            self.folder.loggers.append(TensorBoardLogger(self.path))
        if self.config.wandb is not None:
            self.folder.loggers.append(WandbLogger(self.path, self.config.wandb, None, self.config.as_dict()))

    def _resume(self) -> None:
        """Goes to where the run was saved last: to its end, into its training, or to its beginning."""
        with self.processes.all_or_none():
            found = None
            if self.folder is not None:
                found = found_in(self.folder, self._checkpoint, self.config, self.trainer, self.validation)
                self.warnings += self._checkpoint.warnings
        found = self.processes.from_first(found)
        state, model = found["state"], found["model"]
        with self.processes.all_or_none():
            if state is not None:
                with told_of(found["path"]):
                    self._load_state(state)
            elif model is not None:
                self.trained_model.load_state_dict(model)
                if self.trainer.method.joint is not None:
                    self.trainer.method.joint.load_state_dict(found["joint"])
                self.is_trained = True
                if self.validation is not None:
                    self.validation.load_state_dict(found["validation"])
                self.results, self.best_results = map(accuracies_of, found["tests"])
                is_tested = self.results and (self.validation is None or self.best_results)
                self.stands_at = "the end" if is_tested else "the test of the trained model"
        with self.processes.all_or_none():  # the first change in the folder, when all processes have what they need
            if self.folder is not None:
                self.folder.cut_metrics(found["metrics_length"])

    def _load_state(self, state: dict[str, Any]) -> None:
        """Goes to where a state was saved.

        Raises:
            TypeError, ValueError: if it does not fit.
        """
        check_int("agreements_logged", state["agreements_logged"], 0, 2**63)
        if state["extra_checksum"] != self._extra_checksum:
            raise ValueError(f"extra_data must have the images that it had when the run was saved, and "
                             f"{self.config.extra_data} has others")
        self.trainer.load_state_dict(state["trainer"])
        fit = state["trainer"]["fit"]
        if fit is None:
            raise ValueError("state of the run must be of a fit under way, it has none")
        # A scheduler sets the rates of its optimizer and wraps its step: this one is of another, of one parameter.
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.config.learning_rate)
        progress, settings = FitProgress.from_state(fit["progress"]), self._fit_settings(optimizer)
        progress.settings.check_same(FitSettings.of(self.train_loader, **settings))
        check_scheduler_state(settings["scheduler"], fit["scheduler"])
        self._check_momentum()
        if self.validation is not None:
            self.validation.load_state_dict(state["validation"])
        self._agreements_logged = state["agreements_logged"]
        self._warn_of_other_processes(len(state["trainer"]["processes"]))
        self.stands_at = self._described(progress)

    def _check_momentum(self) -> None:
        """Raises ValueError where some parameters have a momentum and others have none: a fused step takes all alike,
        and all of the model's take part in it."""
        state = self.trainer.optimizer.state
        missing = [name for name, parameter in self.model.named_parameters()
                   if state.get(parameter, {}).get("momentum_buffer") is None]  # fmt: skip
        if missing and len(missing) < len(list(self.model.parameters())):
            raise ValueError(f"state of the model's optimizer must have the momentum of every parameter, it lacks that "
                             f"of {missing[0]}")

    def _fit_settings(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What the training is called with, with a new scheduler of the optimizer."""
        epochs, batches = self.config.epochs, len(self.train_loader)
        scheduler = create_schedule(self.config.schedule, optimizer, epochs=epochs, batches=batches)
        return {"epochs": epochs, "scheduler": scheduler, "schedule_every": "step"}

    def _warn_of_other_processes(self, saved: int) -> None:
        if saved != self.processes.size:
            self.warnings.append(f"the run was saved by {saved} processes, and goes on with {self.processes.size}: "
                                 "their shares of a minibatch have another size, and sums another order, so it may "
                                 "differ from an unbroken one")

    def _described(self, progress: FitProgress) -> str:
        if progress.epoch > self.config.epochs:
            return "the end of the last epoch"
        return f"epoch {progress.epoch} of {self.config.epochs}, minibatch {progress.sums.batches + 1} of " \
               f"{len(self.train_loader)}"

    def _validation(self, data: ImageData) -> Validation:
        config = self.config
        validation = Validation(
            data,
            config.validation_attack,
            every=config.validate_every,
            epochs=config.epochs,
            epsilon=config.epsilon,
            norm=config.norm or "linf",
            seed=config.seed,
            processes=self.processes,
        )
        validation.check_attack(self.model)
        return validation

    def _log(self, event: str, **metrics: Any) -> None:
        if self.folder is not None:
            self.folder.log(event=event, **metrics)

    def _log_epoch(self, result: EpochResult) -> None:
        self._log("epoch", **asdict(result))
        if self.trainer.method.maximizer is None:
            return
        engine = self.trainer.method.maximizer.input_gradient
        if result.epoch == 1:
            self._log("engine", **engine.features())
        if engine.guard is not None:
            for agreement in engine.guard.history[self._agreements_logged :]:
                self._log("precision", **agreement._asdict())
            self._agreements_logged = len(engine.guard.history)


def _model_kwargs(data: ImageData) -> dict[str, Any]:
    """What a model for the data set is made with."""
    return {
        "num_classes": data.num_classes,
        "in_channels": data.images.shape[1],
        "mean": list(data.mean),
        "std": list(data.std),
    }
