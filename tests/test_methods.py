"""The training methods: what each is made of, a step of each, bad options, and precision whatever the caller's."""

import math

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream
from adt_fast.attacks import EXP, EXPAM, FGSM, IMPAM, L2L, PGD, FeatureScatter
from adt_fast.input_gradient import FLOAT32, EngineOptions, InputGradient
from adt_fast.losses import KLFromNatural, Lowered, cross_entropy
from adt_fast.methods import (
    CrossEntropy,
    HalfClean,
    Trades,
    create_method,
    describe_method,
    method_names,
    method_spec,
)
from adt_fast.models import SmallCNN
from adt_fast.trainer import Trainer

EPSILON, SEED = 0.1, 5

# Maximizer, the loss that it raises, outer loss, draws of the noise in a minibatch.
PARTS = {
    "standard": (None, None, CrossEntropy(), 0),
    "at-fgsm": (FGSM, Lowered(cross_entropy), HalfClean(), 0),
    "at-pgd": (PGD, cross_entropy, CrossEntropy(), 1),
    "alp": (PGD, cross_entropy, HalfClean(logit_weight=0.5), 1),
    "feascatter": (FeatureScatter, cross_entropy, CrossEntropy(label_smoothing=0.5), 1),
    "trades": (PGD, KLFromNatural(6.0), Trades(6.0), 1),
    "l2l": (L2L, cross_entropy, CrossEntropy(), 0),
    "adt-exp": (EXP, cross_entropy, CrossEntropy(), 8),
    "adt-exp-am": (EXPAM, cross_entropy, CrossEntropy(), 1),
    "adt-imp-am": (IMPAM, cross_entropy, CrossEntropy(), 1),
    "adt-exp-trades": (EXP, KLFromNatural(6.0), Trades(6.0), 8),
    "adt-exp-am-trades": (EXPAM, cross_entropy, Trades(6.0), 1),
    "adt-imp-am-trades": (IMPAM, cross_entropy, Trades(6.0), 1),
}
JOINT = {"l2l": 1, "adt-exp-am": 1, "adt-imp-am": 2, "adt-exp-am-trades": 1, "adt-imp-am-trades": 2}  # networks


def method_of(name, model, image_shape=(3, 6, 5), **options):
    if name in JOINT:
        options = {"generator_width": 3, "image_shape": image_shape} | options
    return create_method(name, model, **{"epsilon": EPSILON, "noise": NoiseStream(SEED)} | options)


def grey_batch(batch=6):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, 1, 8, 8, generator=generator), torch.randint(4, (batch,), generator=generator)


def colour():
    return TinyClassifier(), *tiny_batch(6)


def grey():
    return SmallCNN(num_classes=4, in_channels=1), *grey_batch()


