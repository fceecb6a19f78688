"""Amortised attacks and the methods that train their generators, against plain formulas and plain steps in float64.

The plain step differentiates two explicit objectives: what the classifier lowers, and what the generator lowers, minus
the former plus a penalty. The library has one backward pass with a gradient that is reversed half-way.
"""

import copy
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch
from plain_methods import (
    amortized_step,
    encoder_output,
    explicit_sample,
    generator_inputs,
    generator_output,
    implicit_penalty,
    implicit_sample,
    lively,
    published_explicit_penalty,
    published_implicit_penalty,
    trainable,
    weights,
)

from adt_fast import NoiseStream, ops
from adt_fast.attacks import (
    EXPAM,
    IMPAM,
    L2L,
    PUBLISHED,
    ExpAmRecipe,
    ImpAmRecipe,
    exp_am_recipe,
    imp_am_recipe,
)
from adt_fast.input_gradient import FLOAT32, EngineOptions
from adt_fast.losses import Margin
from adt_fast.methods import create_method, exp_am, imp_am, l2l
from adt_fast.models import PerturbationGenerator, VariationalEncoder
from adt_fast.trainer import Trainer

EPSILON, SEED, OFFSET, LATENT = 0.1, 17, 2, 5
ELEMENTS = 3 * 6 * 5  # of a tiny image

# Each option alone, set to its other values. The third block is the generator's, which is made elsewhere.
EXP_AM_OPTIONS = {
    "gradient_scale": ("per_example", "batch_mean", "max_abs"),
    "entropy_reduction": ("mean", "sum"),
    "log_offset": (0.0, 1e-8),
    "clamp": (False, True),
}
IMP_AM_OPTIONS = {
    "gradient_scale": ("per_example", "batch_mean", "max_abs"),
    "entropy_weight": (0.01, 1.0),
    "hinge": (None, 0.9, 0.1),
    "latent_reduction": ("mean", "sum"),
    "spread": ("variance", "standard_deviation"),
    "log_offset": (0.0, 1e-8),
    "clamp": (False, True),
}


def variants(recipe_of, options):
    """Both recipes, and each with one option changed: name -> (recipe, the recipe it was, the option)."""
    found = {}
    for name in ("published", "paper"):
        whole = recipe_of(name)
        found[name] = (whole, None, None)
        for option, values in options.items():
            for value in values:
                if value != getattr(whole, option):
                    found[f"{name}-{option}={value}"] = (replace(whole, **{option: value}), whole, option)
    return found


EXP_AM_VARIANTS = variants(exp_am_recipe, EXP_AM_OPTIONS)
IMP_AM_VARIANTS = variants(imp_am_recipe, IMP_AM_OPTIONS)


@pytest.fixture
def problem():
    images, labels = tiny_batch(6)
    return TinyClassifier().double().train(), images.double(), labels


def noise_stream():
    return NoiseStream(SEED, offset=OFFSET)


def generator_of(out_channels, latent_dim=0, width=3):
    network = PerturbationGenerator(9, out_channels, width=width, latent_dim=latent_dim, image_size=(6, 5))
    return lively(network).double()


def encoder_of(seed=1):
    return lively(VariationalEncoder(3, LATENT), seed).double()


def exp_am_of(model, **options):
    return EXPAM(model, EPSILON, **{"generator": generator_of(6), "noise": noise_stream()} | options)


def imp_am_of(model, **options):
    networks = {"generator": generator_of(3, LATENT), "encoder": encoder_of()}
    return IMPAM(model, EPSILON, **networks | {"latent_dim": LATENT, "noise": noise_stream()} | options)


def l2l_of(model, **options):
    return L2L(model, EPSILON, **{"generator": generator_of(3), "noise": noise_stream()} | options)


ATTACKS = {"exp_am": exp_am_of, "imp_am": imp_am_of, "l2l": l2l_of}


def the_same_normals(images):
    return ops.normal(images, noise_stream().state)[0]


def the_same_latents(images, offset=OFFSET):
    """z ~ U(-1, 1), as the uniform start around zero, in the ball of radius 1, which nothing clamps."""
    zeros = images.new_zeros(len(images), LATENT)
    state = NoiseStream(SEED, offset=offset).state
    return ops.uniform_start_(zeros.clone(), zeros, state, epsilon=1.0, lower=-2.0, upper=2.0)


# What the generator sees


