"""Settings of a run beside its method: what the network sees of the images, how it is trained, what is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .._support.checks import check_bool, check_fraction, check_int, check_positive
from .arguments import Boolean, Integer, Number, Text, argument, default_is
from .dataset_defaults import by_dataset

DEFAULT_VALIDATION_ATTACK = "pgd-10"


@dataclass(frozen=True)
class DataOptions:
    """Which images are trained on, and how they are varied."""

    crop_padding: Annotated[int | None, Integer, by_dataset("crop_padding")] = None
    """Pixels of zeros around an image before a random crop to its size; 0 for no crop."""

    flip: Annotated[bool | None, Boolean, by_dataset("flip")] = None
    """Mirror every image left to right with probability 1/2."""

    cutout: Annotated[int, Integer] = 0
    """Side, in pixels, of a square at a random place of every image that is painted over with the data's mean colour; 0
    for none."""

    extra_data: Annotated[Path | None, argument(Path, "FILE.npz"), default_is("none")] = None
    """More images to train on, generated ones for example: an npz file with the arrays image, 8-bit [N, H, W, C], and
    label [N]."""

    extra_fraction: Annotated[float | None, Number, default_is("that of a common pool")] = None
    """Share of the extra images in every minibatch, in (0, 1); an epoch is then a pass over the data set's own. By
    default all images are one pool."""

    drop_last: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out the last minibatch of an epoch where it is smaller than the others."""

    validation_images: Annotated[int, Integer] = 0
    """So many images of the training set, of all classes alike, are not trained on but tell when the model is most
    robust: best.safetensors is the model of that moment. 0 for none."""

    validate_every: Annotated[int, Integer] = 1
    """Epochs from one validation to the next; the last epoch always has one."""

    validation_attack: Annotated[str, Text] = DEFAULT_VALIDATION_ATTACK
    """What the validation images have to withstand: one attack that needs no other model, named as for adt-fast
    evaluate."""

    def check_data_options(self) -> None:
        """Raises TypeError or ValueError that names the setting that is impossible."""
        for name, lowest in (("crop_padding", 0), ("cutout", 0), ("validation_images", 0), ("validate_every", 1)):
            check_int(name, getattr(self, name), lowest, 2**31)
        for name in ("flip", "drop_last"):
            check_bool(name, getattr(self, name))
        if not isinstance(self.extra_data, (str, Path, type(None))):
            raise TypeError(f"extra_data must be a path or None, got {type(self.extra_data).__name__}")
        if not isinstance(self.validation_attack, str):
            raise TypeError(f"validation_attack must be a str, got {type(self.validation_attack).__name__}")
        if self.extra_fraction is not None:
            if self.extra_data is None:
                raise ValueError(f"extra_fraction must not be given without extra_data, got {self.extra_fraction}")
            check_fraction("extra_fraction", self.extra_fraction)
        if not self.validation_images:
            for name, default in (("validate_every", 1), ("validation_attack", DEFAULT_VALIDATION_ATTACK)):
                if getattr(self, name) != default:
                    raise ValueError(f"{name} must not be given without validation_images, got {getattr(self, name)}")


@dataclass(frozen=True)
class LoopOptions:
    """How the loop takes its steps, and where else its metrics go."""

    ema_decay: Annotated[float | None, Number, default_is("no average")] = None
    """Decay per step of an exponential moving average of the weights, in (0, 1), for example 0.995: the average is then
    the model that is validated, saved and tested."""

    max_grad_norm: Annotated[float | None, Number, default_is("no limit")] = None
    """Euclidean norm to which the classifier's gradient is scaled down where it is longer; a generator's is not."""

    accumulation_steps: Annotated[int, Integer] = 1
    """Parts in which a minibatch goes through attack and backward pass, one after another, before its one step: less
    memory, the same noise and the same mean gradient, but batch norm sees a part at a time."""

    sync_batchnorm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With several processes, batch norm takes its statistics over the whole minibatch, not over a process's share; in
    jointly trained networks too."""

    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the metrics for TensorBoard too, into the folder tensorboard of the run's."""

    wandb: Annotated[str | None, argument(str, "PROJECT"), default_is("none")] = None
    """Send the metrics to this project of Weights & Biases too."""

    def check_loop_options(self, batch_size: int) -> None:
        """Raises TypeError or ValueError that names the setting that is impossible."""
        if self.ema_decay is not None:
            check_fraction("ema_decay", self.ema_decay)
        if self.max_grad_norm is not None:
            check_positive("max_grad_norm", self.max_grad_norm)
        check_int("accumulation_steps", self.accumulation_steps, 1, 2**31)
        if self.accumulation_steps > batch_size:
            raise ValueError(f"accumulation_steps must be at most batch_size, {batch_size}, got "
                             f"{self.accumulation_steps}")
        for name in ("sync_batchnorm", "tensorboard"):
            check_bool(name, getattr(self, name))
        if self.wandb is not None and not (isinstance(self.wandb, str) and self.wandb):
            raise ValueError(f"wandb must be the name of a project, got {self.wandb!r}")
