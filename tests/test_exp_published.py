"""EXP against the algorithm written plainly, with the same noise: the published code and every recipe.

In float64 the two must agree to float64 rounding. In float32 they must agree to a few units in the last place, but
for the rare elements where Adam's g / (|g| + 1e-8) magnifies the rounding of a gradient g that is nearly zero.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, published_inner, recipe_inner, tiny_batch

from adt_fast import NoiseStream, ops
from adt_fast.attacks import EXP, PAPER, PUBLISHED, exp_recipe
from adt_fast.input_gradient import FLOAT32, EngineOptions

SETTINGS = {"epsilon": 0.1, "step_size": 0.3, "entropy_weight": 0.02}
STEPS, SAMPLES, SEED = 5, 3, 11

# Each option alone, set as in the other recipe, or to another value where the two recipes agree.
OPTIONS = {
    "objective": ("sum_of_batch_means", "mean_per_example"),
    "entropy_reduction": ("mean", "sum"),
    "log_offset": (1e-8, 0.0),
    "accumulate": (True, False),
    "rho_init": (0.0, -5.0),
    "sigma": ("softplus", "free"),
    "update": ("adam", "sign"),
    "clamp": (True, False),
}


def other(recipe, option):
    first, second = OPTIONS[option]
    return replace(recipe, **{option: second if getattr(recipe, option) == first else first})


RECIPES = {"published": PUBLISHED, "paper": PAPER}
RECIPES |= {f"{name}-{option}": other(recipe, option) for name, recipe in RECIPES.items() for option in OPTIONS}


def ours(model, images, labels, recipe, engine=FLOAT32):
    noise = NoiseStream(SEED, images.device, offset=3)
    attack = EXP(model, steps=STEPS, samples=SAMPLES, recipe=recipe, noise=noise, engine=engine, **SETTINGS)
    result = attack.maximize(images, labels)
    assert noise.offset == 3 + STEPS + 1
    return result


def the_same_normals(images):
    """[T, k, *images.shape] in float64: what the operators draw for steps 0 .. T - 1, and [1, *images.shape]: T."""
    noise = NoiseStream(SEED, images.device, offset=3)
    draws = [ops.normal(images.double(), noise.state, samples=SAMPLES, draw=t) for t in range(STEPS)]
    return torch.stack(draws), ops.normal(images.double(), noise.state, samples=1, draw=STEPS)


@pytest.fixture
def problem(device):
    images, labels = tiny_batch()
    return TinyClassifier().to(device), images.to(device), labels.to(device)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_in_float64(problem, name):
    model, images, labels = problem
    model, images, recipe = model.double(), images.double(), RECIPES[name]
    normals, last = the_same_normals(images)
    mu, rho = recipe_inner(model, images, labels, normals, recipe, **SETTINGS)
    result = ours(model, images, labels, recipe)
    torch.testing.assert_close(result.mu, mu, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.rho, rho, rtol=0, atol=1e-9)
    x_adv = images + SETTINGS["epsilon"] * torch.tanh(mu + F.softplus(rho) * last)
    x_adv = x_adv.clamp(0, 1) if recipe.clamp else x_adv
    torch.testing.assert_close(result.x_adv, x_adv, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_in_float32(problem, name):
    model, images, labels = problem
    normals, _ = the_same_normals(images)
    expected = recipe_inner(model.double(), images.double(), labels, normals.double(), RECIPES[name], **SETTINGS)
    assert_float32_rounding(ours(model.float(), images, labels, RECIPES[name])[:2], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_script(problem, dtype):
    """The script's own loop: gradients pile up in Adam, which sees batch means."""
    model, images, labels = problem
    normals, _ = the_same_normals(images)
    expected = published_inner(model.double(), images.double(), labels, normals.double(), **SETTINGS)
    result = ours(model.to(dtype), images.to(dtype), labels, "published")
    if dtype == torch.float32:
        assert_float32_rounding(result[:2], expected)
    else:
        torch.testing.assert_close(result[:2], expected, rtol=0, atol=1e-9)


def assert_float32_rounding(found, expected):
    errors = torch.cat([(a - b).abs().flatten() for a, b in zip(found, expected, strict=True)])
    assert errors.quantile(0.99) < 2e-6, f"99% of (mu, rho) must agree to rounding: {errors.quantile(0.99)}"
    assert errors.max() < 1e-3, f"all of (mu, rho) must agree to Adam's magnified rounding: {errors.max()}"


