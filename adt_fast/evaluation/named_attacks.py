"""Attacks by name, as the paper's tables and the command line have them: ``pgd-20``, ``cw-30``, ``spsa-1024``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._support.option_text import parse_options
from .._support.suggest import unknown_name_message
from ..attacks import CW, EXP, FGSM, MIM, PGD, SPSA, AutoAttack, FeatureAttack, Norm, Transfer, exp_recipe
from ..input_gradient import FLOAT32, EngineOptions
from ..noise import NoiseStream

AttackLike = Callable[[Tensor, Tensor], Tensor]
"""(images [B, C, H, W], labels [B]) -> adversarial images [B, C, H, W]."""

PAPER = ("fgsm", "pgd-20", "pgd-100", "mim-20", "cw-30", "feaattack")
"""The attacks of the paper's Tables 1, 2, 7 and 8 (Section 5.2)."""

_TRANSFER = "transfer-"


@dataclass(frozen=True)
class _Kind:
    """An attack that has a name.

    Args:
        attack: its class.
        number: the option that a number behind the name gives; None for none.
        options: other options than the class's defaults.
        extra: what the class takes of what :func:`create_attack` is given.
    """

    attack: type
    number: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    extra: tuple[str, ...] = ("noise", "engine")


_STRONG_EXP = (
    ("steps", 20), ("samples", 10),  # as the paper attacks with it (Section 5.4)
    # Where a model is sure, its gradient is so small that any entropy, and Adam's 1e-8, outweigh it; and the paper's
    # step follows the fresh gradient. Of as many samples as it learned from, the worst counts.
    ("entropy_weight", 0.0), ("recipe", exp_recipe("published", accumulate=False, update="sign", outer_samples=10)),
)  # fmt: skip

_KINDS = {
    "fgsm": _Kind(FGSM),
    "pgd": _Kind(PGD, "steps"),
    "mim": _Kind(MIM, "steps"),
    "cw": _Kind(CW, "steps"),
    "feaattack": _Kind(FeatureAttack, "steps", extra=("noise", "engine", "pool")),
    "spsa": _Kind(SPSA, "samples"),
    "exp": _Kind(EXP, "steps", options=_STRONG_EXP),
    "autoattack": _Kind(AutoAttack, extra=("seed",)),
}


def attack_names() -> tuple[str, ...]:
    """The names :func:`create_attack` takes; N stands for a number."""
    names = (f"{name}-N" if kind.number else name for name, kind in _KINDS.items())
    return (*names, f"{_TRANSFER}NAME")


def split_attack_names(text: str) -> tuple[str, ...]:
    """The names in a text with commas between them, in which ``paper`` stands for :data:`PAPER`; one that comes twice
    once.

    Raises:
        ValueError: if one of them is empty.
    """
    names = [part.strip() for part in text.split(",")]
    if "" in names:
        raise ValueError(f"attacks must be names with commas between them, got {text!r}")
    unfolded = (one for name in names for one in (PAPER if name == "paper" else (name,)))
    return tuple(dict.fromkeys(unfolded))


def create_attack(
    name: str,
    model: nn.Module,
    epsilon: float = 8 / 255,
    *,
    norm: Norm = "linf",
    source: nn.Module | None = None,
    noise: NoiseStream | None = None,
    engine: EngineOptions = FLOAT32,
    pool: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> AttackLike:
    """An attack by its name.

    A name is ``fgsm``, ``pgd-N``, ``mim-N`` or ``cw-N`` of N steps, ``feaattack``, ``spsa-N`` of N samples, ``exp`` or
    ``exp-N``, ``autoattack``; or ``transfer-NAME``, for such an attack on another model. Without a number it is the
    class's default. Options of the class may follow: ``pgd-20:restarts=5:step_size=1/255``.

    Args:
        name: see above.
        model: the classifier.
        epsilon: radius of the ball, > 0.
        norm: of the ball; ``"l2"`` for the attacks that have it.
        source: the model that ``transfer-`` attacks are made on.
        noise, engine: see :class:`adt_fast.attacks.Attack`; of all but AutoAttack, which runs in float32.
        pool: of FeatureAttack, see :class:`adt_fast.attacks.FeatureAttack`.
        seed: of AutoAttack, where it is no option of the name.

    Raises:
        ValueError: if the name or an option is unknown or impossible, or ``source`` is missing.
        TypeError: if the name or the engine is of another type.
        ImportError: if the attack needs a package that is not installed.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    if not isinstance(engine, EngineOptions):
        raise TypeError(f"engine must be EngineOptions, got {type(engine).__name__}")
    shared: dict[str, Any] = {"noise": noise, "engine": engine, "pool": pool, "seed": seed}
    if name.startswith(_TRANSFER):
        if source is None:
            raise ValueError(f"source must be given for {name!r}: the model that its images are made on")
        inner = name.removeprefix(_TRANSFER)
        attack: Any = partial(create_attack, inner, norm=norm, **shared)
        return Transfer(source, attack, epsilon)
    stem, *texts = name.split(":")
    kind, options = _parse_name(stem)
    known = _options_of(kind.attack)
    given = parse_options("attack", texts, known)
    if stem not in _KINDS and kind.number in given:
        raise ValueError(f"{kind.number} is the number in {stem!r}, and must not be given as an option besides")
    options |= given
    if "norm" in known:
        options.setdefault("norm", norm)
    elif norm != "linf":
        raise ValueError(f"attack {stem!r} is of the L-infinity ball alone, and norm is {norm!r}")
    options = {key: shared[key] for key in kind.extra} | options
    try:
        return kind.attack(model, epsilon, **options)
    except TypeError as error:  # of what is not Python but a text, which has no types
        raise ValueError(f"{name}: {error}") from None


def _parse_name(stem: str) -> tuple[_Kind, dict[str, Any]]:
    if stem in _KINDS:
        return _KINDS[stem], dict(_KINDS[stem].options)
    match = re.fullmatch(r"(.+)-(\d+)", stem)
    kind = _KINDS.get(match[1]) if match else None
    if match is None or kind is None or kind.number is None:
        like_a_name = re.sub(r"-\d+$", "-N", stem)
        raise ValueError(unknown_name_message("attack", stem, attack_names(), compared=like_a_name))
    return kind, dict(kind.options) | {kind.number: int(match[2])}


def _options_of(attack: type) -> tuple[str, ...]:
    """The options that a name may set: those of the class and of what it inherits from."""
    names: dict[str, None] = {}
    ancestors: tuple[Any, ...] = attack.__mro__
    for ancestor in ancestors:
        for name, parameter in inspect.signature(ancestor.__init__).parameters.items():
            if parameter.kind == inspect.Parameter.KEYWORD_ONLY and name not in _GIVEN:
                names.setdefault(name)
    return tuple(names)


_GIVEN = ("noise", "engine", "pool", "loss", "lower", "upper", "model_mode", "check_finite")
"""What is no option of a name: the evaluation's own, or no text."""
