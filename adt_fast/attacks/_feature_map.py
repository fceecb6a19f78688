"""FeatureMap: what a classifier makes of images on the way to its logits."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from .._support.checks import check_bool, check_choice
from .._support.model_state import ModelMode, model_mode
from .._support.suggest import unknown_name_message

Features = Literal["pre-pool", "post-pool"]
"""The feature map before the global average pooling, or the average."""

_POOLINGS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
_MOST_LISTED = 8


class FeatureMap(nn.Module):
    """Images ``[N, C, H, W]`` -> a classifier's features, flattened, ``[N, F]``.

    They come from the named layer; without one from the classifier's method ``features(images)``, which gives the
    feature map ``[N, C', H', W']`` before pooling; without that from the one nn.AdaptiveAvgPool2d or nn.AvgPool2d that
    the classifier has. A layer is read by a hook that is there during a pass, and removed after it, whatever happens.

    Args:
        classifier: without wrappers.
        features: before or after pooling; a named layer goes with the default only, ``"pre-pool"``.
        layer: the name of a module (``classifier.get_submodule``) whose output, a tensor, the features are.
        layer_input: whether they are its first positional input instead.

    Raises:
        TypeError, ValueError: for a bad argument, by name; where there is no telling which layer to read.
    """

    def __init__(
        self, classifier: nn.Module, *, features: Features = "pre-pool", layer: str | None = None,
        layer_input: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("features", features, get_args(Features))
        check_bool("layer_input", layer_input)
        _check_layer(classifier, features, layer, layer_input)
        self.classifier = classifier
        self.pooled = features == "post-pool"
        self.method = layer is None and _has_features_method(classifier)
        self.layer = layer if layer is not None or self.method else _only_pooling(classifier)
        self.reads_input = layer_input if layer is not None else not self.pooled

    def forward(self, images: Tensor) -> Tensor:
        if self.method:
            found = self._features_of(images)
            return (found.mean((2, 3)) if self.pooled else found).flatten(1)
        return self._read_layer(images)[-1].flatten(1)

    @torch.no_grad()
    def check(self, image: Tensor, mode: ModelMode) -> None:
        """Looks at the features of one image ``[1, C, H, W]``, with the classifier in the given mode.

        Raises ValueError where they are no tensor of a row per image, a layer does not run once in a pass, or what is
        to be averaged is no feature map.
        """
        with model_mode(self.classifier, mode):
            seen = [self._features_of(image)] if self.method else self._read_layer(image)
        source = "the model's features(images)" if self.method else f"layer {self.layer!r}"
        if len(seen) != 1:
            raise ValueError(f"{source} must run once in a pass of the model, it ran {len(seen)} times")
        (found,) = seen
        if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != 1:
            given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{source} must have features [N, ...], got {given} for one image")
        if self.method and self.pooled and found.dim() != 4:
            raise ValueError(f"features='post-pool' needs a feature map [N, C, H, W], {source} gave "
                             f"{list(found.shape)} for one image")

    def _features_of(self, images: Tensor) -> Any:
        """What the classifier's own method says."""
        classifier: Any = self.classifier
        return classifier.features(images)

    def _read_layer(self, images: Tensor) -> list[Any]:
        """What passes the layer, each time that it runs."""
        seen: list[Any] = []

        def keep_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(_kept(inputs[0]) if inputs else None)

        def keep_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen.append(_kept(output))

        assert self.layer is not None  # there is one wherever the classifier has no method
        layer = self.classifier.get_submodule(self.layer)
        hook = (
            layer.register_forward_pre_hook(keep_input)
            if self.reads_input
            else layer.register_forward_hook(keep_output)
        )
        try:
            self.classifier(images)
        finally:
            hook.remove()
        return seen


def _kept(value: Tensor) -> Tensor:
    """The value as it is now: whatever runs next may change it in place."""
    return value.clone() if isinstance(value, (Tensor, fx.Proxy)) else value


def _check_layer(classifier: nn.Module, features: str, layer: str | None, layer_input: bool) -> None:
    if layer is None:
        if layer_input:
            raise ValueError("layer_input=True needs the name of a layer, and layer is None")
        return
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of a module or None, got {type(layer).__name__}")
    names = [name for name, _ in classifier.named_modules(remove_duplicate=False) if name]
    if layer not in names:
        raise ValueError("layer: " + unknown_name_message("module", layer, names))
    if features != "pre-pool":
        raise ValueError(f"features must be left out where a layer is named, got {features!r}")


def _has_features_method(classifier: nn.Module) -> bool:
    """A method: in some models ``features`` is a part of the network, which need not be all that precedes pooling."""
    features = getattr(classifier, "features", None)
    return callable(features) and not isinstance(features, nn.Module)


def _only_pooling(classifier: nn.Module) -> str:
    names = [name for name, module in classifier.named_modules() if name]
    poolings = [name for name, module in classifier.named_modules() if name and isinstance(module, _POOLINGS)]
    if len(poolings) == 1:
        return poolings[0]
    found = f"has {len(poolings)} pooling layers ({_listed(poolings)})" if poolings else (
        f"has no pooling layer among its modules (the last ones are {_listed(names)})"
    )
    raise ValueError("layer must name the module whose output the features are, or its input with layer_input=True: "
                     f"the model has no method features(images), and {found}")


def _listed(names: list[str]) -> str:
    return ", ".join([*(["..."] if len(names) > _MOST_LISTED else []), *names[-_MOST_LISTED:]])
