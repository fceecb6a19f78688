"""FeatureAttack against a plain loop over single images and targets; where features come from; what it leaves."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream, ops
from adt_fast.attacks import FeatureAttack
from adt_fast.input_gradient import EngineOptions
from adt_fast.models import create_model

EPSILON, SEED, OFFSET = 0.1, 7, 3
NO_TWIN = EngineOptions(precision="fp32", twin=False)
CHUNKED = EngineOptions(precision="fp32", chunk=2)
SETTINGS = {"targets": 4, "steps": 6}


class Pooled(nn.Module):
    """Somebody else's classifier: the pooling is a module, and a ReLU works in place."""

    def __init__(self, pooling=None):
        super().__init__()
        self.conv1, self.norm, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1) if pooling is None else pooling
        self.fc = nn.Linear(8, 4)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            self.norm.running_mean.copy_(torch.randn(6, generator=generator) * 0.3)
            self.norm.running_var.copy_(torch.rand(6, generator=generator) + 0.5)
            images, _ = tiny_batch(16, seed=2)
            self.eval().fc.bias.sub_(self(images).mean(0))

    def map_before_pooling(self, images):
        return self.conv2(self.relu(self.norm(self.conv1(images))))

    def forward(self, images):
        return self.fc(self.pool(self.map_before_pooling(images)).flatten(1))


class WithMethod(Pooled):
    """A classifier like this library's: features(images) is the map, and pooling is a function."""

    def __init__(self):
        super().__init__(pooling=nn.Identity())

    def features(self, images):
        return self.map_before_pooling(images)

    def forward(self, images):
        return self.fc(self.features(images).mean((2, 3)))


