"""The state of a trainer, as one nested dict, and whether such a dict fits a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from .._support.checks import shown
from .._support.model_state import unwrap
from .._support.state_checks import alike, check_keys, check_network_state, check_optimizer_state, check_random_state
from ..noise import NoiseStream
from .progress import FitProgress

if TYPE_CHECKING:
    from ..trainer import Trainer


def trainer_state(
    trainer: Trainer, fit: dict[str, Any] | None, processes: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """What :meth:`Trainer.state_dict` gives.

    Args:
        fit: where a fit stands.
        processes: what each process has of its own; None where that is not known.
    """
    maximizer, joint, average = trainer.method.maximizer, trainer.method.joint, trainer.average
    state = {
        "model": unwrap(trainer.model).state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": {"kind": type(trainer.optimizer).__name__, "state": trainer.optimizer.state_dict()},
        "joint": None if joint is None else joint.state_dict(),
        "maximizer": None,
        "fit": fit,
        "processes": processes,
    }
    if maximizer is not None:
        state["maximizer"] = {"kind": type(maximizer).__name__, "noise": maximizer.noise.state_dict()}
    return state


def check_trainer_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError where it does not fit; of the maximizer's engine only whether there is one."""
    parts = {"maximizer": trainer.method.maximizer, "joint": trainer.method.joint, "average": trainer.average}
    check_keys("state", state, ("model", "average", "optimizer", "joint", "maximizer", "fit", "processes"))
    check_network_state("model", unwrap(trainer.model).state_dict(), state["model"])
    check_keys("state of the optimizer", state["optimizer"], ("kind", "state"))
    _check_kind("optimizer", trainer.optimizer, state["optimizer"])
    check_optimizer_state("model", trainer.optimizer, state["optimizer"]["state"])
    for part, mine in parts.items():
        if (mine is None) != (state[part] is None):
            raise ValueError(f"state must be of the same settings, but it has {'a' if mine is None else 'no'} {part} "
                             f"part and this trainer has {'none' if mine is None else 'one'}")
    if trainer.method.maximizer is not None:
        check_keys("state of the maximizer", state["maximizer"], ("kind", "noise"))
        _check_kind("maximizer", trainer.method.maximizer, state["maximizer"])
        NoiseStream(0).load_state_dict(state["maximizer"]["noise"])
    if trainer.method.joint is not None:
        trainer.method.joint.check_state_dict(state["joint"])
    if trainer.average is not None:
        trainer.average.check_state_dict(state["average"])
    if state["fit"] is not None:
        check_keys("state of the fit", state["fit"], ("progress", "scheduler"))
        FitProgress.from_state(state["fit"]["progress"])
        scheduler = state["fit"]["scheduler"]
        if not isinstance(scheduler, (Mapping, type(None))):
            raise ValueError(f"state of the scheduler must be a dict or None, got {type(scheduler).__name__}")
    _check_processes(state["processes"])


def check_scheduler_state(scheduler: LRScheduler, state: Any) -> None:
    """Raises ValueError where it is not of a scheduler of that kind, whose attributes it would become."""
    mine = scheduler.state_dict()
    check_keys("state of the scheduler", state, mine)
    for name, value in mine.items():
        if not alike(value, state[name]):
            raise ValueError(f"state of the scheduler has {name}={shown(state[name])}, and this one {shown(value)}, "
                             "another kind of value")


def _check_processes(states: object) -> None:
    if not isinstance(states, list) or not states:
        raise ValueError("state must be that which the first process saved, with a list of what each has of its own, "
                         f"got {type(states).__name__}")
    for state in states:
        check_keys("state of a process", state, ("engine", "random", "random_at_start"))
        for name in ("random", "random_at_start"):
            if state[name] is not None:
                check_random_state(f"{name} of a process", state[name])


def _check_kind(what: str, mine: object, state: Mapping[str, Any]) -> None:
    kind = state["kind"] if isinstance(state["kind"], str) else shown(state["kind"])
    if kind != type(mine).__name__:
        raise ValueError(f"state must be of a {type(mine).__name__} as {what}, got that of a {kind[:200]}")
