"""Where the paper and its published code disagree about the three ways to ADT, as named options."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from .._support.checks import check_bool, check_choice, check_finite, check_int, check_not_negative
from .._support.option_text import parse_options

EntropyReduction = Literal["mean", "sum"]
Objective = Literal["sum_of_batch_means", "mean_per_example"]
Update = Literal["adam", "sign"]
Sigma = Literal["softplus", "free"]
RecipeName = str
"""``"published"`` or ``"paper"``, and single options changed: ``"published,accumulate=false,rho_init=-5"``."""
GradientScale = Literal["per_example", "batch_mean", "max_abs"]
Spread = Literal["variance", "standard_deviation"]

GRADIENT_SCALES: tuple[GradientScale, ...] = get_args(GradientScale)


@dataclass(frozen=True)
class ExpRecipe:
    """How :class:`EXP` reads the parts that the paper leaves open or that its published code does otherwise.

    :data:`PUBLISHED` and :data:`PAPER` are the two whole readings; ``dataclasses.replace`` or :func:`exp_recipe`
    change single options. Neither says that the model is in eval mode during the inner steps: the code does that, and
    so does EXP in each recipe, by its ``model_mode``.

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

    sigma: Sigma
    """What is climbed beside mu: ``"softplus"``, rho with sigma = softplus(rho) (published); or ``"free"``, sigma
    itself, a positive parameter (paper, Eq. 9); the paper does not say how it stays positive: here a step below 0 is
    reflected, which leaves the distribution what it is. The fused step is of rho; ``"free"`` takes some passes more."""

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
        check_choice("sigma", self.sigma, get_args(Sigma))
        check_choice("update", self.update, get_args(Update))
        check_int("outer_samples", self.outer_samples, 1, 2**24)
        check_bool("accumulate", self.accumulate)
        check_bool("clamp", self.clamp)


PUBLISHED = ExpRecipe(
    objective="sum_of_batch_means",
    entropy_reduction="mean",
    log_offset=1e-8,
    accumulate=True,
    rho_init=0.0,
    sigma="softplus",
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
    sigma="free",
    update="adam",
    clamp=False,
    outer_samples=1,
)
"""The paper's equations (Sections 3.1, B.1 and C.3)."""


@dataclass(frozen=True)
class ExpAmRecipe:
    """How :class:`EXPAM`, and ADT-EXP-AM, read the parts that the paper and its published code tell differently.

    Raises TypeError or ValueError that names the option.
    """

    gradient_scale: GradientScale
    """Of the gradients that the generator sees: ``"per_example"``, of each example's loss (paper, Section C.2), or
    ``"batch_mean"``, of the batch mean, less by 1 / B (published); ``"max_abs"`` is L2L's."""

    narrow_third_block: bool
    """The generator's third block narrows to ``width`` filters (published), or keeps 2 ``width`` (paper, Table 5)."""

    entropy_reduction: EntropyReduction
    """The entropy of an example: its ``"sum"`` over the elements (paper, Eq. 11) or its ``"mean"`` (published)."""

    log_offset: float
    """Added inside the logarithms of the density, >= 0: 1e-8 (published), 0 for the exact density (paper)."""

    clamp: bool
    """Clamp adversarial images to the data bounds (published), or take x + delta as it is (paper)."""

    def __post_init__(self) -> None:
        check_choice("gradient_scale", self.gradient_scale, GRADIENT_SCALES)
        check_bool("narrow_third_block", self.narrow_third_block)
        check_choice("entropy_reduction", self.entropy_reduction, get_args(EntropyReduction))
        check_not_negative("log_offset", self.log_offset)
        check_bool("clamp", self.clamp)