def test_every_method_is_in_the_table():
    assert set(method_names()) == set(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_the_parts(name):
    maximizer, inner_loss, outer_loss, _ = PARTS[name]
    model = TinyClassifier()
    method = method_of(name, model)
    assert method.outer_loss == outer_loss
    assert (method.joint is not None) == (name in JOINT)
    if maximizer is None:
        assert method.maximizer is None
        return
    assert type(method.maximizer) is maximizer and method.maximizer.model is model
    assert method.maximizer.input_gradient.loss == inner_loss
    assert method.maximizer.input_gradient.model_mode == "eval"
    assert method.maximizer.epsilon == EPSILON
    if method.joint is not None:
        assert len(method.joint.networks) == JOINT[name] and method.joint.networks == method.maximizer.networks


def test_the_papers_settings():
    """Of the maximizers, by default (Sections 5.1, C.3 and C.4)."""
    model = TinyClassifier()
    assert method_of("at-fgsm", model).maximizer.target == "least-likely"
    for name, steps in (("at-pgd", 7), ("alp", 7), ("trades", 10)):
        pgd = method_of(name, model, epsilon=8 / 255).maximizer
        assert (pgd.steps, pgd.step_size) == (steps, 2 / 255)
    for name in ("adt-exp", "adt-exp-trades"):
        exp = method_of(name, model).maximizer
        assert (exp.steps, exp.samples, exp.step_size, exp.entropy_weight) == (7, 5, 0.3, 0.01)
    assert method_of("adt-exp-am", model).maximizer.entropy_weight == 0.01
    assert method_of("adt-imp-am", model).maximizer.entropy_weight == 1.0
    assert method_of("adt-imp-am", model, recipe="paper").maximizer.entropy_weight == 0.01
    assert method_of("adt-imp-am", model).maximizer.latent_dim == 64
    assert method_of("l2l", model).maximizer.gradient_scale == "max_abs"
    scatter = method_of("feascatter", model).maximizer
    assert (scatter.steps, scatter.step_size, scatter.regularization) == (1, EPSILON, 0.01)


def one_image():
    return SmallCNN(num_classes=4, in_channels=1), *grey_batch(1)


def double():
    model, images, labels = colour()
    return model.double(), images.double(), labels


@pytest.mark.parametrize("make", [colour, grey, one_image, double])
@pytest.mark.parametrize("name", PARTS)
def test_a_step(name, make, device):
    """Finite, of every network, within epsilon, and with as many draws as the maximizer says."""
    torch.manual_seed(0)
    model, images, labels = (one.to(device) for one in make())
    method = method_of(name, model, image_shape=tuple(images.shape[1:]))
    networks = [model, *(method.joint.networks.values() if method.joint else ())]
    before = [[parameter.detach().clone() for parameter in network.parameters()] for network in networks]
    perturbed = method.perturb(images, labels)
    assert perturbed.images.shape == (1, *images.shape)
    assert perturbed.images.requires_grad == (name in JOINT) and perturbed.images.dtype == images.dtype
    largest = (perturbed.images[0] - images).abs().max()
    assert largest == 0 if name == "standard" else 0 < largest <= EPSILON * (1 + 1e-6)
    assert perturbed.images.min() >= 0 and perturbed.images.max() <= 1
    assert (perturbed.penalty is not None) == (name in JOINT and name != "l2l")

    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), method)
    results = [trainer.step(images, labels) for _ in range(2)]
    for result in results:
        assert math.isfinite(result.loss) and result.images == len(images) and 0 <= result.accuracy <= 1
        assert math.isfinite(result.penalty) and (result.penalty != 0) <= (name in JOINT)
    for network, old in zip(networks, before, strict=True):
        moved = [not torch.equal(a, b) for a, b in zip(network.parameters(), old, strict=True)]
        assert any(moved) and all(torch.isfinite(parameter).all() for parameter in network.parameters())
    if method.maximizer is not None:
        assert method.maximizer.noise.offset == 3 * PARTS[name][3]


@pytest.mark.parametrize("recipe", ["published", "paper", "paper,clamp=true"])
@pytest.mark.parametrize("name", [name for name in PARTS if name.startswith("adt")])
def test_a_step_of_each_recipe(name, recipe):
    model, images, labels = colour()
    method = method_of(name, model, recipe=recipe)
    result = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), method).step(images, labels)
    assert math.isfinite(result.loss + result.penalty)


@pytest.mark.parametrize("name", PARTS)
def test_defaults_are_the_options(name):
    """Each can be given, set to what it is by default."""
    defaults = method_spec(name).defaults()
    assert not defaults.keys() & {"model", "epsilon", "image_shape", "maximizer", "options", "target_"}
    width = {"generator_width": 3} if name in JOINT else {}
    method = method_of(name, TinyClassifier(), **defaults | width)
    assert method.outer_loss == method_of(name, TinyClassifier()).outer_loss


def test_defaults_of_some_methods():
    assert method_spec("trades").defaults() == {
        "steps": 10, "step_size": None, "norm": "linf", "random_start": True, "trades_weight": 6.0,
        "repeat_natural": False,
    }  # fmt: skip
    assert method_spec("l2l").defaults() == {
        "generator_width": 256, "narrow_third_block": True, "gradient_scale": "max_abs", "label_smoothing": 0.0,
        "generator_learning_rate": 2e-4,
    }  # fmt: skip
    assert method_spec("adt-imp-am").defaults() == {
        "generator_width": 256, "latent_dim": 64, "entropy_weight": None, "recipe": "published",
        "label_smoothing": 0.0, "generator_learning_rate": 2e-4,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PARTS if name != "standard"])
def test_the_models_mode_while_it_is_attacked_matters(name):
    """In train mode, batch norm uses the statistics of the batch: another perturbation."""
    perturbed = {}
    for mode in ("eval", "train"):
        torch.manual_seed(0)
        model, images, labels = double()
        method = method_of(name, model, model_mode=mode, engine=FLOAT32)
        assert method.maximizer.input_gradient.model_mode == mode
        perturbed[mode] = method.perturb(images, labels).images
    assert (perturbed["eval"] - perturbed["train"]).abs().max() > 1e-6


def test_an_option_that_two_parts_share_is_given_to_both():
    method = method_of("adt-exp-trades", TinyClassifier(), trades_weight=2.5)
    assert method.outer_loss == Trades(2.5)
    assert method.maximizer.input_gradient.loss == KLFromNatural(2.5)


@pytest.mark.parametrize("name", PARTS)
def test_methods_in_words(name):
    text = describe_method(name)
    assert text.startswith(f"{name}: {method_spec(name).summary}")
    for option in method_spec(name).defaults():
        assert f"{option}=" in text
    assert ("maximizer" in text) == (name != "standard") and ("trains" in text) == (name in JOINT)


