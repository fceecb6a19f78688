"""What lambda does to robustness and to the distributions' entropy (paper, Section 5.4 and Figure 3)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._runs.folder import RunFolder
from .._support.atomic_file import atomic_file
from .._support.checks import check_finite, check_int
from ..attacks import EXP, EXPAM, PGD
from ..config import PLACES, TrainConfig
from ..evaluation import evaluate_accuracy
from ..experiment import TrainingRun
from ..input_gradient import FLOAT32
from ..methods import create_method, exp_am, method_names, method_spec
from ..noise import NoiseStream
from . import _figures
from .entropy import distribution_entropy
from .result import AnalysisResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTROPY_WEIGHTS = (0.0, 0.001, 0.01, 0.1, 1.0)
"""The paper's lambdas."""


@dataclass(frozen=True)
class EntropyPoint:
    """What one lambda came to."""

    entropy_weight: float
    """Lambda."""
    natural: float
    """Accuracy, from 0 to 1."""
    robust: float
    """Accuracy under PGD-20, from 0 to 1."""
    entropy_per_element: float
    """Nats, the mean over the test images."""
    standard_error: float
    """Of that mean, by its Monte Carlo samples."""


@dataclass(frozen=True)
class EntropySweep(AnalysisResult):
    """What training with each lambda comes to."""

    method: str
    """Which was trained."""
    points: tuple[EntropyPoint, ...]
    """In ascending order of lambda."""
    epsilon: float
    """Radius of the L-infinity ball, in the images' units."""
    samples: int
    """Monte Carlo samples of the entropy, for each image."""

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return {**super().to_dict(), "points": [asdict(point) for point in self.points]}

    def table(self) -> list[tuple[Any, ...]]:
        """One row a lambda."""
        return [tuple(asdict(self.points[0])), *(tuple(asdict(point).values()) for point in self.points)]

    def draw(self, figure: Figure) -> None:
        """Accuracies above, entropy below, over the lambdas in equal distances."""
        figure.set_size_inches(_figures.COLUMN_WIDTH, 3.4)
        accuracy, entropy = figure.subplots(2, 1, sharex=True)
        places = range(len(self.points))
        for index, (label, values) in enumerate(
            (("natural", [point.natural for point in self.points]), ("PGD-20", [point.robust for point in self.points]))
        ):
            accuracy.plot(
                places, [100 * value for value in values], color=_figures.COLORS[index],
                marker=_figures.MARKERS[index], label=label,
            )  # fmt: skip
        accuracy.set(ylabel="accuracy (%)")
        accuracy.legend()
        entropy.errorbar(
            places, [point.entropy_per_element for point in self.points],
            yerr=[2 * point.standard_error for point in self.points], color=_figures.COLORS[2],
            marker=_figures.MARKERS[2], capsize=2,
        )  # fmt: skip
        entropy.axhline(math.log(2 * self.epsilon), color="black", linestyle=":", label="uniform distribution")
        entropy.set(xlabel="entropy weight $\\lambda$", ylabel="entropy (nats per element)")
        entropy.set_xticks(places, [f"{point.entropy_weight:g}" for point in self.points])
        entropy.legend()


def sweep_methods() -> tuple[str, ...]:
    """The methods whose explicit distributions have an entropy and a lambda."""
    return tuple(name for name in method_names() if method_spec(name).maximizer in (EXP, exp_am))