@pytest.mark.parametrize("engine", [FLOAT32, EngineOptions(precision="fp32", chunk=4)], ids=["twin", "chunked"])
@pytest.mark.parametrize("scale", ["per_example", "batch_mean", "max_abs"])
def test_the_generators_inputs(problem, scale, engine):
    model, images, labels = problem
    expected = generator_inputs(copy.deepcopy(model), images, labels, epsilon=EPSILON, scale=scale)
    found = l2l_of(model, gradient_scale=scale, engine=engine).generator_inputs(images, labels)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    g1, g2 = found[:, 3:6], found[:, 6:]
    assert (g1 - g2).abs().max() > 1e-3 * g1.abs().max(), "the two gradients must be told apart"


def test_scales_of_the_gradients(problem):
    """The batch mean's are 1 / B of each example's own, exactly; L2L's have one largest element of 1."""
    model, images, labels = problem
    found = {
        scale: l2l_of(model, gradient_scale=scale).generator_inputs(images, labels)[:, 3:]
        for scale in ("per_example", "batch_mean", "max_abs")
    }
    assert torch.equal(found["batch_mean"], found["per_example"] / 6)
    for part in found["max_abs"].split(3, 1):
        assert part.abs().max() == 1
    for example in range(6):  # "per_example" does not depend on the rest of the batch
        alone = l2l_of(model, gradient_scale="per_example").generator_inputs(
            images[example : example + 1], labels[example : example + 1]
        )
        torch.testing.assert_close(alone[0, 3:], found["per_example"][example], rtol=1e-9, atol=1e-12)


def test_a_flat_loss_gives_gradients_of_zero(problem):
    """Of which the largest is zero, too."""
    model, images, labels = problem
    torch.nn.init.zeros_(model.fc.weight)
    inputs = l2l_of(model).generator_inputs(images, labels)
    assert torch.equal(inputs[:, :3], images) and not inputs[:, 3:].any()


def test_another_loss_and_other_bounds(problem):
    """The loss of the gradients is the attack's; the FGSM example stays inside the bounds."""
    model, images, labels = problem
    plain = copy.deepcopy(model).eval()
    x = (images * 2 - 1).requires_grad_()
    attack = l2l_of(model, loss=Margin(), lower=-1.0, upper=1.0, gradient_scale="per_example")
    (g1,) = torch.autograd.grad(Margin()(plain(x), labels).sum(), x)
    at = (x + EPSILON * g1.sign()).detach().clamp(-1, 1).requires_grad_()
    (g2,) = torch.autograd.grad(Margin()(plain(at), labels).sum(), at)
    found = attack.generator_inputs(x.detach(), labels)
    torch.testing.assert_close(found, torch.cat([x.detach(), g1, g2], 1), rtol=1e-9, atol=1e-12)


# Samples and penalties


def plain_exp_am(model, generator, images, labels, recipe, entropy_weight):
    """x_adv, penalty, and what the generator gave."""
    inputs = generator_inputs(copy.deepcopy(model), images, labels, epsilon=EPSILON, scale=recipe.gradient_scale,
                              clamp=recipe.clamp)
    phi = generator_output(trainable(generator.state_dict()), inputs, training=True).detach()
    r = the_same_normals(images)
    return *explicit_sample(phi, images, r, recipe, epsilon=EPSILON, entropy_weight=entropy_weight), phi


def plain_imp_am(model, networks, images, labels, recipe):
    """x_adv, penalty, and (z, mean, raw)."""
    states = {name: trainable(network.state_dict()) for name, network in networks.items()}
    inputs = generator_inputs(copy.deepcopy(model), images, labels, epsilon=EPSILON, scale=recipe.gradient_scale,
                              clamp=recipe.clamp)
    z = the_same_latents(images)
    direction = generator_output(states["generator"], inputs, z, training=True).tanh().detach()
    mean, raw = (part.detach() for part in encoder_output(states["encoder"], direction, training=True))
    x_adv = implicit_sample(direction, images, epsilon=EPSILON, clamp=recipe.clamp)
    return x_adv, implicit_penalty(z, mean, raw, recipe, recipe.entropy_weight), (z, mean, raw)


