"""``adt-fast distribution``"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .._runs.folder import maximizer_of
from .._runs.trained_model import TrainedModel
from .._settings.arguments import Integer, Number, argument, default_is
from .._settings.method_options import METHOD_OPTIONS
from .._support.checks import check_choice, check_int
from ..analysis import DistributionPicture, learned_distribution, sweep_methods
from ..attacks import EXP, EXPAM
from ..config import TrainedModelConfig
from ..data import class_names
from ..evaluation.table import aligned
from ..input_gradient import FLOAT32
from ..methods import create_method, method_spec
from ..noise import NoiseStream
from ._analysis import Output, check_linf, chosen_images
from .command import begun

_OPTIONS = ("steps", "samples", "step_size", "entropy_weight", "recipe")


def _trained_with(default: str) -> Any:
    return default_is(f"the one of its training, or {default}")


@dataclass(frozen=True, kw_only=True)
class Distribution(Output, TrainedModelConfig):
    """Show what ADT learns: the distributions of perturbations for test images, beside PGD's point."""

    image: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INDEX ...")] = (0,)
    """Which test images, counted from 0."""

    attack: Annotated[str | None, argument(str, "exp|exp-am"), default_is("exp-am if the run has its generator")] = None
    """What gives the distributions: EXP, or the generator that the run trained."""

    steps: Annotated[int | None, Integer, _trained_with("7")] = None
    """Steps of EXP, T."""

    samples: Annotated[int | None, Integer, _trained_with("5")] = None
    """k, Monte Carlo samples for each gradient of EXP."""

    step_size: Annotated[float | None, Number, _trained_with("0.3")] = None
    """Size of a step of EXP on (mu, rho)."""

    entropy_weight: Annotated[float | None, Number, _trained_with("0.01")] = None
    """Lambda of EXP, the weight of the distribution's entropy, in nats, beside the loss."""

    recipe: Annotated[str | None, argument(str, "published|paper"), _trained_with("published")] = None
    """Where the paper and its published code disagree, whom EXP follows; see adt-fast train."""

    tried: Annotated[int, Integer] = 1000
    """Samples of each distribution on which the model is tried."""

    shown: Annotated[int, Integer] = 3
    """How many of them the figure shows."""

    def __call__(self) -> None:
        self.check_output()
        trained = TrainedModel(self)
        check_linf(trained)
        images, labels = chosen_images(trained, self.image)
        check_int("tried", self.tried, 1, 2**24)
        check_int("shown", self.shown, 1, self.tried + 1)
        attack = self._attack(trained)
        print(f"{trained.headline}\n{_described(attack)}", flush=True)
        with begun():
            result = learned_distribution(
                attack, images, labels, samples=self.tried, shown=self.shown, batch_size=self.batch_size,
                class_names=class_names(trained.dataset), seed=self.seed,
            )  # fmt: skip
            print(f"\n{aligned(self._rows(result))}")
            self.save(result, "distribution")

    def _attack(self, trained: TrainedModel) -> EXP | EXPAM:
        """What gives the distributions, with the options of its training."""
        recorded = trained.trained_with
        method: str = recorded.get("method") or "adt-exp"
        own = method_spec(method) if method in sweep_methods() else None
        generator = maximizer_of(trained.config.run) if own is not None and own.joint is not None else None
        attack = self.attack or ("exp" if generator is None else "exp-am")
        check_choice("attack", attack, ("exp", "exp-am"))
        given = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) is not None}
        if attack == "exp-am":
            if generator is None:
                raise ValueError(f"attack must be exp for {trained.config.run}, beside which there is no generator of "
                                 "explicit distributions that was trained with it")
            if given:
                raise ValueError(f"{next(iter(given))} must not be given with exp-am, whose generator was trained with "
                                 "options of its own")
        if own is None or (own.joint is None) != (attack == "exp"):
            method, recorded = "adt-exp", {}
        options = {name: recorded[name] for name in METHOD_OPTIONS if recorded.get(name) is not None} | given
        made = create_method(
            method, trained.model, epsilon=trained.epsilon, image_shape=trained.data.image_shape,
            noise=NoiseStream(self.seed), engine=FLOAT32, **options,
        )  # fmt: skip
        if made.joint is not None:
            assert generator is not None  # otherwise the attack is exp
            made.joint.load(generator)
        assert isinstance(made.maximizer, (EXP, EXPAM))
        return made.maximizer

    def _rows(self, result: DistributionPicture) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("image", "class", "natural", "PGD-20", "samples wrong", "their mean", "nats per element")
        ]
        for place, index in enumerate(self.image):
            natural, pgd, mean = (float(of[place]) for of in (
                result.natural_probabilities, result.pgd_probabilities, result.sample_probabilities
            ))  # fmt: skip
            rows.append((
                str(index), result.class_name(int(result.labels[place])), f"{natural:.3f}", f"{pgd:.3f}",
                f"{float(result.misclassified[place]):.1%}", f"{mean:.3f}", f"{float(result.entropies[place]):.3f}",
            ))  # fmt: skip
        return rows


def _described(attack: EXP | EXPAM) -> str:
    if isinstance(attack, EXPAM):
        return "distributions by EXP-AM, with the run's generator"
    return (f"distributions by EXP: {attack.steps} steps of {attack.step_size:g}, {attack.samples} samples for each, "
            f"lambda {attack.entropy_weight:g}")
