"""The state of a trainer, as one nested dict, and whether such a dict fits a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from ._checks import shown
from ._state_checks import alike, check_keys, check_network_state, check_optimizer_state, check_random_state
from .fit_progress import FitProgress
from .model_state import unwrap
from .noise import NoiseStream

if TYPE_CHECKING:
    from .trainer import Trainer


def trainer_state(trainer: Trainer, fit: dict[str, Any] | None) -> dict[str, Any]:
    """What :meth:`Trainer.state_dict` gives. fit: where a fit stands."""
    maximizer, joint = trainer.method.maximizer, trainer.method.joint
    state = {
        "model": unwrap(trainer.model).state_dict(),
        "optimizer": {"kind": type(trainer.optimizer).__name__, "state": trainer.optimizer.state_dict()},
        "joint": None if joint is None else joint.state_dict(),
        "maximizer": None,
        "fit": fit,
    }
    if maximizer is not None:
        engine, noise = maximizer.input_gradient.state_dict(), maximizer.noise.state_dict()
        state["maximizer"] = {"kind": type(maximizer).__name__, "noise": noise, "engine": engine}
    return state


def check_trainer_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError where it does not fit; of the maximizer's engine only whether there is one."""
    maximizer, joint = trainer.method.maximizer, trainer.method.joint
    check_keys("state", state, ("model", "optimizer", "joint", "maximizer", "fit"))
    check_network_state("model", unwrap(trainer.model).state_dict(), state["model"])
    check_keys("state of the optimizer", state["optimizer"], ("kind", "state"))
    _check_kind("optimizer", trainer.optimizer, state["optimizer"])
    check_optimizer_state("model", trainer.optimizer, state["optimizer"]["state"])
    for part, mine in (("maximizer", maximizer), ("joint", joint)):
        if (mine is None) != (state[part] is None):
            raise ValueError(f"state must be of the same method, but it has {'a' if mine is None else 'no'} {part} "
                             f"part and this one has {'none' if mine is None else 'one'}")
    if maximizer is not None:
        check_keys("state of the maximizer", state["maximizer"], ("kind", "noise", "engine"))
        _check_kind("maximizer", maximizer, state["maximizer"])
        NoiseStream(0).load_state_dict(state["maximizer"]["noise"])
    if joint is not None:
        joint.check_state_dict(state["joint"])
    if state["fit"] is not None:
        check_keys("state of the fit", state["fit"], ("progress", "scheduler", "random"))
        FitProgress.from_state(state["fit"]["progress"])
        check_random_state("random part of the fit's state", state["fit"]["random"])
        scheduler = state["fit"]["scheduler"]
        if not isinstance(scheduler, (Mapping, type(None))):
            raise ValueError(f"state of the scheduler must be a dict or None, got {type(scheduler).__name__}")


def check_scheduler_state(scheduler: LRScheduler, state: object) -> None:
    """Raises ValueError where it is not of a scheduler of that kind, whose attributes it would become."""
    mine = scheduler.state_dict()
    check_keys("state of the scheduler", state, mine)
    for name, value in mine.items():
        if not alike(value, state[name]):
            raise ValueError(f"state of the scheduler has {name}={shown(state[name])}, and this one {shown(value)}, "
                             "another kind of value")


def _check_kind(what: str, mine: object, state: Mapping[str, Any]) -> None:
    if not isinstance(state["kind"], str) or state["kind"] != type(mine).__name__:
        raise ValueError(f"state must be of a {type(mine).__name__} as {what}, got that of a {shown(state['kind'])}")
