"""Where the paper and its published code disagree about ADT-EXP, as named options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .._checks import check_choice, check_finite, check_int, check_not_negative

EntropyReduction = Literal["mean", "sum"]
Objective = Literal["sum_of_batch_means", "mean_per_example"]
Update = Literal["adam", "sign"]
RecipeName = Literal["published", "paper"]


@dataclass(frozen=True)
class ExpRecipe:
    """How :class:`EXP` reads the parts that the paper leaves open or that its published code does otherwise.

    :data:`PUBLISHED` and :data:`PAPER` are the two whole readings; ``dataclasses.replace`` or :func:`exp_recipe`
    change single options. Neither says that sigma is softplus(rho) in the paper, where it is a free positive
    parameter, or that the model is in eval mode during the inner steps: the code does both, and so does EXP in each
    recipe.

    Raises TypeError or ValueError that names the option.
    """

    objective: Objective
    """What is climbed, for k samples of a batch of B. ``"sum_of_batch_means"``: the sum over the samples of the mean
    cross entropy of the batch, so gradients carry a factor k / B (published). ``"mean_per_example"``: for each example
    the mean over its samples (paper, Eq. 10). Adam's update is nearly, not quite, blind to the scale."""

    entropy_reduction: EntropyReduction
    """The entropy of a sample: the ``"sum"`` of -log p over the elements of an example (paper, Eq. 11), or the
    ``"mean"`` over batch and elements (published), which weighs it less by B * C * H * W. At the paper's weight of 0.01
    the mean hardly steers the distribution, and the sum outweighs the cross entropy."""

    log_offset: float
    """Added inside the logarithms of the density, >= 0: 1e-8 (published), 0 for the exact density (paper)."""

    accumulate: bool
    """The published code never zeroes the gradient of (mu, rho): each step follows the sum over all steps so far. The
    paper's step follows the fresh gradient."""

    rho_init: float
    """rho before the first step, the same for every element; mu starts at 0. 0 makes sigma = softplus(0) = 0.693, as
    published; an earlier version of the code had -5. The paper does not say."""

    update: Update
    """``"adam"``: Adam with betas (0, 0), p += step_size * g / (|g| + 1e-8) (both); ``"sign"``: its limit for large
    gradients, p += step_size * sign(g)."""

    clamp: bool
    """Clamp adversarial images to the data bounds (published), or take x + delta as it is (paper, Eq. 6)."""

    outer_samples: int
    """Samples of the final distribution, >= 1, that the outer loss averages over: the published code takes one; more
    of them estimate the paper's expectation (Eq. 8) better. Used as an attack, EXP returns the worst of them."""

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, get_args(Objective))
        check_choice("entropy_reduction", self.entropy_reduction, get_args(EntropyReduction))
        check_not_negative("log_offset", self.log_offset)
        check_finite("rho_init", self.rho_init)
        check_choice("update", self.update, get_args(Update))
        check_int("outer_samples", self.outer_samples, 1, 2**24)
        for name in ("accumulate", "clamp"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {type(getattr(self, name)).__name__}")


PUBLISHED = ExpRecipe(
    objective="sum_of_batch_means",
    entropy_reduction="mean",
    log_offset=1e-8,
    accumulate=True,
    rho_init=0.0,
    update="adam",
    clamp=True,
    outer_samples=1,
)
"""The authors' code, from which the paper's numbers came."""

PAPER = ExpRecipe(
    objective="mean_per_example",
    entropy_reduction="sum",
    log_offset=0.0,
    accumulate=False,
    rho_init=0.0,
    update="adam",
    clamp=False,
    outer_samples=1,
)
"""The paper's equations (Sections 3.1, B.1 and C.3)."""

_RECIPES = {"published": PUBLISHED, "paper": PAPER}


def exp_recipe(recipe: RecipeName | ExpRecipe, **options: Any) -> ExpRecipe:
    """A recipe by name, or the given one, with single options changed: ``exp_recipe("published", accumulate=False)``.

    Raises:
        TypeError: if ``recipe`` is neither, or an option does not exist.
        ValueError: if the name is unknown, or an option has a bad value.
    """
    if isinstance(recipe, str):
        check_choice("recipe", recipe, tuple(_RECIPES))
        recipe = _RECIPES[recipe]
    if not isinstance(recipe, ExpRecipe):
        raise TypeError(f"recipe must be 'published', 'paper' or an ExpRecipe, got {type(recipe).__name__}")
    return replace(recipe, **options)