@pytest.mark.parametrize("name", EXP_AM_VARIANTS)
def test_every_recipe_of_exp_am(problem, name):
    model, images, labels = problem
    recipe = EXP_AM_VARIANTS[name][0]
    attack = exp_am_of(model, recipe=recipe, entropy_weight=0.02)
    x_adv, penalty, _ = plain_exp_am(model, attack.generator, images, labels, recipe, 0.02)
    found = attack.sample(images, labels)
    assert found.x_adv.shape == (1, *images.shape) and found.penalty.shape == ()
    torch.testing.assert_close(found.x_adv[0], x_adv, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.penalty, penalty, rtol=1e-9, atol=1e-11)
    assert attack.noise.offset == OFFSET + 1


@pytest.mark.parametrize("name", IMP_AM_VARIANTS)
def test_every_recipe_of_imp_am(problem, name):
    model, images, labels = problem
    recipe = IMP_AM_VARIANTS[name][0]
    attack = imp_am_of(model, recipe=recipe)
    x_adv, penalty, _ = plain_imp_am(model, attack.networks, images, labels, recipe)
    found = attack.sample(images, labels)
    torch.testing.assert_close(found.x_adv[0], x_adv, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.penalty, penalty, rtol=1e-9, atol=1e-11)
    assert found.penalty > 0, "a hinge that is shut would hide the rest"
    assert attack.noise.offset == OFFSET + 1


def test_l2l(problem):
    model, images, labels = problem
    attack = l2l_of(model)
    inputs = generator_inputs(copy.deepcopy(model), images, labels, epsilon=EPSILON, scale="max_abs")
    direction = generator_output(trainable(attack.generator.state_dict()), inputs, training=True).tanh()
    found = attack.sample(images, labels)
    torch.testing.assert_close(found.x_adv[0], (images + EPSILON * direction).clamp(0, 1), rtol=0, atol=1e-10)
    assert found.penalty is None and attack.noise.offset == OFFSET


def test_the_published_entropy_of_exp_am(problem):
    """The script's own lines: a mean without the density's constants, which have no gradient."""
    model, images, labels = problem
    attack = exp_am_of(model, entropy_weight=0.02)
    _, _, phi = plain_exp_am(model, attack.generator, images, labels, attack.recipe, 0.02)
    phi.requires_grad_()
    expected = published_explicit_penalty(phi, the_same_normals(images), 0.02)
    constants = -0.02 * (torch.tensor(2 * torch.pi).log() / 2 + torch.tensor(EPSILON).log())
    torch.testing.assert_close(attack.sample(images, labels).penalty, expected + constants.double(), rtol=0, atol=1e-8)
    attack.generator = FixedGenerator(phi)
    attack.noise.load_state_dict({"seed": SEED, "offset": OFFSET})
    (found,) = torch.autograd.grad(attack.sample(images, labels).penalty, phi)
    torch.testing.assert_close(found, torch.autograd.grad(expected, phi)[0], rtol=1e-9, atol=1e-14)


