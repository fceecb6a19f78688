"""Finds the network in what a file holds: inside wrappers, under a prefix, beside a normalisation and other things."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .layouts import LAYOUTS, Layout, UnknownCheckpoint

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_MOST_WRAPPERS = 8
_CONTAINERS = {"module", "model", "net", "network", "basic_net", "backbone", "_orig_mod", "0", "1"}
"""What modules around a network call it: DataParallel, attackers, Sequential(normalisation, network), torch.compile."""
_NORMALIZERS = {"normalize", "normalizer", "normalization", "norm"}
_MEAN_AND_STD = {"mean": "std", "mu": "sigma", "new_mean": "new_std"}

BESIDE_MODEL = "beside the model in the file"
NO_TENSOR = "no tensor"
OTHER_NETWORK = "of another network, or of a copy of this one"
UNUSED = "made by the published code, and never used there"


@dataclass
class Found:
    """A network in a file, by the names of its layout."""

    layout: Layout
    prefix: str
    entry: str
    """Where in the file the state dict is: "" for the file itself, "checkpoint/state_dict" for wrappers."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    mean_and_std: tuple[Tensor, Tensor] | None = None
    unknown: list[str] = field(default_factory=list)
    """Full names of tensors beside the network that nothing explains."""
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Why -> full names of what is left out for that reason."""


def find_network(content: Any, entry: str | None) -> Found:
    """The one network of a known layout in `content`.

    entry: the name of the wrapper to look into, where there are several or it has an unusual one.

    Raises UnknownCheckpoint where there is none, or no telling which is meant.
    """
    dropped: dict[str, list[str]] = {}
    state, path = _unwrap(content, entry, dropped)
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    layout, prefix, others = _choose(tensors)
    found = Found(layout, prefix, "/".join(path), dropped=dropped)
    _drop(dropped, NO_TENSOR, (_text(name) for name in state if name not in tensors))
    branches = tuple(_branch(prefix, other) for other in others)
    beside = {}
    for name, tensor in tensors.items():
        if branches and name.startswith(branches):
            _drop(dropped, OTHER_NETWORK, [name])
        elif not name.startswith(prefix) or name.removeprefix(prefix) in _names_of_normalization():
            beside[name] = tensor
        elif layout.unused and name.startswith(prefix + layout.unused):
            _drop(dropped, UNUSED, [name])
        else:
            found.tensors[name.removeprefix(prefix)] = tensor
    _take_normalization(found, beside)
    return found


def _unwrap(content: Any, entry: str | None, dropped: dict[str, list[str]]) -> tuple[Mapping[Any, Any], list[str]]:
    """The state dict inside wrappers, and their names."""
    path: list[str] = []
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(content, Mapping):
            what = f"in {'/'.join(path)!r} " if path else ""
            raise UnknownCheckpoint(f"holds {what}a {type(content).__name__}, and no state dict")
        if entry is not None and isinstance(content.get(entry), Mapping):
            name, entry = entry, None
        elif entry is None and _stems(content):
            return content, path
        else:
            name = _wrapper(content, entry)
        _drop(dropped, BESIDE_MODEL, ("/".join([*path, _text(other)]) for other in content if other != name))
        path.append(name)
        content = content[name]
    raise UnknownCheckpoint(f"wraps its state dict more than {_MOST_WRAPPERS} times")


def _wrapper(content: Mapping[Any, Any], entry: str | None) -> str:
    names = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
    if len(names) == 1:
        return names[0]
    dicts = names or [_text(name) for name, value in content.items() if isinstance(value, Mapping)]
    if entry is not None:
        raise UnknownCheckpoint(f"has no entry {entry!r} that is a dict; those that are: {_listed(dicts)}")
    if dicts:
        raise UnknownCheckpoint(f"does not tell which of its entries is the model: {_listed(dicts)}. Give entry")
    tensors = [_text(name) for name, value in content.items() if isinstance(value, Tensor)]
    known = ", ".join(layout.name for layout in LAYOUTS.values())
    raise UnknownCheckpoint(f"holds no model of a known layout ({known}); its tensors: {_listed(tensors)}")


def _stems(state: Mapping[Any, Any]) -> list[tuple[Layout, str]]:
    """Every network in a state dict: its layout and its prefix."""
    return [
        (layout, name.removesuffix(layout.stem))
        for name in state
        if isinstance(name, str)
        for layout in LAYOUTS.values()
        if name == layout.stem or name.endswith("." + layout.stem)
    ]


def _choose(tensors: Mapping[str, Tensor]) -> tuple[Layout, str, list[str]]:
    """The layout and prefix of the network under a usual prefix; the prefixes of the others."""
    networks = _stems(tensors)
    usual = [(layout, prefix) for layout, prefix in networks if set(prefix.split(".")[:-1]) <= _CONTAINERS]
    if len(usual) == 1:
        return *usual[0], [prefix for _, prefix in networks if prefix != usual[0][1]]
    if not networks:
        raise UnknownCheckpoint("holds something else than tensors in its state dict")
    prefixes = _listed([prefix for _, prefix in usual or networks])
    if usual:
        raise UnknownCheckpoint(f"holds several networks, under the prefixes {prefixes}: keep one of them in the file")
    raise UnknownCheckpoint(
        f"holds a network under the prefix {prefixes}, which is not of the usual ones "
        f"({', '.join(sorted(_CONTAINERS))}): take it off the names"
    )


def _branch(prefix: str, other: str) -> str:
    """The prefix of all that belongs to the other network: "module.attacker." for "module." + "attacker.model."."""
    branch = ""
    for segment in other.split(".")[:-1]:
        branch += segment + "."
        if not prefix.startswith(branch):
            break
    return branch


def _names_of_normalization() -> set[str]:
    """The names that a normalisation has where it is a part of the network itself."""
    own = {name for pair in _MEAN_AND_STD.items() for name in pair}
    return own | {f"{module}.{name}" for module in _NORMALIZERS for name in own}


def _take_normalization(found: Found, beside: Mapping[str, Tensor]) -> None:
    pairs = []
    for name in beside:
        module, _, leaf = name.rpartition(".")
        std = name.removesuffix(leaf) + _MEAN_AND_STD.get(leaf, "")
        segments = set(module.split(".")) if module else set()
        if leaf in _MEAN_AND_STD and std in beside and segments <= _CONTAINERS | _NORMALIZERS:
            pairs.append((name, std))
    if len(pairs) > 1:
        raise UnknownCheckpoint(f"holds several normalisations: {_listed([mean for mean, _ in pairs])}")
    for mean, std in pairs:
        found.mean_and_std = (beside[mean], beside[std])
    found.unknown = [name for name in beside if not any(name in pair for pair in pairs)]


def _drop(dropped: dict[str, list[str]], reason: str, names: Iterable[str]) -> None:
    for name in names:
        dropped.setdefault(reason, []).append(name)


def _text(name: object) -> str:
    return name if isinstance(name, str) else repr(name)


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return (shown or "none") + (f" and {len(names) - 5} more" if len(names) > 5 else "")