@dataclass(frozen=True)
class ImpAmRecipe:
    """How :class:`IMPAM`, and ADT-IMP-AM, read the parts that the paper and its published code tell differently.

    Raises TypeError or ValueError that names the option.
    """

    gradient_scale: GradientScale
    """As in :class:`ExpAmRecipe`."""

    narrow_third_block: bool
    """As in :class:`ExpAmRecipe`."""

    entropy_weight: float
    """Lambda, unless the attack is given one: 1 (published), 0.01 (paper, Section 5.1)."""

    hinge: float | None
    """None: maximise the bound of the entropy (paper, Eq. 15). A number h: minimise relu(-log q - h), which asks for no
    more than log q >= -h; the published code has 0.9. log q is the mean over the images at hand: where several
    processes or passes share a minibatch, their hinges come to that of the whole if all are beyond h, or none is."""

    latent_reduction: EntropyReduction
    """log q(z | delta): its ``"sum"`` over the latents (paper, Eq. 14), or its ``"mean"`` (published)."""

    spread: Spread
    """What softplus of the encoder's second output is: the ``"standard_deviation"`` of z (paper, Section 3.3), or its
    ``"variance"`` (published)."""

    log_offset: float
    """Added to the variance in the logarithm, and to twice the variance in the quotient, >= 0: 1e-8 (published)."""

    clamp: bool
    """As in :class:`ExpAmRecipe`."""

    def __post_init__(self) -> None:
        check_choice("gradient_scale", self.gradient_scale, GRADIENT_SCALES)
        check_bool("narrow_third_block", self.narrow_third_block)
        check_finite("entropy_weight", self.entropy_weight)
        if self.hinge is not None:
            check_finite("hinge", self.hinge)
        check_choice("latent_reduction", self.latent_reduction, get_args(EntropyReduction))
        check_choice("spread", self.spread, get_args(Spread))
        check_not_negative("log_offset", self.log_offset)
        check_bool("clamp", self.clamp)


_EXP_RECIPES = {"published": PUBLISHED, "paper": PAPER}

_EXP_AM_RECIPES = {
    "published": ExpAmRecipe(
        gradient_scale="batch_mean", narrow_third_block=True, entropy_reduction="mean", log_offset=1e-8, clamp=True
    ),
    "paper": ExpAmRecipe(
        gradient_scale="per_example", narrow_third_block=False, entropy_reduction="sum", log_offset=0.0, clamp=False
    ),
}

_IMP_AM_RECIPES = {
    "published": ImpAmRecipe(
        gradient_scale="batch_mean", narrow_third_block=True, entropy_weight=1.0, hinge=0.9,
        latent_reduction="mean", spread="variance", log_offset=1e-8, clamp=True,
    ),
    "paper": ImpAmRecipe(
        gradient_scale="per_example", narrow_third_block=False, entropy_weight=0.01, hinge=None,
        latent_reduction="sum", spread="standard_deviation", log_offset=0.0, clamp=False,
    ),
}  # fmt: skip


def exp_recipe(recipe: RecipeName | ExpRecipe, **options: Any) -> ExpRecipe:
    """A recipe by name, or the given one, with single options changed: ``exp_recipe("published", accumulate=False)``.

    ``exp_recipe("published,accumulate=false")`` is the same, for command lines and files: values are numbers,
    true, false, none, or words.

    Raises:
        TypeError: if ``recipe`` is neither, or an option does not exist or has a value of the wrong type.
        ValueError: if the name is unknown, or an option has a bad value.
    """
    return _recipe(recipe, _EXP_RECIPES, options)


def exp_am_recipe(recipe: RecipeName | ExpAmRecipe, **options: Any) -> ExpAmRecipe:
    """:func:`exp_recipe` for :class:`ExpAmRecipe`."""
    return _recipe(recipe, _EXP_AM_RECIPES, options)


def imp_am_recipe(recipe: RecipeName | ImpAmRecipe, **options: Any) -> ImpAmRecipe:
    """:func:`exp_recipe` for :class:`ImpAmRecipe`."""
    return _recipe(recipe, _IMP_AM_RECIPES, options)


def _recipe(recipe: Any, known: dict[str, Any], options: dict[str, Any]) -> Any:
    kind = type(known["published"])
    if isinstance(recipe, str):
        name, *changes = recipe.split(",")
        check_choice("recipe", name, tuple(known))
        recipe = _changed(known[name], changes)
    if not isinstance(recipe, kind):
        raise TypeError(f"recipe must be 'published', 'paper' or an {kind.__name__}, got {type(recipe).__name__}")
    return replace(recipe, **options)


def _changed(recipe: Any, changes: list[str]) -> Any:
    """The recipe with what texts such as "rho_init=-5" change."""
    options = parse_options("recipe", changes, tuple(field.name for field in fields(recipe)))
    try:
        return replace(recipe, **options)
    except TypeError as error:  # of what is not Python but a text, which has no types
        raise ValueError(str(error)) from None
