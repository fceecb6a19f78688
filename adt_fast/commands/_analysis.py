"""What the commands of :mod:`adt_fast.analysis` share: where results go, which models and images they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from .._runs.folder import RunFolder, check_new
from .._runs.trained_model import TrainedModel
from .._settings.arguments import Folder, default_is
from .._support.checks import check_int
from ..analysis import AnalysisResult
from ..config import TrainedModelsConfig
from ..data import BatchLoader, ImageData


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the results of an analysis go."""

    output: Annotated[Path | None, Folder, default_is("runs/COMMAND-TIME")] = None
    """A new or empty folder, for data.json, data.csv, figure.png and figure.pdf."""

    def check_output(self) -> None:
        """Raises ValueError where the folder is in use; to be called before the work begins."""
        if self.output is not None:
            check_new(self.output)

    def save(self, result: AnalysisResult, command: str) -> None:
        """Writes the result, and says where to."""
        folder = RunFolder.named_by_time(f"runs/{command}") if self.output is None else RunFolder(self.output)
        print_saved(result, folder.path)


def print_saved(result: AnalysisResult, folder: Path) -> None:
    """Writes the result to a folder, and says what there is now."""
    saved = result.save(folder)
    print(f"\nsaved to {folder}: {', '.join(path.name for path in saved.files)}")
    if saved.note:
        print(saved.note)


def trained_models(config: TrainedModelsConfig) -> dict[str, TrainedModel]:
    """The models by name, to be tested on the same images in the same L-infinity ball.

    Raises:
        ValueError: if they were trained on different data, or in different balls, and none was given; and what
            :class:`adt_fast._runs.trained_model.TrainedModel` raises.
        OSError, ImportError: see there.
    """
    models = {name: TrainedModel(one) for name, one in config.each().items()}
    for setting in ("dataset", "epsilon"):
        values = {getattr(model, setting) for model in models.values()}
        if len(values) > 1:
            raise ValueError(f"{setting} must be given, for the models were trained with different ones: "
                             f"{', '.join(map(str, sorted(values)))}")
    for model in models.values():
        check_linf(model)
    return models


def check_linf(trained: TrainedModel) -> None:
    """Raises ValueError where the ball is of another norm than the paper's analyses are."""
    if trained.norm != "linf":
        raise ValueError(f"norm must be linf for this analysis, got {trained.norm!r}; give it, and an epsilon for it")


def headline(models: dict[str, TrainedModel]) -> str:
    """What is looked at, in a line."""
    first = next(iter(models.values()))
    return f"{', '.join(models)} on {len(first.data)} test images of {first.dataset}, epsilon {first.epsilon:.4g}"


def chosen_images(trained: TrainedModel, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The test images of these indices, as :func:`as_batch` has them.

    Raises:
        ValueError: if there is no index, or one beyond the test images.
    """
    if not indices:
        raise ValueError("image must be one index or more, got none")
    for index in indices:
        check_int("image", index, 0, len(trained.data))
    return as_batch(trained.data, trained.device, indices)


def as_batch(data: ImageData, device: torch.device, indices: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, H, W]`` in [0, 1] and labels ``[N]`` on the device: those chosen, or all."""
    chosen = torch.arange(len(data)) if indices is None else torch.tensor(indices)
    part = ImageData(data.images[chosen], data.labels[chosen], data.num_classes, data.name, data.mean, data.std)
    return next(iter(BatchLoader(part, len(part), device=device, channels_last=True)))
