"""Robust accuracy: several attacks, and what withstands them all (paper, Section 5.1)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import __version__
from .._support.arithmetic import float32_arithmetic
from .._support.batch_check import pair
from .._support.checks import check_ball, check_bool, check_choice, check_int
from .._support.model_state import check_model, device_of, model_mode, unwrap
from .._support.random_state import kept_random_state
from ..attacks import Norm
from ..attacks._ball import confine
from ..data import ImageData
from ..input_gradient import FLOAT32, EngineOptions
from ..noise import NoiseStream
from ..processes import Processes
from .accuracy import is_right
from .batches import Batches, checked_batches, in_batches
from .named_attacks import AttackLike, create_attack, split_attack_names
from .outcomes import NOT_ATTACKED, RIGHT, WRONG, Outcomes, check_state, surviving
from .report import RobustReport
from .reviewer import in_train_mode, suspicious_model, suspicious_results
from .settings import attack_settings, innermost, model_summary

_POOL = 1000
"""How many images FeaAttack may take its targets from."""


def evaluate(
    model: nn.Module,
    data: Batches,
    attacks: str | Iterable[str] | Mapping[str, str | AttackLike] = "paper",
    *,
    epsilon: float = 8 / 255,
    norm: Norm = "linf",
    batch_size: int = 256,
    seed: int = 0,
    survivors_only: bool = False,
    source: nn.Module | None = None,
    engine: EngineOptions = FLOAT32,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    examples: int = 8,
    progress: bool | None = False,
    processes: Processes | None = None,
) -> RobustReport:
    """The accuracy of a classifier under several attacks, and A_rob: of the images that withstand them all.

        A_rob = 1/N sum_i min_a I(argmax f(a(x_i)) = y_i),

    the minimum over the attacks and the natural image: an image that is misclassified as it is counts as not robust,
    under every attack, and is not attacked. The model runs in eval mode, in its own precision (autocast is off, and so
    is TF32) whatever the caller's settings and the attack's ``engine``, and is as it was afterwards. Every batch has
    random numbers of its own for every attack, so the outcome depends neither on the other attacks nor on where an
    evaluation was stopped and resumed.

    Args:
        model: images ``[B, C, H, W]`` in [0, 1] -> logits ``[B, num_classes]``; it normalises inside.
        data: an :class:`adt_fast.data.ImageData`, or batches (images, labels) in an order that stays the same; they
            move to the model's device.
        attacks: names as :func:`create_attack` takes them, in a list or with commas between them, ``"paper"`` for those
            of the paper's Table 1; or attacks by name, each (images, labels) -> adversarial images.
        epsilon: radius of the ball, > 0: of the attacks given as names, and what all are held to.
        norm: of the ball, ``"linf"`` or ``"l2"``.
        batch_size: for an ``ImageData``; other data come in batches of their own.
        seed: of the random numbers, >= 0.
        survivors_only: attack only what withstood the attacks before. A_rob is the same but for other random numbers,
            and comes sooner; an attack's own accuracy is not known then.
        source: the model on which ``transfer-`` attacks are made.
        engine: how gradients are computed, see :class:`adt_fast.input_gradient.EngineOptions`. Default: in float32.
        state: a file in which the outcomes are kept as it goes on.
        resume: go on from that file, if it is there; otherwise it must not be there.
        examples: how many images, of the first batch, the report shows with their perturbations, >= 0.
        progress: a progress bar with the accuracies so far: True, False, or None where stderr is a terminal. Of several
            processes only the first shows one.
        processes: those that share the work, a batch each in turn: all call this with the same model and data, and all
            get the whole report, which is that of one process. Default: this process alone.

    Raises:
        TypeError, ValueError: for a bad argument, image or label, by name; for an attack that leaves the ball; or if
            the state is of another evaluation.
        ImportError: if an attack needs a package that is not installed.
        FloatingPointError: if a gradient that an attack follows is not finite.
    """
    check_model(model)
    check_ball(epsilon, 0.0, 1.0)
    check_choice("norm", norm, get_args(Norm))
    for name, value, lowest in (("batch_size", batch_size, 1), ("seed", seed, 0), ("examples", examples, 0)):
        check_int(name, value, lowest, 2**31)
    check_bool("survivors_only", survivors_only)
    check_bool("resume", resume)
    if source is not None and not isinstance(source, nn.Module):
        raise TypeError(f"source must be a torch.nn.Module or None, got {type(source).__name__}")
    check_state(state, resume)
    if not isinstance(processes, (Processes, type(None))):
        raise TypeError(f"processes must be adt_fast.processes.Processes or None, got {type(processes).__name__}")
    processes = Processes.alone() if processes is None else processes
    if processes.size > 1 and state is not None:
        raise ValueError("state must be None where several processes share an evaluation")
    batches = _Peeked(in_batches(model, data, batch_size))
    pool = in_batches(model, data.subset(_POOL), _POOL) if isinstance(data, ImageData) else [batches.first]
    given: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "source": source, "engine": engine, "seed": seed}
    # One that is not drawn from PyTorch's generator; every batch has its own.
    given["noise"] = NoiseStream(seed, device_of(model) or "cpu")
    given["pool"] = tuple(part.to(device_of(model)) for part in pair("data", next(iter(pool))))
    by_name = _resolved(model, attacks, given)
    settings = {
        "model": model_summary(model),
        "data": {"name": data.name, "images": len(data)} if isinstance(data, ImageData) else {},
        "attacks": {name: attack_settings(attack, model) for name, attack in by_name.items()},
        "epsilon": float(epsilon),
        "norm": norm,
        "batch_size": batch_size if isinstance(data, ImageData) else None,
        "seed": seed,
        "survivors_only": survivors_only,
        "engine": repr(engine),
        "device": (device_of(model) or torch.device("cpu")).type,
        "examples": examples,
        "versions": {"adt_fast": __version__, "torch": str(torch.__version__)},
    }
    outcomes = Outcomes(state, settings)
    if resume:
        outcomes.resume()
    run = _Evaluation(model, by_name, outcomes, settings, processes)
    return run(batches, progress)


class _Evaluation:
    """One pass over the data: all attacks on a batch, then the next."""

    def __init__(
        self,
        model: nn.Module,
        attacks: dict[str, AttackLike],
        outcomes: Outcomes,
        settings: dict[str, Any],
        processes: Processes,
    ) -> None:
        self.model = unwrap(model)
        self.was_training = in_train_mode(model)
        self.attacks = attacks
        self.outcomes = outcomes
        self.settings = settings
        self.processes = processes
        self.warnings: list[str] = []

    def __call__(self, batches: Iterable[tuple[Tensor, Tensor]], progress: bool | None) -> RobustReport:
        device = device_of(self.model) or torch.device("cpu")
        # tqdm: None is a bar where stderr is a terminal.
        disable = True if not self.processes.is_first else None if progress is None else not progress
        bar = tqdm(batches, unit="batch", leave=False, disable=disable)
        with ExitStack() as stack:
            stack.enter_context(bar)
            stack.enter_context(model_mode(self.model, "eval"))
            stack.enter_context(float32_arithmetic(device))
            stack.enter_context(kept_random_state(device))  # a model may draw
            stack.callback(self.outcomes.save, force=True)  # whatever ends it
            for index, (images, labels) in enumerate(checked_batches(self.model, bar)):
                if index % self.processes.size != self.processes.rank:
                    continue
                if index == 0:
                    with self._random_numbers("reviewer", None, index, device):
                        self.warnings += suspicious_model(self.model, images, labels, was_training=self.was_training)
                self._batch(index, images, labels, bar)
            self.outcomes.check_no_more_than(index + 1)
            if self.processes.size > 1:
                self.outcomes.share(self.processes)
                self.warnings = self.processes.from_first(self.warnings)  # of the first batch, which it has
        return self._report()

    def _batch(self, index: int, images: Tensor, labels: Tensor, bar: tqdm[Any]) -> None:
        outcomes = self.outcomes.batch(index)
        self.outcomes.check_same_images(index, images, labels)
        if "natural" not in outcomes:
            with self._random_numbers("natural", None, index, images.device):
                outcomes["natural"] = self._right(images, labels).to(torch.int8).cpu()
        if index == 0:
            self._choose_examples(images, outcomes["natural"])
        for name, attack in self.attacks.items():
            if name not in outcomes:
                bar.set_description(name)
                outcomes[name] = self._outcome(name, attack, index, images, labels)
                self.outcomes.save()
            if not bar.disable:
                bar.set_postfix_str(self._accuracies_so_far())

    def _outcome(self, name: str, attack: AttackLike, index: int, images: Tensor, labels: Tensor) -> Tensor:
        outcomes = self.outcomes.batch(index)
        natural = outcomes["natural"]
        wanted = surviving(outcomes, self.attacks if self.settings["survivors_only"] else ())
        outcome = torch.where(natural == RIGHT, NOT_ATTACKED, WRONG).to(torch.int8)
        chosen = wanted.nonzero().squeeze(1)
        x_adv = images
        if len(chosen):
            here = chosen.to(images.device)
            with self._random_numbers(name, attack, index, images.device):
                found = self._attacked(name, attack, images[here], labels[here])
                outcome[chosen] = self._right(found, labels[here]).to(torch.int8).cpu()
            x_adv = images.clone()
            x_adv[here] = found
        if index == 0:
            self.outcomes.examples[name] = x_adv[self._examples_of(natural).to(x_adv.device)].cpu()
        return outcome

    def _random_numbers(
        self, name: str, attack: AttackLike | None, index: int, device: torch.device
    ) -> AbstractContextManager[None]:
        """Those of what has that name, for a batch."""
        return _random_numbers(attack, _seed_of(self.settings["seed"], name, index), device)

    def _attacked(self, name: str, attack: AttackLike, images: Tensor, labels: Tensor) -> Tensor:
        x_adv = attack(images.clone(), labels)  # what it may write to is not what the ball is around
        self._check_inside(name, x_adv, images)
        return x_adv.detach()

    def _check_inside(self, name: str, x_adv: Tensor, images: Tensor) -> None:
        """Raises ValueError where an attack did something else than perturb within the ball."""
        wanted, given = _described(images), _described(x_adv)
        if given != wanted:
            raise ValueError(f"attack {name!r} must give images like its own, {wanted}, got {given}")
        ball = {"epsilon": self.settings["epsilon"] * (1 + 1e-5), "lower": 0.0, "upper": 1.0}
        x_adv = x_adv.detach()
        inside = confine(x_adv.clone().unsqueeze(0), images, norm=self.settings["norm"], **ball)[0]
        if not bool(((x_adv - inside).abs() <= 1e-6).all()):  # a NaN fails every comparison
            raise ValueError(f"attack {name!r} left the ball of radius {self.settings['epsilon']:g} "
                             f"({self.settings['norm']}) or the data bounds [0, 1], or gave a NaN")

    @torch.no_grad()
    def _right(self, images: Tensor, labels: Tensor) -> Tensor:
        with model_mode(self.model, "eval"):  # whatever mode an attack has left it in
            logits = self.model(images)
        return is_right(logits, labels)

    def _examples_of(self, natural: Tensor) -> Tensor:
        """The first images of the first batch that are right."""
        return (natural == RIGHT).nonzero().squeeze(1)[: self.settings["examples"]]

    def _choose_examples(self, images: Tensor, natural: Tensor) -> None:
        chosen = self._examples_of(natural)
        self.outcomes.examples["natural"] = images[chosen.to(images.device)].cpu()

    def _accuracies_so_far(self) -> str:
        parts = []
        for name in ("natural", *self.attacks):
            outcome = self.outcomes.joined(name)
            if len(outcome):
                parts.append(f"{name} {float((outcome == RIGHT).double().mean()):.1%}")
        return ", ".join(parts)

    def _report(self) -> RobustReport:
        labels = self.outcomes.joined("labels")
        natural = self.outcomes.joined("natural") == RIGHT
        outcomes = {name: self.outcomes.joined(name) for name in self.attacks}
        report = RobustReport(
            settings=self.settings, labels=labels, natural=natural, outcomes=outcomes,
            examples=dict(self.outcomes.examples), warnings=(),
        )  # fmt: skip
        return report.with_warnings(*self.warnings, *suspicious_results(report, self.attacks))


class _Peeked:
    """Batches of which the first has been looked at; to be iterated over once."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._rest = iter(batches)
        self._count = len(batches) if isinstance(batches, Sized) else None
        try:
            self.first = next(self._rest)
        except StopIteration:
            raise ValueError("data must have at least one image, it is empty") from None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.first
        yield from self._rest

    def __len__(self) -> int:
        if self._count is None:
            raise TypeError("how many batches there are is not known")
        return self._count