def plain_stages(model, images):
    """The values on the way to the logits, and these, from the weights."""
    norm, stages = model.norm, {}
    stages["conv1"] = F.conv2d(images, model.conv1.weight, model.conv1.bias, padding=1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    centred = stages["conv1"] - norm.running_mean.view(-1, 1, 1)
    stages["norm"] = centred * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    stages["pre-pool"] = F.conv2d(stages["norm"].clamp(min=0), model.conv2.weight, model.conv2.bias, padding=1)
    stages["post-pool"] = stages["pre-pool"].mean((2, 3))
    stages["logits"] = stages["post-pool"] @ model.fc.weight.T + model.fc.bias
    return stages


def plain_cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def plain_order(labels, pool_labels, example):
    """The pool's images of another class, by their keys of draw 0, float32 whatever the images."""
    zeros = torch.zeros(1, len(pool_labels), device=labels.device)
    noise = NoiseStream(SEED, labels.device, offset=OFFSET).state
    keys = ops.uniform_start_(
        zeros.clone(), zeros, noise, epsilon=1, lower=-math.inf, upper=math.inf, first_example=example
    )[0].tolist()
    others = [j for j, label in enumerate(pool_labels.tolist()) if label != int(labels[example])]
    return sorted(others, key=lambda j: keys[j])


def plain_attack(model, images, labels, example, pool, *, stage, targets, steps, step_size=EPSILON / 8):
    """One image, one target after another; the adversarial image, and how many targets were tried."""
    image, label = images[example : example + 1], int(labels[example])
    noise = NoiseStream(SEED, images.device, offset=OFFSET).state
    if plain_stages(model, image)["logits"].argmax() != label:
        return image, 0
    for trial, j in enumerate(plain_order(labels, pool[1], example)[:targets]):
        wanted = plain_stages(model, pool[0][j : j + 1])[stage].detach()
        x = ops.uniform_start_(image.clone(), image, noise, epsilon=EPSILON, draw=1 + trial, first_example=example)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(plain_cosine(plain_stages(model, x)[stage], wanted), x)
            x = x.detach() + step_size * grad.sign()
            x = torch.min(torch.max(x, image - EPSILON), image + EPSILON).clamp(0, 1)
        if plain_stages(model, x)["logits"].argmax() != label:
            break
    return x.detach(), trial + 1


def plain_results(model, images, labels, pool=None, **settings):
    settings = {"stage": "pre-pool"} | SETTINGS | settings
    results = [plain_attack(model, images, labels, b, pool or (images, labels), **settings) for b in range(len(images))]
    return torch.cat([x for x, _ in results]), [tried for _, tried in results]


@pytest.fixture
def problem(device):
    """In float64: ten images, one of them misclassified as it is."""
    model, (images, _) = Pooled().double().to(device), tiny_batch(10)
    images = images.double().to(device)
    labels = model(images).argmax(1)
    labels[2] = (labels[2] + 1) % 4
    assert len(labels.unique()) >= 3
    return model, images, labels


def attack_for(model, epsilon=EPSILON, **options):
    return FeatureAttack(model, epsilon, noise=NoiseStream(SEED, offset=OFFSET), **SETTINGS | options)


def assert_same_images(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("engine", [None, NO_TWIN, CHUNKED], ids=["twin", "no-twin", "chunked"])
@pytest.mark.parametrize("features", ["pre-pool", "post-pool"])
@pytest.mark.parametrize("kind", ["hook", "method"])
def test_against_a_plain_loop(problem, kind, features, engine):
    model, images, labels = problem
    if kind == "method":
        model = WithMethod().double().to(images.device)
        model.load_state_dict(problem[0].state_dict())
    expected, tried = plain_results(model, images, labels, stage=features)
    attack = attack_for(model, features=features, **({} if engine is None else {"engine": engine}))
    assert_same_images(attack(images, labels), expected)
    assert attack.noise.offset == OFFSET + 1 + SETTINGS["targets"]
    # The problem is one: an image that is left alone, some that are done early, and some never.
    wrong = model(expected).argmax(1) != labels
    assert tried[2] == 0 and torch.equal(expected[2], images[2])
    assert {2, SETTINGS["targets"]} <= set(tried) and wrong.sum() >= 3 and not wrong.all()
    twin = attack.feature_gradient.twin
    assert (twin is None) == (engine is NO_TWIN)
    assert twin is None or (not twin.unfused_because and twin.folded == 1), "a hook does not keep it from being fused"


@pytest.mark.parametrize("layer, layer_input, stage", [
    ("norm", False, "norm"),  # which the ReLU after it overwrites
    ("norm", True, "conv1"),
    ("conv2", False, "pre-pool"),
    ("pool", True, "pre-pool"),
    ("fc", True, "post-pool"),
    ("fc", False, "logits"),
])  # fmt: skip
@pytest.mark.parametrize("engine", [EngineOptions(precision="fp32"), NO_TWIN], ids=["twin", "no-twin"])
def test_a_named_layer(problem, layer, layer_input, stage, engine):
    model, images, labels = problem
    expected, _ = plain_results(model, images, labels, stage=stage)
    attack = attack_for(model, layer=layer, layer_input=layer_input, engine=engine)
    assert_same_images(attack(images, labels), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    twin = attack.feature_gradient.twin
    assert twin is None if engine is NO_TWIN else not twin.unfused_because


def test_weights_may_change_between_calls(problem):
    """The frozen copies follow them."""
    model, images, labels = problem
    attack = attack_for(model)
    attack(images, labels)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.norm.buffers()):
            tensor.mul_(1.1) if tensor.is_floating_point() else None
    attack.noise = NoiseStream(SEED, offset=OFFSET)
    expected, _ = plain_results(model, images, labels)
    assert_same_images(attack(images, labels), expected)
    assert attack.feature_gradient.twin is not None


def test_it_approaches_the_target(problem):
    """As the authors' code, and not as the paper's text: the cosine with the only target rises for every image."""
    model, images, labels = problem
    labels = model(images).argmax(1)
    target = tiny_batch(1, seed=5)[0].double().to(images.device)
    pool = (target, torch.zeros(1, dtype=torch.int64, device=images.device))
    assert (labels != 0).all()
    found = attack_for(model, pool=pool)(images, labels)
    wanted = plain_stages(model, target)["pre-pool"]
    for before, after in zip(images.split(1), found.split(1), strict=True):
        cosines = [plain_cosine(plain_stages(model, x)["pre-pool"], wanted) for x in (before, after)]
        assert cosines[1] > cosines[0] + 0.001


def test_a_pool_of_targets(problem):
    """Where it has fewer of other classes than wanted, each is tried once: here three, or one for some images."""
    model, images, labels = problem
    pool_images, _ = tiny_batch(3, seed=5)
    common = int(labels.mode().values)
    pool_labels = torch.tensor([common, common, (common + 1) % 4], device=images.device)
    pool = (pool_images.double().to(images.device), pool_labels)
    expected, tried = plain_results(model, images, labels, pool, targets=50)
    assert {1, 3} <= set(tried) and max(tried) == 3
    attack = attack_for(model, pool=pool, targets=50)
    assert_same_images(attack(images, labels), expected)
    assert attack.noise.offset == OFFSET + 51


def test_no_image_of_another_class(problem):
    model, images, _ = problem
    labels = torch.full((len(images),), 3, device=images.device)
    with pytest.raises(ValueError, match=r"images must have one of another class than 3, .* pool"):
        attack_for(model)(images, labels)
    attack = attack_for(model, pool=(images, labels))
    labels = labels.clone()
    labels[4] = 2
    with pytest.raises(ValueError, match="pool must have one of another class than 3"):
        attack(images, labels)
    assert attack.noise.offset == OFFSET


def test_an_image_does_not_depend_on_how_the_others_fare(problem):
    model, images, labels = problem
    pool = (images.flip(0), labels.flip(0))
    results = []
    for others in (labels, (model(images).argmax(1) + 1) % 4):
        mixed = others.clone()
        mixed[5] = labels[5]
        results.append(attack_for(model, pool=pool)(images, mixed)[5])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_targets_are_the_same_in_float32(problem):
    """And so is the attack, but for rounding."""
    model, images, labels = problem
    expected = attack_for(model, steps=1)(images, labels)
    found = attack_for(copy.deepcopy(model).float(), steps=1)(images.float(), labels)
    assert ((found - expected).abs() < 1e-5).double().mean() > 0.97


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1", "preactresnet-18"])
def test_this_librarys_models(name):
    model = create_model(name, num_classes=4, in_channels=3).eval()
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    attack = attack_for(model, targets=2, steps=2, pool=(images, torch.arange(6) % 4))
    found = attack(images, labels)
    assert not torch.equal(found[1:], images[1:]) and torch.equal(found[0], images[0])
    assert not attack.feature_gradient.twin.unfused_because


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_adversarial_images(memory_format):
    """In float32: inside ball and bounds, of the images' kind, and no trace on the model or the images."""
    model, (images, _) = Pooled(), tiny_batch(10)
    labels = model(images).argmax(1)
    images = images.contiguous(memory_format=memory_format)
    model.train()
    model.norm.eval()
    model.conv1.weight.requires_grad_(False)
    model.fc.bias.grad = torch.ones(4)
    state, original = copy.deepcopy(model.state_dict()), images.clone()
    attack = attack_for(model)
    assert attack.perturb(images, labels).shape == (1, *images.shape)
    for options in ({}, {"engine": NO_TWIN}, {"layer": "norm", "engine": NO_TWIN}):
        adversarial = attack_for(model, **options)(images, labels)
        assert adversarial.shape == images.shape and adversarial.dtype == images.dtype
        assert adversarial.is_contiguous(memory_format=memory_format) and not adversarial.requires_grad
        assert (adversarial - images).abs().max() <= EPSILON * (1 + 1e-6)
        assert adversarial.min() >= 0 and adversarial.max() <= 1 and torch.equal(images, original)
        assert model.training and model.conv1.training and not model.norm.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
        assert [name for name, p in model.named_parameters() if p.grad is not None] == ["fc.bias"]
        assert torch.equal(model.fc.bias.grad, torch.ones(4))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_other_data_bounds(problem):
    model, images, labels = problem
    images = images * 4 - 2
    labels = (labels + torch.arange(len(labels), device=labels.device)) % 4
    adversarial = attack_for(model, 0.3, lower=-2, upper=2)(images, labels)
    assert adversarial.min() == -2 and adversarial.max() == 2 and (adversarial < 0).any()
    assert (adversarial - images).abs().max() <= 0.3 * (1 + 1e-6)


def test_under_inference_mode(problem):
    """Also with a pool that was made there."""
    model, images, labels = problem
    expected = attack_for(model)(images, labels)
    with torch.inference_mode():
        attack = attack_for(model, pool=(images + 0, labels + 0))
        assert torch.equal(attack(images + 0, labels + 0), expected)
    attack.noise = NoiseStream(SEED, offset=OFFSET)
    assert torch.equal(attack(images, labels), expected)


def test_restarts(problem):
    """On the images that are left, with a pool of all, and the noise that comes next."""
    model, images, labels = problem
    options = {"pool": (images, labels), "targets": 1, "features": "post-pool"}
    first, second = attack_for(model, **options), attack_for(model, **options)
    once = first(images, labels)
    left = model(once).argmax(1) == labels
    second.noise = NoiseStream(SEED, offset=first.noise.offset)
    again = second(images[left], labels[left])
    expected = once.clone()
    expected[left] = again
    wrong = model(expected).argmax(1) != labels
    assert wrong[left].any() and wrong[~left].all() and not left.all()
    attack = attack_for(model, restarts=2, **options)
    assert torch.equal(attack(images, labels)[wrong], expected[wrong])
    assert attack.noise.offset == second.noise.offset


def test_in_16_bits(problem):
    """The guard compares gradients of the features, whatever their targets, and lets a sound model be."""
    model, images, labels = copy.deepcopy(problem[0]).float(), problem[1].float(), problem[2]
    attack = attack_for(model, engine=EngineOptions(precision="bf16"))
    found = attack(images, labels)
    assert attack.feature_gradient.guard.allowed
    assert torch.bfloat16 in {parameter.dtype for parameter in attack.feature_gradient.twin.module.parameters()}
    assert (found - images).abs().max() <= EPSILON * (1 + 1e-6)


def test_wrappers_are_taken_off(problem):
    model, images, labels = problem
    attack = attack_for(nn.DataParallel(model))
    assert attack.model is model and torch.equal(attack(images, labels), attack_for(model)(images, labels))


def test_no_steps(problem):
    """The starts of the last target."""
    model, images, labels = problem
    found = attack_for(model, 1e-6, steps=0)(images, labels)
    noise = NoiseStream(SEED, images.device, offset=OFFSET).state
    last = min(SETTINGS["targets"], int((labels[0] != labels).sum()))
    start = ops.uniform_start_(images.clone(), images, noise, epsilon=1e-6, draw=last)
    assert torch.equal(found[0], start[0]) and torch.equal(found[2], images[2])


@pytest.mark.parametrize("where", ["pool", "norm"])
@pytest.mark.parametrize("layer", [None, "norm"])
def test_a_model_that_fails_is_given_back(problem, where, layer):
    """A hook of the user's raises in a pass that the attack's own hook is there for."""
    model, images, labels = problem
    attack = attack_for(model, layer=layer)
    model.train()

    def fail(module, inputs):
        if torch.is_grad_enabled():
            assert sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in model.modules()) == 2
            raise RuntimeError("planted")

    hook = model.get_submodule(where).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        attack(images, labels)
    hook.remove()
    assert all(module.training for module in model.modules()) and attack.noise.offset == OFFSET
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_hooks_of_the_users_stay_and_count(problem):
    """A hook changes what the pooling gets: those are the features then, and the attack runs the classifier itself."""
    model, images, labels = problem
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.conv2.bias.add_(0.7)
    expected, _ = plain_results(doubled, images, labels)
    model.pool.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.7,))
    attack = attack_for(model)
    assert_same_images(attack(images, labels), expected)
    assert attack.feature_gradient.twin is None and len(model.pool._forward_pre_hooks) == 1


