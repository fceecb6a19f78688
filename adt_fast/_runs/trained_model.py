"""A trained model and the images to test it on, from the settings of a command."""

from __future__ import annotations

from functools import cached_property
from typing import Any, get_args

from .._settings.dataset_defaults import default_test_limit
from .._support.checks import check_choice, check_int
from .._support.devices import resolve_device
from .._support.layout import to_channels_last
from ..attacks import Norm
from ..checkpoint import load_model
from ..config import TrainedModelConfig, check_known
from ..data import BatchLoader, ImageData, dataset_names, load_dataset
from .folder import checkpoint_of


class TrainedModel:
    """A trained classifier, ready to be evaluated.

    Args:
        config: see :class:`adt_fast.config.TrainedModelConfig`.

    Raises:
        ValueError: if a setting is unknown or impossible, or the file is no checkpoint of a model.
        OSError: if the checkpoint or data are missing.
        ImportError: if the data set needs a package that is not installed.
    """

    def __init__(self, config: TrainedModelConfig) -> None:
        self.config = config
        check_int("seed", config.seed, 0, 2**63)
        check_int("batch_size", config.batch_size, 1, 2**31)
        self.device = resolve_device(config.device)
        model, metadata = load_model(checkpoint_of(config.run))
        self.trained_with: dict[str, Any] = metadata["extra"]
        """The settings of its training, as far as the checkpoint tells."""
        self.model_name: str = metadata["model_name"]
        self.dataset: str = self._setting("dataset")
        check_known("dataset", self.dataset, dataset_names())
        self.epsilon: float = self._setting("epsilon")
        norm: Any = config.norm or self.trained_with.get("norm") or "linf"
        check_choice("norm", norm, get_args(Norm))
        self.norm: Norm = norm
        limit = config.test_limit if config.test_limit is not None else default_test_limit(self.dataset, self.device)
        self.data = self._load("test", limit)
        """The test images, as many as were asked for."""
        _check_fits(self.data, metadata["model_kwargs"])
        self.model = to_channels_last(model, self.device)

    @property
    def headline(self) -> str:
        """What is evaluated, in a line."""
        ball = "" if self.norm == "linf" else " in L2"
        return f"{self.config.run} on {len(self.data)} test images of {self.dataset}, epsilon {self.epsilon:.4g}{ball}"

    @cached_property
    def loader(self) -> BatchLoader:
        """Batches of the test images, in order, on the model's device."""
        return BatchLoader(self.data, self.config.batch_size, device=self.device, channels_last=True)

    def training_data(self, limit: int | None = None) -> ImageData:
        """The training images of the data set, for attacks that need some."""
        return self._load("train", limit)

    def _load(self, split: str, limit: int | None) -> ImageData:
        return load_dataset(
            self.dataset, split, data_dir=self.config.data_dir, download=self.config.download, limit=limit
        )

    def _setting(self, name: str) -> Any:
        value = getattr(self.config, name)
        value = self.trained_with.get(name) if value is None else value
        if value is None:
            raise ValueError(f"{name} must be given: the checkpoint does not tell which it was trained with")
        return value


def _check_fits(data: ImageData, model_kwargs: dict[str, Any]) -> None:
    """Raises ValueError where a model of these settings takes no such images, or knows other classes."""
    for name, wanted in (("num_classes", data.num_classes), ("in_channels", data.images.shape[1])):
        if model_kwargs.get(name, wanted) != wanted:
            raise ValueError(f"dataset {data.name!r} does not fit the model: it has {name}={wanted}, the model "
                             f"{model_kwargs[name]}")