def _resolved(model: nn.Module, attacks: Any, given: dict[str, Any]) -> dict[str, AttackLike]:
    """The attacks by name, all made."""
    if isinstance(attacks, str):
        attacks = split_attack_names(attacks)
    if not isinstance(attacks, Iterable):
        raise TypeError(f"attacks must be names or a mapping from names to attacks, got {type(attacks).__name__}")
    if not isinstance(attacks, Mapping):
        names = list(attacks)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("attacks must be names, or a mapping from names to attacks, which have no name themselves")
        attacks = {name: name for name in dict.fromkeys(one for name in names for one in split_attack_names(name))}
    if not attacks:
        raise ValueError("attacks must have at least one attack, got none")
    if unnamed := [name for name in attacks if not isinstance(name, str)]:
        raise TypeError(f"attacks must have names that are texts, got {unnamed[0]!r}")
    if reserved := {"natural", "labels", "checksum", "A_rob"} & set(attacks):
        raise ValueError(f"attacks must not be called {', '.join(sorted(reserved))}")
    resolved = {}
    for name, attack in attacks.items():
        resolved[name] = create_attack(attack, model, **given) if isinstance(attack, str) else attack
        if not callable(resolved[name]):
            raise TypeError(f"attacks[{name!r}] must be callable, (images, labels) -> images, "
                            f"got {type(attack).__name__}")
        if getattr(innermost(resolved[name]), "target", None) == "given":
            raise ValueError(f"attacks[{name!r}] must not have target='given': what it is given are the true classes, "
                             "and it would lead towards them")
    return resolved


def _described(images: Any) -> str:
    """Shape, dtype and device; of what is no tensor, the type."""
    if not isinstance(images, Tensor):
        return type(images).__name__
    return f"{list(images.shape)}, {images.dtype}, on {images.device}"


def _seed_of(seed: int, name: str, batch: int) -> int:
    """A seed of its own for every attack and batch."""
    text = f"{seed}/{name}/{batch}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 2


@contextmanager
def _random_numbers(attack: AttackLike | None, seed: int, device: torch.device) -> Iterator[None]:
    """An attack's random numbers, from its noise stream or PyTorch's generators, start at a seed; then as before."""
    owner: Any = attack
    own = getattr(attack, "noise", None)
    with kept_random_state(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices that are not put back
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        if isinstance(own, NoiseStream):
            owner.noise = NoiseStream(seed, device)
        try:
            yield
        finally:
            if isinstance(own, NoiseStream):
                owner.noise = own