def test_dead_features(problem):
    """Features that are all zero have no direction: no step, and no NaN."""
    model, images, labels = problem
    with torch.no_grad():
        model.conv2.weight.zero_()
        model.conv2.bias.zero_()
    labels = model(images).argmax(1)
    labels[1:] = (labels[1:] + 1) % 4
    assert attack_for(model)(images, labels).isfinite().all()


class NanOnTheWay(WithMethod):
    """Where a gradient is taken, and nowhere else."""

    def features(self, images):
        found = super().features(images)
        return found * float("nan") if torch.is_grad_enabled() else found


def test_values_that_are_not_finite(problem):
    """In the gradient of the features, or in the logits alone, where they would pass for a misclassification."""
    model, images, labels = problem
    nan = NanOnTheWay().double().to(images.device)
    nan.load_state_dict(model.state_dict())
    with pytest.raises(FloatingPointError, match="input gradient is NaN"):
        attack_for(nan, engine=NO_TWIN)(images, labels)
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits of 10 of 10 images are NaN"):
        attack_for(model)(images, labels)


def test_the_papers_settings_are_the_defaults():
    attack = FeatureAttack(WithMethod(), 0.08)
    assert (attack.most_targets, attack.steps, attack.step_size) == (200, 50, 0.01)
    assert not attack.feature_map.pooled and attack.pool is None


