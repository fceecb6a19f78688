"""A model of a study, trained, or gone on with where it was stopped; and what is to be measured of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from adt_fast._runs.folder import logged_events
from adt_fast._runs.machine import versions
from adt_fast.config import TrainConfig
from adt_fast.experiment import TrainingRun

from .measurements import can_be_measured, measure
from .plan import Measurement, Run
from .store import ModelFolder


def carry_out(run: Run, measurements: list[Measurement], work: Path, data_dir: Path | None, threads: int) -> str:
    """Does what is not done yet of a task, and says what that was."""
    torch.set_num_threads(threads)
    folder = ModelFolder(work, run)
    config = run.config(data_dir, folder.run)
    start = time.perf_counter()
    done = ["trained"] if _train(config) else []
    for measurement in measurements:
        if folder.result(measurement) is None and can_be_measured(measurement):
            result = measure(measurement, folder, config)
            folder.keep(measurement, result | {"versions": versions(torch.device(config.resolved().device))})
            done.append(measurement.kind)
    return f"{run.name}, seed {run.seed}: {', '.join(done) or 'there'}, {time.perf_counter() - start:.0f} s"


def gathered(run: Run, measurements: list[Measurement], work: Path) -> dict[str, Any] | None:
    """All that is known of a model, for the file of the study; None if it is not trained."""
    folder = ModelFolder(work, run)
    found = {one.kind: folder.result(one) for one in measurements}
    if all(result is None for result in found.values()):
        return None
    losses = [event["loss"] for event in logged_events(folder.run, "epoch")]
    return {"name": run.name, **run.changes, "seed": run.seed, "losses": losses} | found


def _train(config: TrainConfig) -> bool:
    """Whether there was something to train."""
    training = TrainingRun(config, resume=(config.output / "config.yaml").exists())
    try:
        if training.is_trained:
            return False
        training.train(progress=False)
        return True
    finally:
        training.close()
