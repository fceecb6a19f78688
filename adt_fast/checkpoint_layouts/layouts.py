"""The layouts: how published code names the tensors of a network that adt_fast has.

Names are translated both ways by one table, and the architecture is read from names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any


class UnknownCheckpoint(ValueError):
    """A file is damaged, or holds no model that adt_fast knows. The message reads on from the file's name."""


ShapeOf = Callable[[str, int], tuple[int, ...]]
"""(our name of a tensor, its dimensions) -> its shape. Raises UnknownCheckpoint where there is none of that kind."""


@dataclass(frozen=True)
class Layout:
    """A naming of the tensors, and what the code behind it computes."""

    name: str
    describes: str
    """For people."""
    family: str
    """What the names of its models begin with."""
    stem: str
    """A tensor that every network of the layout has: what it is recognised by."""
    architecture: Callable[[Set[str], ShapeOf], tuple[str, dict[str, Any]]]
    """(our names of the tensors, their shapes) -> (model_name, model_kwargs), as far as these tell them."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Their modules' names -> ours, with N for the number of a block; empty where they are the same."""
    unused: str = ""
    """A prefix of tensors that the published code makes and never uses."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Options of `create_model` that the code behind the layout does not leave open."""
    open: tuple[str, tuple[str, ...]] = ("", ())
    """The option of `create_model` that the file cannot tell, and its choices."""
    normalizes: bool = False
    """Whether the code always normalises, by numbers that its files need not have."""

    def our_name(self, name: str) -> str | None:
        """None for a tensor that the layout does not have."""
        return _rename(name, self.modules)

    def their_name(self, name: str) -> str:
        theirs = _rename(name, {ours: theirs for theirs, ours in self.modules.items()})
        assert theirs is not None  # the table has every module of the architecture
        return theirs


def _rename(name: str, modules: Mapping[str, str]) -> str | None:
    if not modules:
        return name
    module, _, leaf = name.rpartition(".")
    number = ""
    if match := re.fullmatch(r"(.*\.)(\d+)(\.\w+)", module):
        module, number = f"{match[1]}N{match[3]}", match[2]
    if module not in modules:
        return None
    return f"{modules[module].replace('N', number)}.{leaf}"


def _ends(shape_of: ShapeOf, first: str, last: str) -> dict[str, Any]:
    return {"num_classes": shape_of(last, 2)[0], "in_channels": shape_of(first, 4)[1]}


def _wide_resnet(names: Set[str], shape_of: ShapeOf) -> tuple[str, dict[str, Any]]:
    blocks = {match[1] for name in names if (match := re.match(r"block1\.layer\.(\d+)\.", name))}
    channels = shape_of("block1.layer.0.conv1.weight", 4)[0]
    if channels == 0 or channels % 16:
        raise UnknownCheckpoint(f"has {channels} channels in the first group, and a WideResNet has a multiple of 16")
    return f"wrn-{6 * len(blocks) + 4}-{channels // 16}", _ends(shape_of, "conv1.weight", "fc.weight")


def _preactresnet(names: Set[str], shape_of: ShapeOf) -> tuple[str, dict[str, Any]]:
    if "bn1.weight" in names or "fc.weight" in names:
        raise UnknownCheckpoint("holds a ResNet whose activations come after its convolutions, which adt_fast lacks")
    if "bn.weight" in names:
        raise UnknownCheckpoint(
            "holds a pre-activation ResNet with a batch norm after its last block ('bn.weight'), and the "
            "preactresnet-18 of adt_fast has none"
        )
    return "preactresnet-18", _ends(shape_of, "conv1.weight", "linear.weight")


_DM_BLOCK = {
    "batchnorm_0": "bn1", "conv_0": "conv1", "batchnorm_1": "bn2", "conv_1": "conv2", "shortcut": "convShortcut",
}  # fmt: skip
_DM_MODULES = {"init_conv": "conv1", "batchnorm": "bn1", "logits": "fc"} | {
    f"layer.{group}.block.N.{theirs}": f"block{group + 1}.layer.N.{ours}"
    for group in range(3)
    for theirs, ours in _DM_BLOCK.items()
}

WRN = Layout(
    name="wrn",
    describes="WideResNet as in TRADES, RobustBench and the published code of ADT",
    family="wrn-",
    stem="block1.layer.0.conv1.weight",
    architecture=_wide_resnet,
    unused="sub_block1.",
    fixed={"activation": "relu", "padding": "symmetric"},
)

PREACTRESNET = Layout(
    name="preactresnet-18",
    describes="pre-activation ResNet-18 for small images",
    family="preactresnet-18",
    stem="layer1.0.conv1.weight",
    architecture=_preactresnet,
    fixed={"activation": "relu"},
    open=("shortcut", ("activated", "input")),
)

DM = Layout(
    name="dm",
    describes="WideResNet of Gowal et al., as published by DeepMind and used in RobustBench",
    family="wrn-",
    stem="layer.0.block.0.conv_0.weight",
    architecture=_wide_resnet,
    modules=_DM_MODULES,
    fixed={"padding": "same"},
    open=("activation", ("relu", "silu")),
    normalizes=True,
)

LAYOUTS = {layout.name: layout for layout in (WRN, PREACTRESNET, DM)}
"""By name."""

DEFAULTS = {"activation": "relu", "padding": "symmetric", "shortcut": "activated"}
"""Of the options of `create_model` that layouts fix or leave open."""
