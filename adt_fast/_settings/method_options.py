"""The options of the training methods as settings of a run: each is an option of the parts that have it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from ..methods import method_names, method_spec
from .arguments import Boolean, Integer, Number, argument, default_is, parse_boolean


def grouped(defaults: dict[str, Any]) -> str:
    """Defaults by owner, for help texts: "7 for adt-exp, at-pgd; 10 for trades"."""
    names_by_value: dict[str, list[str]] = {}
    for name, value in defaults.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value).lower()
        names_by_value.setdefault(text, []).append(name)
    return "; ".join(f"{value} for {', '.join(names)}" for value, names in names_by_value.items())


def _by_method(option: str, none: str = "none") -> Any:
    """The default of each method that has the option, those of the same grouped."""
    defaults = {method: method_spec(method).defaults() for method in method_names()}
    found = {method: values[option] for method, values in defaults.items() if option in values}
    return default_is(grouped({method: none if value is None else value for method, value in found.items()}))


def _parse_start(text: str) -> bool | str:
    if text == "gaussian":
        return text
    try:
        return parse_boolean(text)
    except ValueError:
        raise ValueError(f"expected true, false or gaussian, got {text!r}") from None


@dataclass(frozen=True)
class MethodOptions:
    """Settings of the method; None is the method's own default. A method does not have them all."""

    recipe: Annotated[str | None, argument(str, "published|paper"), _by_method("recipe")] = None
    """Where the paper and its published code disagree, whom to follow; single options may follow, as in
    published,accumulate=false,rho_init=-5 (see ExpRecipe, ExpAmRecipe and ImpAmRecipe)."""

    steps: Annotated[int | None, Integer, _by_method("steps")] = None
    """Steps of the inner maximisation (T), for each minibatch."""

    samples: Annotated[int | None, Integer, _by_method("samples")] = None
    """Monte Carlo samples for each inner gradient (k)."""

    step_size: Annotated[float | None, Number, _by_method("step_size", "epsilon/4 (feascatter: epsilon)")] = None
    """Size of a step of the inner maximisation: on (mu, rho) for explicit distributions, else in units where images are
    in [0, 1]."""

    entropy_weight: Annotated[float | None, Number,
                              _by_method("entropy_weight", "the recipe's (1; paper: 0.01)")] = None
    """Lambda, the weight of the distribution's entropy, in nats, beside the loss."""

    norm: Annotated[str | None, argument(str, "linf|l2"), _by_method("norm")] = None
    """Norm of PGD's ball; in l2, --epsilon must be given, a Euclidean length such as 0.5."""

    random_start: Annotated[bool | str | None, argument(_parse_start, "true|false|gaussian"),
                            _by_method("random_start")] = None
    """Start PGD from a uniform point of the ball, from the image, or from the image and a little Gaussian noise."""

    target: Annotated[str | None, argument(str, "none|least-likely"), _by_method("target")] = None
    """The class that FGSM goes for: away from the true one, or towards the least likely one."""

    regularization: Annotated[float | None, Number, _by_method("regularization")] = None
    """Weight of the entropy in feature scattering's optimal transport, > 0."""

    iterations: Annotated[int | None, Integer, _by_method("iterations")] = None
    """Iterations of Sinkhorn's algorithm, at most, for feature scattering."""

    tolerance: Annotated[float | None, Number, _by_method("tolerance")] = None
    """Sinkhorn's algorithm stops when its potentials move by less than this altogether, >= 0."""

    label_smoothing: Annotated[float | None, Number, _by_method("label_smoothing")] = None
    """What the wrong classes share of the target, a probability in [0, 1)."""

    logit_weight: Annotated[float | None, Number, _by_method("logit_weight")] = None
    """Weight of the logit pairing, the mean squared difference of clean and adversarial logits."""

    trades_weight: Annotated[float | None, Number, _by_method("trades_weight")] = None
    """1 / lambda', the weight of the KL divergence in the TRADES loss."""

    repeat_natural: Annotated[bool | None, Boolean, _by_method("repeat_natural")] = None
    """Send the natural images through the network once more for the KL divergence, as TRADES' own code does."""

    generator_width: Annotated[int | None, Integer, default_is("the paper's 256; 64 for digits")] = None
    """Filters of the generator's first convolution; its blocks have twice as many."""

    generator_learning_rate: Annotated[float | None, Number, default_is("the paper's 2e-4; 2e-3 for digits")] = None
    """Learning rate of the generator's, and the encoder's, Adam."""

    gradient_scale: Annotated[str | None, argument(str, "per_example|batch_mean|max_abs"),
                              _by_method("gradient_scale")] = None
    """Scale of the gradients that L2L's generator sees: of each image's own loss, of the batch's mean loss, or divided
    by their largest element; ADT's recipes have their own."""

    narrow_third_block: Annotated[bool | None, Boolean, _by_method("narrow_third_block")] = None
    """Narrow the third block of L2L's generator, as the published code of ADT does; ADT's recipes say it for theirs."""

    latent_dim: Annotated[int | None, Integer, _by_method("latent_dim")] = None
    """Numbers in the noise z of implicit distributions."""

    def method_options(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: getattr(self, name) for name in METHOD_OPTIONS if getattr(self, name) is not None}


METHOD_OPTIONS = tuple(field.name for field in fields(MethodOptions))


def without_foreign_options(settings: dict[str, Any], method: str) -> dict[str, Any]:
    """The settings less the options that the method does not have."""
    known = method_spec(method).defaults()
    return {name: value for name, value in settings.items() if name not in METHOD_OPTIONS or name in known}