class FixedGenerator(torch.nn.Module):
    """Gives what it was given."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, inputs, *z):
        return self.output


class FixedEncoder(FixedGenerator):
    def forward(self, direction):
        return self.output


def test_the_published_bound_of_imp_am(problem):
    model, images, labels = problem
    attack = imp_am_of(model)
    _, penalty, (z, mean, raw) = plain_imp_am(model, attack.networks, images, labels, attack.recipe)
    torch.testing.assert_close(penalty, published_implicit_penalty(z, mean, raw))
    torch.testing.assert_close(attack.sample(images, labels).penalty, penalty)
    latents = mean.requires_grad_(), raw.requires_grad_()
    attack.encoder = FixedEncoder(latents)
    attack.noise.load_state_dict({"seed": SEED, "offset": OFFSET})
    found = torch.autograd.grad(attack.sample(images, labels).penalty, latents)
    expected = torch.autograd.grad(published_implicit_penalty(z, *latents), latents)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("spread", ["variance", "standard_deviation"])
def test_log_q_is_a_normal_density(problem, spread):
    """softplus of the encoder's second output is the variance (published) or the standard deviation (paper)."""
    latents = torch.randn(2, 6, LATENT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    attack = imp_am_of(problem[0], encoder=FixedEncoder(tuple(latents)), recipe=f"paper,spread={spread}")
    z = the_same_latents(problem[1])
    scale = F.softplus(latents[1]).sqrt() if spread == "variance" else F.softplus(latents[1])
    expected = torch.distributions.Normal(latents[0], scale).log_prob(z)
    torch.testing.assert_close(attack.log_q(z, problem[1]), expected)


def test_latents_are_uniform(problem):
    z = the_same_latents(problem[1].new_zeros(4000, 3, 6, 5))
    seen = []
    attack = imp_am_of(problem[0])
    attack.generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    attack.sample(*problem[1:])
    assert torch.equal(seen[0], z[:6])
    assert -1 <= z.min() < -0.999 and 0.999 < z.max() <= 1
    assert abs(z.mean()) < 0.02 and z.square().mean().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("hinge", [None, 0.9, 2.0])
def test_the_hinge_asks_for_no_more_than_it_says(problem, hinge):
    """-log q of 1.5, say, is beyond a hinge of 0.9 and leaves one of 2 alone: no penalty, no gradient."""
    model, images, labels = problem
    z = the_same_latents(images)
    raw = torch.zeros(6, LATENT).double().requires_grad_()
    attack = imp_am_of(model, encoder=FixedEncoder((z + 1.0, raw)), recipe=imp_am_recipe("published", hinge=hinge))
    bound = -attack.log_q(z, images).mean()
    assert 0.9 < bound < 2
    penalty = attack.sample(images, labels).penalty
    (grad,) = torch.autograd.grad(penalty, raw)
    if hinge == 2.0:
        assert penalty == 0 and not grad.any()
    else:
        torch.testing.assert_close(penalty, bound - (hinge or 0.0))
        torch.testing.assert_close(grad, torch.autograd.grad(bound, raw)[0])


@pytest.mark.parametrize("recipe", ["published", "paper"])
def test_the_entropys_gradient_as_a_sum_is_that_as_a_mean_times_the_elements(problem, recipe):
    model, images, labels = problem
    grads = {}
    for reduction in ("mean", "sum"):
        attack = exp_am_of(model, recipe=exp_am_recipe(recipe, entropy_reduction=reduction))
        penalty = attack.sample(images, labels).penalty
        grads[reduction] = torch.autograd.grad(penalty, list(attack.generator.parameters()))
    scaled = [grad * ELEMENTS for grad in grads["mean"]]
    torch.testing.assert_close(grads["sum"], tuple(scaled), rtol=1e-9, atol=1e-12)


def sampled(kind, model, images, labels, recipe):
    found = ATTACKS[kind](model, recipe=recipe).sample(images, labels)
    return [found.x_adv.detach(), found.penalty.detach()]


@pytest.mark.parametrize(
    "kind, name",
    [("exp_am", name) for name, (_, whole, _) in EXP_AM_VARIANTS.items() if whole]
    + [("imp_am", name) for name, (_, whole, _) in IMP_AM_VARIANTS.items() if whole],
)
def test_readings_differ(problem, kind, name):
    """Each option means something: alone, it changes the sample or the penalty."""
    recipe, whole, option = (EXP_AM_VARIANTS if kind == "exp_am" else IMP_AM_VARIANTS)[name]
    base, changed = (sampled(kind, *problem, one) for one in (whole, recipe))
    difference = max((a - b).abs().max().item() for a, b in zip(base, changed, strict=True))
    assert difference > (1e-11 if option == "log_offset" else 1e-4)


def test_all_options_of_the_recipes_are_covered():
    """A new option has to be added above, or its test elsewhere."""
    assert {field.name for field in fields(ExpAmRecipe)} == EXP_AM_OPTIONS.keys() | {"narrow_third_block"}
    assert {field.name for field in fields(ImpAmRecipe)} == IMP_AM_OPTIONS.keys() | {"narrow_third_block"}


def test_the_recipes_are_the_table_of_differences():
    assert exp_am_recipe("published") == ExpAmRecipe("batch_mean", True, "mean", 1e-8, True)
    assert exp_am_recipe("paper") == ExpAmRecipe("per_example", False, "sum", 0.0, False)
    assert imp_am_recipe("published") == ImpAmRecipe("batch_mean", True, 1.0, 0.9, "mean", "variance", 1e-8, True)
    assert imp_am_recipe("paper") == ImpAmRecipe(
        "per_example", False, 0.01, None, "sum", "standard_deviation", 0.0, False
    )
    assert imp_am_recipe("published,hinge=null,spread=standard_deviation") == imp_am_recipe(
        "published", hinge=None, spread="standard_deviation"
    )


@pytest.mark.parametrize("recipe", ["published", "paper"])
def test_the_recipe_makes_the_networks(recipe):
    """Where the attack is made with its networks: the third block's width, lambda, and the latents."""
    model = TinyClassifier()
    settings = {"image_shape": (3, 6, 5), "generator_width": 4, "recipe": recipe}
    third = 4 if recipe == "published" else 8
    explicit, implicit = exp_am(model, EPSILON, **settings), imp_am(model, EPSILON, latent_dim=LATENT, **settings)
    for attack, out_channels in ((explicit, 6), (implicit, 3)):
        assert attack.generator.head.weight.shape == (out_channels, third, 3, 3)
        assert attack.generator.stem[0].weight.shape[1] == (9 if attack is explicit else 10)
        assert attack.generator.training
    assert implicit.encoder.fc.weight.shape == (2 * LATENT, 256)
    assert implicit.entropy_weight == (1.0 if recipe == "published" else 0.01)
    assert imp_am(model, EPSILON, entropy_weight=0.3, **settings).entropy_weight == 0.3
    assert explicit.entropy_weight == 0.01
    learning_to_attack = l2l(model, EPSILON, image_shape=(1, 8, 8), generator_width=4)
    assert learning_to_attack.generator.head.weight.shape == (1, 4, 3, 3)
    assert learning_to_attack.generator.stem[0].weight.shape[1] == 3


def test_no_weight_no_penalty(problem):
    model, images, labels = problem
    for kind in ("exp_am", "imp_am"):
        without, with_it = (ATTACKS[kind](model, entropy_weight=weight) for weight in (0.0, 1.0))
        found = without.sample(images, labels)
        assert found.penalty is None
        assert torch.equal(found.x_adv, with_it.sample(images, labels).x_adv)


# Training steps

STEPS = [
    ("l2l", ""),
    ("adt-exp-am", "published"),
    ("adt-exp-am", "paper"),
    ("adt-exp-am-trades", "published"),
    ("adt-exp-am-trades", "paper"),
    ("adt-imp-am", "published"),
    ("adt-imp-am", "paper"),
    ("adt-imp-am-trades", "published"),
    ("adt-imp-am-trades", "paper"),
]
STEP_NAMES = ["-".join(filter(None, step)) for step in STEPS]
KINDS = {"l2l": "l2l", "adt-exp-am": "exp_am", "adt-imp-am": "imp_am"}
RECIPES = {"l2l": lambda name: SimpleNamespace(gradient_scale="max_abs", clamp=True),
           "exp_am": exp_am_recipe, "imp_am": imp_am_recipe}  # fmt: skip
WEIGHT, LEARNING_RATE = 0.02, 1e-3


def kind_of(name):
    return KINDS[name.removesuffix("-trades")]


def method_of(name, model, recipe="", **options):
    """A method whose networks are small, lively and in float64."""
    if recipe:
        options = {"recipe": recipe, "entropy_weight": WEIGHT} | options
    if kind_of(name) == "imp_am":
        options["latent_dim"] = LATENT
    settings = {"epsilon": EPSILON, "image_shape": (3, 6, 5), "generator_width": 3, "noise": noise_stream()}
    method = create_method(name, model, **settings, generator_learning_rate=LEARNING_RATE, **options)
    for seed, network in enumerate(method.joint.networks.values()):
        lively(network.double(), seed)
    return method


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)