@pytest.mark.parametrize("name", ["published", "paper"])
@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_layout_and_chunks_do_not_change_the_distribution(problem, name, layout):
    model, images, labels = problem
    expected = ours(model, images, labels, name)
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        images = torch.stack([images, images], dim=-1)[..., 0]
    result = ours(model, images, labels, name, EngineOptions(precision="fp32", chunk=4))
    assert_float32_rounding(result[:2], expected[:2])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["published", "paper"])
def test_readings_differ(name, option):
    """Each option means something: alone, it changes the distribution or, for clamp, at least the samples."""
    (images, labels), model = tiny_batch(), TinyClassifier().double()
    base = ours(model, images.double(), labels, name)
    changed = ours(model, images.double(), labels, other(RECIPES[name], option))
    difference = max((a - b).abs().max().item() for a, b in zip(base, changed, strict=True))
    # The offset is 1e-8 beside sigma and 1 - t^2; the scale of the objective matters through Adam's 1e-8 alone.
    assert difference > (1e-10 if option in ("log_offset", "objective") else 1e-3)


def test_the_entropy_steers_the_sum_reading_only():
    """At the same weight, its gradient is far below the loss's as a mean, and above it as a sum."""
    images, model = tiny_batch()[0].double(), TinyClassifier().double().eval()
    labels = model(images).argmin(1)  # where the loss is not flat
    moved = {}
    for reduction in ("mean", "sum"):
        recipe = exp_recipe("published", entropy_reduction=reduction)
        with_entropy, without = (
            EXP(model, 0.1, entropy_weight=weight, recipe=recipe, noise=NoiseStream(SEED)).maximize(images, labels)
            for weight in (0.01, 0.0)
        )
        moved[reduction] = (with_entropy.mu - without.mu).abs().mean().item()
    assert moved["mean"] < 0.02 and moved["sum"] > 0.3, moved


def test_only_the_published_recipe_clamps_what_is_trained_on():
    """The paper's x + delta leaves [0, 1]; used as an attack, EXP stays inside in either recipe."""
    (images, labels), model = tiny_batch(), TinyClassifier()
    published, paper = (ours(model, images, labels, name).x_adv for name in ("published", "paper"))
    assert published.min() >= 0 and published.max() <= 1
    assert paper.min() < 0 and paper.max() > 1
    attacked = EXP(model, 0.1, recipe="paper", noise=NoiseStream(SEED))(images, labels)
    assert attacked.min() >= 0 and attacked.max() <= 1


def test_outer_samples_are_independent_draws_of_one_distribution():
    (images, labels), model = tiny_batch(), TinyClassifier()
    one = ours(model, images, labels, PUBLISHED)
    three = ours(model, images, labels, exp_recipe("published", outer_samples=3))
    assert three.x_adv.shape == (3, *images.shape)
    assert torch.equal(three.mu, one.mu) and torch.equal(three.x_adv[0], one.x_adv[0])
    assert not torch.equal(three.x_adv[0], three.x_adv[1])


def test_no_steps_sample_the_initial_distribution():
    images, labels = tiny_batch()
    attack = EXP(TinyClassifier(), 0.1, steps=0, noise=NoiseStream(SEED))
    result = attack.maximize(images, labels)
    r = ops.normal(images, NoiseStream(SEED).state)[0]
    expected = (images + 0.1 * torch.tanh(F.softplus(torch.zeros(())) * r)).clamp(0, 1)
    assert not result.mu.any() and not result.rho.any()
    torch.testing.assert_close(result.x_adv[0], expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"objective": "mean"}, "objective"),
        ({"entropy_reduction": "max"}, "entropy_reduction"),
        ({"log_offset": -1.0}, "log_offset"),
        ({"rho_init": float("nan")}, "rho_init"),
        ({"sigma": "exp"}, "sigma"),
        ({"update": "sgd"}, "update"),
        ({"outer_samples": 0}, "outer_samples"),
    ],
)
def test_recipe_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        exp_recipe("published", **options)


def test_recipe_refuses_what_is_no_recipe():
    with pytest.raises(ValueError, match="'published', 'paper'"):
        exp_recipe("publshed")
    with pytest.raises(TypeError, match="recipe"):
        exp_recipe(None)
    with pytest.raises(TypeError, match="accumulate must be a bool"):
        exp_recipe("paper", accumulate=1)
    with pytest.raises(TypeError, match="momentum"):
        exp_recipe("paper", momentum=0.9)
