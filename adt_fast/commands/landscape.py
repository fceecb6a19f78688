"""``adt-fast landscape``"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .._runs.trained_model import TrainedModel
from .._settings.arguments import Integer, Number, default_is
from ..analysis import loss_landscape
from ..analysis.landscape import Direction
from ..config import TrainedModelConfig
from ..evaluation.table import aligned
from ._analysis import Output, check_linf, chosen_images
from .command import begun


@dataclass(frozen=True, kw_only=True)
class Landscape(Output, TrainedModelConfig):
    """Plot the loss around test images, along the gradient and a random direction (the paper's Figure 4)."""

    image: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INDEX ...")] = (0,)
    """Which test images, counted from 0."""

    radius: Annotated[float | None, Number, default_is("10 epsilon")] = None
    """How far to go in each direction, in units where images are in [0, 1]."""

    steps: Annotated[int, Integer] = 41
    """Points in each direction, odd."""

    direction: Direction = "sign"
    """The gradient's sign, which is where an L-infinity attack goes, or the gradient itself."""

    clamp: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Clamp the points to [0, 1]; otherwise the plane itself is shown, parts of which are no images."""

    def __call__(self) -> None:
        self.check_output()
        trained = TrainedModel(self)
        check_linf(trained)
        images, labels = chosen_images(trained, self.image)
        print(trained.headline, flush=True)
        with begun():
            result = loss_landscape(
                trained.model, images, labels, epsilon=trained.epsilon, radius=self.radius, steps=self.steps,
                direction=self.direction, bounds=(0.0, 1.0) if self.clamp else None, batch_size=self.batch_size,
                seed=self.seed,
            )  # fmt: skip
            rows = [("image", "class", "loss there", "highest within epsilon")]
            for index, label, at, highest in zip(self.image, labels, result.at_image, result.highest_in_ball):
                rows.append((str(index), str(int(label)), f"{at:.4g}", f"{highest:.4g}"))
            print("\n" + aligned(rows))
            self.save(result, "landscape")