def plain_optimizers(model, states):
    betas = {"generator": (0.5, 0.999), "encoder": (0.9, 0.999)}
    adams = [
        torch.optim.Adam(list(weights(state).values()), lr=LEARNING_RATE, betas=betas[name])
        for name, state in states.items()
    ]
    return [sgd(model), *adams]


@pytest.mark.parametrize("name, recipe", STEPS, ids=STEP_NAMES)
def test_steps_equal_plain_ones(problem, name, recipe):
    """Loss, penalty, the gradient of each network, and then its weights and statistics, three steps long."""
    model, images, labels = problem
    kind = kind_of(name)
    method = method_of(name, model, recipe)
    plain, networks = copy.deepcopy(model), method.joint.networks
    states = {network: trainable(module.state_dict()) for network, module in networks.items()}
    trainer, optimizers = Trainer(model, sgd(model), method), plain_optimizers(plain, states)
    for step in range(3):
        draws = NoiseStream(SEED, offset=OFFSET + step)
        noise = ops.normal(images, draws.state)[0] if kind == "exp_am" else the_same_latents(images, draws.offset)
        expected = amortized_step(
            kind, plain, states, images, labels, noise, RECIPES[kind](recipe), epsilon=EPSILON,
            entropy_weight=WEIGHT, trades_weight=6.0 if name.endswith("trades") else None,
        )  # fmt: skip
        trained = [list(plain.parameters()), *(list(weights(state).values()) for state in states.values())]
        gradients = expected.gradients(*trained, *[[]] * (3 - len(trained)))
        result = trainer.step(images, labels)
        assert result.loss == pytest.approx(expected.loss.item(), rel=1e-9)
        assert result.penalty == pytest.approx(expected.penalty.item(), rel=1e-9)
        for module, grads in zip((model, *networks.values()), gradients, strict=False):
            assert_same_gradients([parameter.grad for parameter in module.parameters()], grads)
        for optimizer, parameters, grads in zip(optimizers, trained, gradients, strict=False):
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            optimizer.step()
        assert_same_state(model, plain.state_dict())
        for network, module in networks.items():
            assert_same_state(module, states[network])
    assert method.maximizer.noise.offset == OFFSET + (0 if kind == "l2l" else 3)


