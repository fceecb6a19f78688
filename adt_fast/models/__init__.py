"""Classifiers: images [B, C, H, W] in [0, 1] in, logits [B, num_classes] out; normalisation is inside.

`create_model` builds one by its name. Each has `features(images)`, the feature map before pooling. Beside them are the
networks that amortised ADT trains against a classifier: `PerturbationGenerator` and `VariationalEncoder`; and
`convert_sync_batchnorm`, for training in several processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from .._support.suggest import unknown_name_message
from .encoder import VariationalEncoder
from .generator import PerturbationGenerator
from .normalize import Normalize
from .preactresnet import PreActResNet18
from .small_cnn import SmallCNN
from .sync_batch_norm import convert_sync_batchnorm
from .wide_resnet import WideResNet

__all__ = [
    "Normalize",
    "PerturbationGenerator",
    "PreActResNet18",
    "SmallCNN",
    "VariationalEncoder",
    "WideResNet",
    "convert_sync_batchnorm",
    "create_model",
    "model_names",
]

_MODELS = {"small-cnn": SmallCNN, "preactresnet-18": PreActResNet18}
_WIDE_RESNET = re.compile(r"wrn-(\d+)-(\d+)")
_OPTIONS = {"small-cnn": (), "preactresnet-18": ("shortcut",), "wrn-DEPTH-WIDTH": ("activation", "padding")}
_USUAL_WIDE_RESNETS = ("wrn-10-2", "wrn-16-4", "wrn-28-10", "wrn-34-10")


def model_names() -> tuple[str, ...]:
    """The names `create_model` takes; DEPTH and WIDTH stand for numbers, as in wrn-28-10."""
    return (*_MODELS, "wrn-DEPTH-WIDTH")


def create_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    activation: Literal["relu", "silu"] | None = None,
    padding: Literal["symmetric", "same"] | None = None,
    shortcut: Literal["activated", "input"] | None = None,
) -> nn.Module:
    """A new classifier, in train mode, with random weights drawn from PyTorch's global generator.

    name: "small-cnn", "preactresnet-18" or "wrn-DEPTH-WIDTH", e.g. "wrn-28-10" (depth 6 n + 4).
    num_classes: length of the logits. in_channels: channels of the images. Both at least 1.
    mean, std: one number per channel; the first layer is then (x - mean) / std. None, the default, is no such layer.
    activation, padding: of wrn-DEPTH-WIDTH alone, see `WideResNet`. shortcut: of preactresnet-18 alone, see
        `PreActResNet18`. None is the model's own default.

    Raises TypeError or ValueError that names the argument, and for an unknown name the nearest known one.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    settings: dict[str, Any] = dict(num_classes=num_classes, in_channels=in_channels, mean=mean, std=std)
    options: dict[str, Any] = {"activation": activation, "padding": padding, "shortcut": shortcut}
    options = {option: value for option, value in options.items() if value is not None}
    if name in _MODELS:
        _check_options(name, options, _OPTIONS[name])
        return _MODELS[name](**settings, **options)
    if match := _WIDE_RESNET.fullmatch(name):
        _check_options(name, options, _OPTIONS["wrn-DEPTH-WIDTH"])
        return WideResNet(int(match[1]), int(match[2]), **settings, **options)
    raise ValueError(unknown_name_message("model", name, (*_MODELS, *_USUAL_WIDE_RESNETS, "wrn-DEPTH-WIDTH")))


def _check_options(name: str, given: dict[str, Any], own: tuple[str, ...]) -> None:
    for option in given:
        if option not in own:
            (owner,) = (model for model, options in _OPTIONS.items() if option in options)
            raise ValueError(f"{option} is an option of {owner} alone, and {name} has none of that name")
