"""``adt-fast curvature``"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .._runs.trained_model import TrainedModel
from .._settings.arguments import Integer, Number
from ..analysis import hessian_curvature
from ..analysis.curvature import Reduction, Solver
from ..config import TrainedModelConfig
from ._analysis import Output, as_batch
from .command import CommandFailed, begun


@dataclass(frozen=True, kw_only=True)
class Curvature(Output, TrainedModelConfig):
    """Measure how sharply the loss bends at test images, by the Hessian's dominant eigenvalue (Figure 4f)."""

    solver: Solver = "lanczos"
    """Lanczos, or power iteration, which is slow, to check it with."""

    iterations: Annotated[int, Integer] = 100
    """Hessian-vector products for each image, at most."""

    tolerance: Annotated[float, Number] = 1e-3
    """An image is done when the residual is below this times its eigenvalue."""

    reduction: Reduction = "example"
    """Whose curvature: of each image's own loss; or that divided by the batch size, as of the mean loss of a batch. The
    paper does not say which its numbers are of."""

    batch_size: Annotated[int, Integer] = 100
    """Images that go through the model at once; also what batch_mean divides by."""

    def __call__(self) -> None:
        self.check_output()
        trained = TrainedModel(self)
        images, labels = as_batch(trained.data, trained.device)
        print(trained.headline, flush=True)
        with begun():
            try:
                result = hessian_curvature(
                    trained.model, images, labels, solver=self.solver, iterations=self.iterations,
                    tolerance=self.tolerance, reduction=self.reduction, batch_size=self.batch_size, seed=self.seed,
                )  # fmt: skip
            except RuntimeError as error:  # a model that cannot be differentiated twice
                raise CommandFailed(str(error)) from error
            print(f"\ndominant eigenvalue  {result.mean:.4g} +- {result.std:.4g}, "
                  f"median {float(result.eigenvalues.median()):.4g}")
            if missing := int((~result.converged).sum()):
                print(f"{missing} of {len(images)} images have not converged; see their residuals, or give more "
                      "--iterations")
            self.save(result, "curvature")