def assert_same_state(module, state):
    for name, value in module.state_dict().items():
        torch.testing.assert_close(
            value, state[name].detach(), rtol=0, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_gradients(found, expected):
    """To rounding of the largest of a network's gradients, from which the others come by cancellation."""
    largest = max(grad.abs().max().item() for grad in expected)
    assert largest > 0
    torch.testing.assert_close(found, list(expected), rtol=1e-7, atol=1e-10 * largest)


def objectives(method, model, images, labels):
    """Loss and penalty with the same noise each time, the classifier in eval mode."""
    method.maximizer.noise.load_state_dict({"seed": SEED, "offset": OFFSET})
    perturbed = method.perturb(images, labels)
    loss = method.outer_loss(model.eval(), images, perturbed.images, labels).loss
    return loss, perturbed.penalty


@pytest.mark.parametrize(
    "name, recipe, goal",
    [(*step, goal) for goal in ("loss", "penalty") for step in STEPS if goal == "loss" or step[0] != "l2l"],
)
def test_a_small_step_of_the_networks(problem, name, recipe, goal):
    """Along minus its gradient, a network raises the classifier's loss and lowers the penalty."""
    model, images, labels = problem
    entropy = {"entropy_weight": 0.0 if goal == "loss" else 1e4} if recipe else {}
    method = method_of(name, model, recipe, **entropy)
    loss, penalty = objectives(method, model, images, labels)
    (loss if penalty is None else loss + penalty).backward()
    for network in method.joint.networks.values():
        if goal == "loss" and network is not method.maximizer.generator:
            continue  # the encoder knows nothing of the loss
        norm = torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm()
        assert norm > 0
        step_along(network, -1e-6 / norm)
        new_loss, new_penalty = objectives(method, model, images, labels)
        gain = new_loss - loss if goal == "loss" else penalty - new_penalty
        assert gain.item() == pytest.approx(1e-6 * norm.item(), rel=0.02)
        step_along(network, 1e-6 / norm)


def step_along(network, size):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(parameter.grad, alpha=float(size))


@pytest.mark.parametrize("name", ["l2l", "adt-exp-am", "adt-imp-am-trades"])
def test_training_raises_the_loss_of_a_frozen_classifier(problem, name):
    """Over some steps the generator finds what the classifier does not like."""
    model, images, labels = problem
    options = {} if name == "l2l" else {"recipe": "published", "entropy_weight": 0.0}
    method = method_of(name, model, **options)
    for optimizer in method.joint.optimizers.values():
        optimizer.param_groups[0]["lr"] = 0.01
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.0), method, outer_mode="eval")
    losses = torch.tensor([trainer.step(images, labels).loss for _ in range(60)])
    assert losses[-10:].min() > losses[:5].max()