@pytest.mark.parametrize(
    "name, options, error, message",
    [
        ("adt_exp", {}, ValueError, "did you mean 'adt-exp'"),
        ("", {}, ValueError, "unknown method ''"),
        ("standard", {"steps": 3}, ValueError, "steps is no option of method 'standard', which has label_smoothing"),
        ("at-pgd", {"recipe": "paper"}, ValueError, "recipe is no option of method 'at-pgd'"),
        ("adt-exp", {"trades_weight": 6.0}, ValueError, "trades_weight is no option"),
        ("adt-exp-am", {"latent_dim": 64}, ValueError, "latent_dim is no option"),
        ("at-pgd", {"epsilon": 0.0}, ValueError, "epsilon"),
        ("at-pgd", {"noise": 3}, TypeError, "noise"),
        ("at-pgd", {"engine": "fp32"}, TypeError, "EngineOptions"),
        ("at-fgsm", {"target": "random"}, ValueError, "target"),
        ("feascatter", {"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        ("trades", {"trades_weight": -6.0}, ValueError, "trades_weight"),
        ("trades", {"random_start": "uniform"}, ValueError, "random_start"),
        ("alp", {"logit_weight": -0.5}, ValueError, "logit_weight"),
        ("adt-exp-am", {"image_shape": None}, ValueError, "image_shape must be given"),
        ("adt-exp-am", {"image_shape": (3, 32)}, ValueError, "image_shape"),
        ("adt-exp-am", {"image_shape": (3, 0, 32)}, ValueError, "image_shape"),
        ("adt-exp-am", {"image_shape": (3, 32.0, 32)}, ValueError, "image_shape"),
        ("adt-exp-am", {"image_shape": 32}, TypeError, "image_shape"),
        ("adt-exp-am", {"generator_width": 0}, ValueError, "width"),
        ("adt-exp-am", {"recipe": "published,hinge=1"}, ValueError, "hinge"),
        ("adt-imp-am", {"latent_dim": 0}, ValueError, "latent_dim"),
        ("adt-imp-am", {"generator_learning_rate": 0.0}, ValueError, "generator_learning_rate"),
        ("l2l", {"gradient_scale": "sum"}, ValueError, "gradient_scale"),
    ],
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message):
        create_method(name, TinyClassifier(), **options if name not in JOINT else {"image_shape": (3, 6, 5)} | options)


# Precision


def runs(model):
    """Everything that runs on the engine; the generators of attacks are the caller's own."""
    options = {"engine": FLOAT32, "noise": NoiseStream(SEED)}
    yield "fgsm", FGSM(model, EPSILON, target="least-likely", **options)
    yield "pgd", PGD(model, EPSILON, steps=3, **options)
    yield "kl", PGD(model, EPSILON, steps=3, loss=KLFromNatural(), random_start="gaussian", **options)
    yield "exp", EXP(model, EPSILON, steps=2, samples=2, **options)
    yield "worst of three", EXP(model, EPSILON, steps=1, samples=2, recipe="published,outer_samples=3", **options)
    yield "feature scattering", FeatureScatter(model, EPSILON, **options)
    for name in ("l2l", "adt-exp-am", "adt-imp-am"):
        yield name, method_of(name, model, **options).maximizer.generator_inputs
    yield "no twin", PGD(model, EPSILON, steps=2, **options | {"engine": EngineOptions(precision="fp32", twin=False)})
    yield "the gradient", lambda images, labels: InputGradient(model)(images, labels).grad
    yield "losses", InputGradient(model).losses


@pytest.mark.parametrize("index, name", list(enumerate(dict(runs(TinyClassifier())))))
def test_the_callers_autocast_does_not_matter(index, name):
    """The engine's precision is that of its options."""
    model, images, labels = TinyClassifier().eval(), *tiny_batch(6)
    expected = list(runs(model))[index][1](images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.bfloat16
        found = list(runs(model))[index][1](images, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected), name


@pytest.mark.parametrize("name", [name for name in PARTS if name != "standard"])
def test_a_methods_attack_ignores_the_outer_precision(name):
    """Trained in bfloat16, the classifier still sees the attack in float32."""
    model, images, labels = TinyClassifier(), *tiny_batch(6)
    seen = []
    model.fc.register_forward_hook(lambda module, inputs, logits: seen.append((module.training, logits.dtype)))
    method = method_of(name, model, engine=FLOAT32)
    result = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), method, outer_precision="bf16").step(
        images, labels
    )
    assert math.isfinite(result.loss)
    assert set(seen) == {(False, torch.float32), (True, torch.bfloat16)}
