"""Classifiers: images [B, C, H, W] in [0, 1] in, logits [B, num_classes] out; normalisation is inside.

`create_model` builds one by its name. Each has `features(images)`, the feature map before pooling. Beside them are the
networks that amortised ADT trains against a classifier: `PerturbationGenerator` and `VariationalEncoder`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from .._suggest import unknown_name_message
from .encoder import VariationalEncoder
from .generator import PerturbationGenerator
from .normalize import Normalize
from .preactresnet import PreActResNet18
from .small_cnn import SmallCNN
from .wide_resnet import WideResNet

__all__ = [
    "Normalize",
    "PerturbationGenerator",
    "PreActResNet18",
    "SmallCNN",
    "VariationalEncoder",
    "WideResNet",
    "create_model",
    "model_names",
]

_MODELS = {"small-cnn": SmallCNN, "preactresnet-18": PreActResNet18}
_WIDE_RESNET = re.compile(r"wrn-(\d+)-(\d+)")
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
) -> nn.Module:
    """A new classifier, in train mode, with random weights drawn from PyTorch's global generator.

    name: "small-cnn", "preactresnet-18" or "wrn-DEPTH-WIDTH", e.g. "wrn-28-10" (depth 6 n + 4).
    num_classes: length of the logits. in_channels: channels of the images. Both at least 1.
    mean, std: one number per channel; the first layer is then (x - mean) / std. None, the default, is no such layer.

    Raises TypeError or ValueError that names the argument, and for an unknown name the nearest known one.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    settings = dict(num_classes=num_classes, in_channels=in_channels, mean=mean, std=std)
    if name in _MODELS:
        return _MODELS[name](**settings)
    if match := _WIDE_RESNET.fullmatch(name):
        return WideResNet(int(match[1]), int(match[2]), **settings)
    raise ValueError(unknown_name_message("model", name, (*_MODELS, *_USUAL_WIDE_RESNETS, "wrn-DEPTH-WIDTH")))