def entropy_sweep(
    config: TrainConfig,
    output: str | os.PathLike[str],
    *,
    entropy_weights: Sequence[float] = ENTROPY_WEIGHTS,
    samples: int = 100,
    report: Callable[[EntropyPoint], None] | None = None,
) -> EntropySweep:
    """Trains a method with each lambda, and measures natural and PGD-20 accuracy and the entropy on the test images.

    Each lambda's numbers go to ``point-LAMBDA.json`` in the folder when they are complete; a sweep that was interrupted
    continues with those that are missing. The runs are in ``runs`` there.

    Args:
        config: how to train; its method is one of :func:`sweep_methods`, and its own lambda and output are not used.
        output: the folder; made if missing.
        entropy_weights: lambdas, finite, no two the same, at least one. Default: the paper's.
        samples: Monte Carlo samples of each entropy, >= 2.
        report: called with each point, those that were there already among them.

    Raises:
        TypeError, ValueError: for a bad argument, by name, or if the folder holds points of other settings.
        OSError, ImportError: see :class:`adt_fast.experiment.TrainingRun`.
        FloatingPointError: if a training fails.
    """
    if config.method not in sweep_methods():
        raise ValueError(f"method must be one whose distributions are explicit, {', '.join(sweep_methods())}, got "
                         f"{config.method!r}")
    for weight in entropy_weights:
        check_finite("entropy_weights", weight)
    if not entropy_weights or len(set(entropy_weights)) < len(entropy_weights):
        raise ValueError(f"entropy_weights must be one or more different numbers, got {list(entropy_weights)}")
    check_int("samples", samples, 2, 2**24)
    output = Path(output)
    configs = [replace(config, entropy_weight=float(weight)) for weight in sorted(entropy_weights)]
    resolved = [one.resolved() for one in configs]
    settings = [_settings(one, samples) for one in resolved]
    for its_settings in settings:  # all of them before the first training
        _cached(output, its_settings)
    points = []
    for one, its_settings in zip(configs, settings):
        point = _cached(output, its_settings)
        if point is None:
            point = _train_and_measure(one, output, samples)
            with atomic_file(_point_path(output, its_settings)) as file:
                file.write(json.dumps({"settings": its_settings, "point": asdict(point)}, indent=1).encode())
        points.append(point)
        if report is not None:
            report(point)
    return EntropySweep(config.method, tuple(points), resolved[0].epsilon, samples)


def _train_and_measure(config: TrainConfig, output: Path, samples: int) -> EntropyPoint:
    # Named by time: what an interrupted run left does not stand in the way.
    folder = RunFolder.named_by_time(str(output / "runs" / f"{config.method}-{config.entropy_weight:g}"))
    with closing(TrainingRun(replace(config, output=folder.path))) as run:
        run.train()
        return _measured(run, samples)


def _measured(run: TrainingRun, samples: int) -> EntropyPoint:
    attack = PGD(run.trained_model, run.config.epsilon, steps=20, noise=NoiseStream(run.config.seed))
    assert run.config.entropy_weight is not None  # all of sweep_methods() have one
    entropy = distribution_entropy(maximizer_in_float32(run), run.test_data, samples=samples, seed=run.config.seed)
    return EntropyPoint(
        entropy_weight=run.config.entropy_weight,
        natural=float(evaluate_accuracy(run.trained_model, run.test_data, progress="natural")),
        robust=float(evaluate_accuracy(run.trained_model, run.test_data, attack, progress="PGD-20")),
        entropy_per_element=entropy.mean_per_element,
        standard_error=entropy.standard_error_per_element,
    )


def maximizer_in_float32(run: TrainingRun) -> EXP | EXPAM:
    """The run's maximizer on its trained model: networks as trained, an engine in float32, noise of its own."""
    trained, config = run.trainer.method, run.config
    again = create_method(
        config.method, run.trained_model, epsilon=config.epsilon, image_shape=run.test_data.image_shape,
        model_mode=config.model_mode, noise=NoiseStream(config.seed), engine=FLOAT32, **config.method_options(),
    )  # fmt: skip
    if trained.joint is not None and again.joint is not None:
        again.joint.load_state_dict(trained.joint.state_dict())
    assert isinstance(again.maximizer, (EXP, EXPAM))  # all of sweep_methods() have one
    return again.maximizer


def _settings(config: TrainConfig, samples: int) -> dict[str, Any]:
    """What a point depends on."""
    settings = {**config.as_dict(), "entropy_samples": samples}
    return {name: value for name, value in settings.items() if name not in PLACES}


def _point_path(output: Path, settings: dict[str, Any]) -> Path:
    return output / f"point-{settings['entropy_weight']:g}.json"


def _cached(output: Path, settings: dict[str, Any]) -> EntropyPoint | None:
    """The point that the folder has for these settings; None if there is none for this lambda."""
    path = _point_path(output, settings)
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text())
        theirs, point = document["settings"], EntropyPoint(**document["point"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a point of a sweep") from None
    differing = sorted(name for name in theirs.keys() | settings if theirs.get(name) != settings.get(name))
    if differing:
        raise ValueError(f"output must be a folder of the same sweep, but {path} was made with other settings: "
                         f"{', '.join(f'{name}={theirs.get(name)}' for name in differing)}")
    return point
