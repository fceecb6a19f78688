"""``adt-fast convert``"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from .._settings.arguments import Text, argument, default_is
from .._support.option_text import parse_number
from ..checkpoint import load_model
from ..checkpoint_conversion import Conversion, convert_checkpoint
from .command import CommandFailed, begun

_IMAGES = 2
_FEW = 2


def _parse_numbers(text: str) -> tuple[float, ...]:
    return tuple(map(parse_number, text.split(",")))


_Numbers = argument(_parse_numbers, "NUMBER,...")


@dataclass(frozen=True)
class Convert:
    """Convert a checkpoint of others into ours, or one of ours or others into a layout of others."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """A model.safetensors of adt-fast, or a file of torch.save or safetensors by others."""

    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """The file to write; for a layout of others it is one of torch.save unless it ends in .safetensors."""

    layout: Annotated[str, Text] = "adt_fast"
    """Layout of the target: adt_fast, wrn (RobustBench, TRADES, published ADT), preactresnet-18, or dm (DeepMind)."""

    normalization: Annotated[str | None, argument(str, "keep|drop"), default_is("an error where it matters")] = None
    """The model's normalisation, in a layout of others: write its numbers, or leave them to the code that loads the
    file."""

    sub_block1: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the tensors that the published code of ADT has and never uses; for --layout wrn."""

    module_prefix: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Begin every name with "module.", as DataParallel does; for layouts of others."""

    model: Annotated[str | None, Text, default_is("any")] = None
    """The model that the source has to be, for example wrn-28-10."""

    mean: Annotated[tuple[float, ...] | None, _Numbers, default_is("none")] = None
    """Means of the source's normalisation, of images in [0, 1], one number per channel, such as 0.4914,0.4822,0.4465;
    where it has none itself."""

    std: Annotated[tuple[float, ...] | None, _Numbers, default_is("none")] = None
    """Standard deviations of the same."""

    activation: Annotated[str | None, argument(str, "relu|silu"), default_is("required there")] = None
    """Activation of a source of the layout dm, which does not tell."""

    shortcut: Annotated[str | None, argument(str, "activated|input"), default_is("required there")] = None
    """Of a PreActResNet-18 by others, which does not tell: whether its convolutional shortcuts take the input of their
    block, or what the block's first ReLU gives."""

    entry: Annotated[str | None, Text, default_is("the only one")] = None
    """The entry of the source that holds the model, where there are several."""

    def __call__(self) -> None:
        options: dict[str, Any] = dict(model_name=self.model, mean=self.mean, std=self.std, activation=self.activation,
                       shortcut=self.shortcut, entry=self.entry)  # fmt: skip
        normalization: Any = self.normalization  # one of the two, or refused
        conversion = convert_checkpoint(
            self.source, self.target, layout=self.layout, normalization=normalization,
            sub_block1=self.sub_block1, module_prefix=self.module_prefix, **options,
        )  # fmt: skip
        with begun():
            before, _ = load_model(self.source, **options)
            after, _ = load_model(self.target, **conversion.untold)
            for what, text in self._report(conversion, before, after):
                print(f"{what:<10} {text}")

    def _report(self, conversion: Conversion, before: nn.Module, after: nn.Module) -> Iterable[tuple[str, str]]:
        """What was recognised, the model, what was dropped, and whether the target still is the same function."""
        known = conversion.source
        yield "read", f"{self.source}, " + (_recognised(known) if known else "layout adt_fast")
        yield "model", _description(conversion, before)
        for reason, names in (known["dropped"] if known else {}).items():
            yield "dropped", f"{_few(names)}: {reason}"
        if known and known["added"]:
            yield "added", f"{_few(known['added'])}: as zeros, for the source has none"
        if known and known["converted"]:
            yield "converted", f"{_few(known['converted'])}: to the dtype of the weights"
        yield "wrote", f"{self.target}, layout {conversion.layout}, {conversion.tensors} tensors"
        for reason, names in conversion.dropped.items():
            yield "left out", f"{_few(names)}: {reason}"
        if conversion.untold:
            told = ", ".join(f"{name}={value}" for name, value in conversion.untold.items())
            yield "not told", f"by the file, so to be told where it is loaded: {told}"
        yield "check", _check(conversion.model_kwargs, before, after)


def _recognised(source: Mapping[str, Any]) -> str:
    parts = [f"layout {source['layout']}"]
    parts += [f"{part} {source[part]!r}" for part in ("entry", "prefix") if source[part]]
    return ", ".join(parts)


def _description(conversion: Conversion, model: nn.Module) -> str:
    options = ", ".join(f"{name}={_short(value)}" for name, value in conversion.model_kwargs.items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{conversion.model_name}({options}), {parameters:,} parameters"


def _short(value: object) -> str:
    return f"({', '.join(f'{number:.4g}' for number in value)})" if isinstance(value, (list, tuple)) else str(value)


def _few(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


@torch.no_grad()
def _check(model_kwargs: Mapping[str, Any], before: nn.Module, after: nn.Module) -> str:
    channels = model_kwargs.get("in_channels", 3)
    images = torch.rand(_IMAGES, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, found = (model.double()(images.double()) for model in (before, after))
    if not torch.isfinite(expected).all():
        raise CommandFailed(f"the logits of the model in the source are not finite for {_IMAGES} random images")
    if not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
        raise CommandFailed("the model in the target gives other logits than the one in the source")
    low, high = float(expected.min()), float(expected.max())
    return f"the target gives the logits of the source for {_IMAGES} random images, from {low:.3g} to {high:.3g}"