# Finding the features


class TwoPoolings(Pooled):
    def __init__(self):
        super().__init__()
        self.attention = nn.Sequential(nn.AvgPool2d(2))


def test_the_layer_must_be_named_where_it_is_not_clear():
    with pytest.raises(ValueError, match=r"layer must name .* has no pooling layer .*conv, norm, fc"):
        FeatureAttack(TinyClassifier())
    with pytest.raises(ValueError, match=r"layer must name .* has 2 pooling layers \(pool, attention.0\)"):
        FeatureAttack(TwoPoolings())
    assert FeatureAttack(TwoPoolings(), layer="pool", layer_input=True).feature_map.layer == "pool"
    assert FeatureAttack(Pooled(nn.AvgPool2d((6, 5)))).feature_map.layer == "pool"


def test_a_part_called_features_is_no_method():
    """In some published networks it is not all that precedes the pooling."""
    model = nn.Sequential()
    model.features = nn.Conv2d(3, 4, 1)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    feature_map = FeatureAttack(model).feature_map
    assert not feature_map.method and feature_map.layer == "avgpool"


class Pair(nn.Module):
    def forward(self, *, x):
        return x, x


class Odd(nn.Module):
    """Passes a layer twice, gives a layer a keyword only, and has one that gives a pair and one that never runs."""

    def __init__(self):
        super().__init__()
        self.model, self.pair, self.idle = Pooled(), Pair(), nn.Identity()

    def forward(self, images):
        return self.model(self.model.relu(self.pair(x=images.clone())[0]))