@pytest.mark.parametrize("name", ["l2l", "adt-exp-am", "adt-imp-am", "adt-exp-am-trades", "adt-imp-am-trades"])
def test_a_step_leaves_modes_and_flags_alone(problem, name):
    """The classifier sees the attack in eval mode, and a frozen weight stays frozen; the generator in its own mode."""
    model, images, labels = problem
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    method = method_of(name, model, "" if name == "l2l" else "published")
    seen = []
    model.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    Trainer(model, sgd(model), method, outer_mode="train").step(images, labels)
    outer = 2 if name.endswith("trades") else 1
    assert seen[-outer:] == [True] * outer and not any(seen[:-outer]) and len(seen) >= outer + 2
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["conv.bias"]
    assert model.conv.bias.grad is None
    for network in method.joint.networks.values():
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", ["l2l", "adt-exp-am", "adt-imp-am", "adt-exp-am-trades", "adt-imp-am-trades"])
def test_steps_are_reproducible(name):
    """In float32: initial weights of the generator are torch's, and noise is the stream's."""
    images, labels = tiny_batch(6)
    found = []
    for seed, torch_seed in ((3, 5), (3, 5), (4, 5), (3, 6)):
        torch.manual_seed(torch_seed)
        model = TinyClassifier()
        settings = {"epsilon": EPSILON, "image_shape": (3, 6, 5), "generator_width": 3, "engine": FLOAT32}
        method = create_method(name, model, noise=NoiseStream(seed), **settings)
        trainer = Trainer(model, sgd(model), method)
        trainer.step(images, labels)
        trainer.step(images, labels)
        found.append([model.fc.weight.detach(), method.maximizer.generator.head.weight.detach()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert torch.equal(found[0][0], found[2][0]) == (name == "l2l"), "L2L draws no noise"
    assert not torch.equal(found[0][0], found[3][0])


@pytest.mark.parametrize("name", ["l2l", "adt-exp-am", "adt-imp-am-trades"])
def test_an_outer_pass_in_bfloat16(name):
    """Generators and encoder run in it too; images, penalty, weights and their gradients stay float32."""
    images, labels = tiny_batch(6)
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = TinyClassifier()
        settings = {"epsilon": EPSILON, "image_shape": (3, 6, 5), "generator_width": 3, "engine": FLOAT32}
        method = create_method(name, model, noise=NoiseStream(SEED), **settings)
        seen = []
        method.maximizer.generator.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(out.dtype))
        losses[precision] = Trainer(model, sgd(model), method, outer_precision=precision).step(images, labels)
        assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32]
        for network in (model, *method.joint.networks.values()):
            for parameter in network.parameters():
                assert parameter.dtype == parameter.grad.dtype == torch.float32
    assert losses["bf16"].loss == pytest.approx(losses["fp32"].loss, rel=0.03)
    assert losses["bf16"].penalty == pytest.approx(losses["fp32"].penalty, rel=0.03, abs=1e-3)


# As attacks


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("recipe", ["published", "paper"])
def test_the_attack_runs_its_networks_in_eval_mode(problem, kind, recipe):
    """Their batch norm statistics and modes are afterwards as they were, and nothing has a graph."""
    model, images, labels = problem
    options = {} if kind == "l2l" else {"recipe": recipe}
    attack = ATTACKS[kind](model, **options)
    attack.generator.blocks[1].eval()
    before = copy.deepcopy({name: network.state_dict() for name, network in attack.networks.items()})
    modes = [module.training for network in attack.networks.values() for module in network.modules()]
    state = trainable(attack.generator.state_dict())
    adversarial = attack(images, labels)
    assert adversarial.shape == images.shape and not adversarial.requires_grad
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial - images).abs().max() <= EPSILON * (1 + 1e-9)
    assert modes == [module.training for network in attack.networks.values() for module in network.modules()]
    for name, network in attack.networks.items():
        torch.testing.assert_close(network.state_dict(), before[name], rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(module.training for module in model.modules())

    scale = attack.gradient_scale
    inputs = generator_inputs(
        copy.deepcopy(model), images, labels, epsilon=EPSILON, scale=scale, clamp=attack.clamp
    )
    z = the_same_latents(images) if kind == "imp_am" else None
    output = generator_output(state, inputs, z, training=False).detach()
    if kind == "exp_am":
        expected, _ = explicit_sample(
            output, images, the_same_normals(images), attack.recipe, epsilon=EPSILON, entropy_weight=0
        )
    else:
        expected = images + EPSILON * output.tanh()
    torch.testing.assert_close(adversarial, expected.clamp(0, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["exp_am", "imp_am"])
def test_only_the_published_recipe_clamps_what_is_trained_on(problem, kind):
    model, images, labels = problem
    published, paper = (
        ATTACKS[kind](model, recipe=name).sample(images, labels).x_adv for name in ("published", "paper")
    )
    assert published.min() >= 0 and published.max() <= 1
    assert paper.min() < 0 and paper.max() > 1


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(problem, kind, context):
    model, images, labels = problem
    expected = ATTACKS[kind](model)(images, labels)
    with context():
        assert torch.equal(ATTACKS[kind](model)(images + 0, labels + 0), expected)


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layout_and_dtype_of_the_images(problem, kind, memory_format):
    model, images, labels = problem
    expected = ATTACKS[kind](model)(images, labels)
    attack = ATTACKS[kind](model.float())
    for network in attack.networks.values():
        network.float()
    adversarial = attack(images.float().contiguous(memory_format=memory_format), labels)
    assert adversarial.dtype == torch.float32 and adversarial.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(adversarial, expected.float(), rtol=0, atol=1e-3)


# Bad settings


@pytest.mark.parametrize(
    "kind, options, error, message",
    [
        ("exp_am", {"generator": "unet"}, TypeError, "generator must be a torch.nn.Module"),
        ("exp_am", {"entropy_weight": float("nan")}, ValueError, "entropy_weight"),
        ("exp_am", {"entropy_weight": None}, TypeError, "entropy_weight"),
        ("exp_am", {"recipe": "Paper"}, ValueError, "recipe must be one of"),
        ("exp_am", {"recipe": PUBLISHED}, TypeError, "an ExpAmRecipe, got ExpRecipe"),
        ("exp_am", {"recipe": "published,hinge=0.9"}, ValueError, "hinge"),
        ("exp_am", {"epsilon": 0.0}, ValueError, "epsilon"),
        ("imp_am", {"generator": None}, TypeError, "generator must be a torch.nn.Module"),
        ("imp_am", {"encoder": None}, TypeError, "encoder must be a torch.nn.Module"),
        ("imp_am", {"entropy_weight": float("inf")}, ValueError, "entropy_weight"),
        ("imp_am", {"recipe": exp_am_recipe("paper")}, TypeError, "an ImpAmRecipe, got ExpAmRecipe"),
        ("imp_am", {"latent_dim": 0}, ValueError, "latent_dim"),
        ("imp_am", {"latent_dim": 64.0}, TypeError, "latent_dim"),
        ("l2l", {"generator": torch.relu}, TypeError, "generator must be a torch.nn.Module"),
        ("l2l", {"gradient_scale": "mean"}, ValueError, "gradient_scale must be one of"),
    ],
)
def test_bad_settings(kind, options, error, message):
    settings = {"epsilon": EPSILON, "generator": torch.nn.Identity()}
    if kind == "imp_am":
        settings["encoder"] = torch.nn.Identity()
    attack = {"exp_am": EXPAM, "imp_am": IMPAM, "l2l": L2L}[kind]
    with pytest.raises(error, match=message):
        attack(TinyClassifier(), **settings | options)


@pytest.mark.parametrize(
    "recipe_of, options, error",
    [
        (exp_am_recipe, {"gradient_scale": "sum"}, ValueError),
        (exp_am_recipe, {"narrow_third_block": 1}, TypeError),
        (exp_am_recipe, {"entropy_reduction": "max"}, ValueError),
        (exp_am_recipe, {"log_offset": -1e-8}, ValueError),
        (exp_am_recipe, {"clamp": "no"}, TypeError),
        (exp_am_recipe, {"accumulate": True}, TypeError),
        (imp_am_recipe, {"gradient_scale": None}, ValueError),
        (imp_am_recipe, {"narrow_third_block": None}, TypeError),
        (imp_am_recipe, {"entropy_weight": float("inf")}, ValueError),
        (imp_am_recipe, {"hinge": "0.9"}, TypeError),
        (imp_am_recipe, {"hinge": float("nan")}, ValueError),
        (imp_am_recipe, {"latent_reduction": ""}, ValueError),
        (imp_am_recipe, {"spread": "std"}, ValueError),
        (imp_am_recipe, {"log_offset": "0"}, TypeError),
        (imp_am_recipe, {"clamp": 1}, TypeError),
    ],
)
def test_recipes_refuse_bad_options(recipe_of, options, error):
    with pytest.raises(error, match=next(iter(options))):
        recipe_of("published", **options)


@pytest.mark.parametrize("kind, out_channels", [("exp_am", 3), ("l2l", 6), ("imp_am", 6)])
def test_a_generator_of_other_images_is_refused(problem, kind, out_channels):
    model, images, labels = problem
    generator = generator_of(out_channels, LATENT if kind == "imp_am" else 0)
    with pytest.raises(ValueError, match="generator must give"):
        ATTACKS[kind](model, generator=generator).sample(images, labels)