@pytest.mark.parametrize("layer, layer_input, message", [
    ("model.relu", False, "layer 'model.relu' must run once in a pass of the model, it ran 2 times"),
    ("idle", False, "layer 'idle' must run once in a pass of the model, it ran 0 times"),
    ("pair", False, r"layer 'pair' must have features \[N, ...\], got tuple"),
    ("pair", True, r"layer 'pair' must have features \[N, ...\], got NoneType"),
])  # fmt: skip
def test_layers_without_features(problem, layer, layer_input, message):
    _, images, labels = problem
    model = Odd().double().to(images.device).train()
    attack = attack_for(model, layer=layer, layer_input=layer_input)
    with pytest.raises(ValueError, match=message):
        attack(images, labels)
    assert all(module.training for module in model.modules()) and attack.noise.offset == OFFSET
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_method_whose_features_are_no_map(problem):
    _, images, labels = problem
    model = WithMethod().double().to(images.device)
    model.features = lambda images: model.map_before_pooling(images).mean((2, 3))
    with pytest.raises(ValueError, match=r"features='post-pool' needs a feature map .* gave \[1, 8\]"):
        model.forward = lambda images: model.fc(model.features(images))
        attack_for(model, features="post-pool")(images, labels)


# Bad arguments


@pytest.mark.parametrize("options, error, message", [
    ({"targets": 0}, ValueError, "targets must be in"),
    ({"targets": 2.0}, TypeError, "targets must be an int"),
    ({"steps": -1}, ValueError, "steps must be in"),
    ({"step_size": 0}, ValueError, "step_size must be > 0"),
    ({"features": "logits"}, ValueError, "features must be one of 'pre-pool', 'post-pool'"),
    ({"features": "post-pool", "layer": "pool"}, ValueError, "features must be left out"),
    ({"layer": "poool"}, ValueError, "layer: unknown module 'poool'; did you mean 'pool'"),
    ({"layer": ""}, ValueError, "layer: unknown module ''"),
    ({"layer": 3}, TypeError, "layer must be the name of a module or None"),
    ({"layer_input": True}, ValueError, "layer_input=True needs the name of a layer"),
    ({"layer": "pool", "layer_input": 1}, TypeError, "layer_input must be a bool"),
    ({"target": "given"}, ValueError, "target must be 'none' for FeatureAttack"),
    ({"restarts": 2}, ValueError, "restarts needs a pool"),
    ({"loss": F.cross_entropy}, TypeError, "loss is no option of FeatureAttack"),
    ({"pool": 3}, TypeError, "pool must be a pair"),
    ({"pool": (torch.rand(2, 3, 6, 5) + 1, torch.tensor([0, 1]))}, ValueError, "pool: images must be finite, in"),
    ({"pool": (torch.rand(2, 3, 6, 5), torch.tensor([0, 4]))}, ValueError, "pool: labels must be in"),
    ({"pool": (torch.rand(2, 3, 6, 5), torch.tensor([0.0, 1.0]))}, TypeError, "pool: labels must be an int64"),
    ({"epsilon": 0}, ValueError, "epsilon must be > 0"),
])  # fmt: skip
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        FeatureAttack(Pooled(), **options)


@pytest.mark.parametrize("pool, error, message", [
    (torch.rand(2, 3, 6, 5), TypeError, "pool must have images of the attacked ones' dtype, torch.float64"),
    (torch.rand(2, 3, 6, 6).double(), ValueError, r"pool must have images of the attacked ones' shape, \[3, 6, 5\]"),
])  # fmt: skip
def test_a_pool_of_other_images(problem, pool, error, message):
    model, images, labels = problem
    attack = attack_for(model.to(pool.dtype), pool=(pool.to(images.device), labels.unique()[:2]))
    model.double()
    with pytest.raises(error, match=message):
        attack(images, labels)
    assert attack.noise.offset == OFFSET
