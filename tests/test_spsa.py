"""SPSA against a plain loop over single images, query by query; what it asks the model, and what it leaves behind."""

import copy

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream, ops
from adt_fast.attacks import SPSA
from adt_fast.input_gradient import EngineOptions, GradientSession
from adt_fast.losses import KLFromNatural

EPSILON, SEED, OFFSET = 0.1, 7, 3
NO_TWIN = EngineOptions(precision="fp32", twin=False, chunk=None)
SETTINGS = {"samples": 16, "steps": 12, "step_size": 0.01, "sigma": 0.001}


def classified_right():
    """A classifier and images of all four classes."""
    model, (images, _) = TinyClassifier(), tiny_batch(8)
    with torch.no_grad():
        model.fc.bias.sub_(model.eval()(images).mean(0))
    return model, images, model(images).argmax(1)


@pytest.fixture
def problem(device):
    """In float64. One of the images is misclassified as it is, some will be after a few steps, and some never."""
    model, images, labels = classified_right()
    labels[2] = (labels[2] + 1) % 4
    return model.double().to(device), images.double().to(device), labels.to(device)


def margin(logits, label):
    return max(logit for k, logit in enumerate(logits.tolist()) if k != label) - float(logits[label])


def divergence(logits, natural):
    p, q = (values.exp() / values.exp().sum() for values in (natural, logits))
    return 6 * float((p * (p / q).log()).sum())


def noise_of(images, *, samples, steps, random_start):
    """Starts ``[B, ...]`` and the directions of each step ``[samples / 2, B, ...]``, as the attack documents them."""
    noise = NoiseStream(SEED, images.device, offset=OFFSET).state
    start = ops.uniform_start_(images.clone(), images, noise, epsilon=EPSILON) if random_start else images
    normals = [ops.normal(images, noise, samples=samples // 2, draw=t + random_start) for t in range(steps)]
    return start, [torch.where(step < 0, -1.0, 1.0).double() for step in normals]


def plain_spsa(model, image, label, start, directions, *, step_size, sigma, goal):
    """One image ``[C, H, W]``, one query at a time; torch.optim.Adam. The adversarial image, and the queries.

    goal: "none", "given", "least-likely", or "divergence", to leave the natural logits.
    """
    queries = 0

    def ask(at):
        nonlocal queries
        queries += 1
        with torch.no_grad():
            return model(at[None])[0]

    if goal in ("least-likely", "divergence"):
        natural = ask(image)
    if goal == "least-likely":
        label = int(natural.argmin())

    def loss(logits):
        if goal == "divergence":
            return divergence(logits, natural)
        return margin(logits, label) if goal == "none" else -margin(logits, label)

    def is_done(at):
        return (ask(at).argmax() == label) == (goal in ("given", "least-likely"))

    if is_done(image):
        return image, queries
    x = start.clone()
    adam = torch.optim.Adam([x], lr=step_size, maximize=True)
    for step in directions:
        grad = torch.zeros_like(x)
        for v in step:
            grad += (loss(ask(x + sigma * v)) - loss(ask(x - sigma * v))) / (2 * sigma) * v
        x.grad = grad / len(step)
        adam.step()
        x.copy_(torch.min(torch.max(x, image - EPSILON), image + EPSILON).clamp(0, 1))
        if is_done(x):
            break
    return x, queries


def plain_results(model, images, labels, *, random_start=True, goal="none", **settings):
    samples, steps = settings.pop("samples"), settings.pop("steps")
    start, directions = noise_of(images, samples=samples, steps=steps, random_start=random_start)
    results = [
        plain_spsa(model, image, label, start[b], [v[:, b] for v in directions], goal=goal, **settings)
        for b, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
    ]
    return torch.stack([x for x, _ in results]), torch.tensor([queries for _, queries in results])


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("options", [{}, {"engine": NO_TWIN}, {"query_batch": 5}, {"query_batch": 40}],
                         ids=["twin", "no-twin", "split-images", "some-images"])
def test_against_a_plain_loop(problem, random_start, options):
    model, images, labels = problem
    expected, queries = plain_results(model, images, labels, random_start=random_start, **SETTINGS)
    noise = NoiseStream(SEED, offset=OFFSET)
    attack = SPSA(model, EPSILON, random_start=random_start, noise=noise, **SETTINGS, **options)
    assert attack.queries is None
    torch.testing.assert_close(attack(images, labels), expected, rtol=0, atol=1e-9)
    assert attack.queries.tolist() == queries.tolist() and attack.queries.dtype == torch.int64
    assert noise.offset == OFFSET + SETTINGS["steps"] + random_start
    # The problem is one: there is an image that is not attacked, some that are done early, and some that never are.
    full = 1 + SETTINGS["steps"] * (SETTINGS["samples"] + 1)
    assert queries[2] == 1 and torch.equal(expected[2], images[2])
    assert (queries[queries > 1] < full).any() and (queries == full).any()
    assert len(queries.unique()) > 3


def test_climbing_the_divergence(problem):
    """A loss relative to the natural logits, which take a query."""
    model, images, labels = problem
    expected, queries = plain_results(model, images, labels, goal="divergence", **SETTINGS)
    attack = SPSA(model, EPSILON, loss=KLFromNatural(), noise=NoiseStream(SEED, offset=OFFSET), **SETTINGS)
    torch.testing.assert_close(attack(images, labels), expected, rtol=0, atol=1e-7)
    assert attack.queries.tolist() == queries.tolist()


@pytest.mark.parametrize("target", ["given", "least-likely"])
def test_towards_a_class(problem, target):
    model, images, labels = problem
    labels = model(images).argsort(1)[:, 2]  # the second best, but for the first image
    labels[0] = model(images[:1]).argmax()
    settings = SETTINGS | {"step_size": 0.03}
    expected, queries = plain_results(model, images, labels, goal=target, **settings)
    attack = SPSA(model, EPSILON, target=target, noise=NoiseStream(SEED, offset=OFFSET), **settings)
    torch.testing.assert_close(attack(images, labels), expected, rtol=0, atol=1e-9)
    assert attack.queries.tolist() == queries.tolist() and len(queries.unique()) >= 3


def test_weights_may_change_between_calls(problem):
    """The frozen copy follows them."""
    model, images, labels = problem
    attack = SPSA(model, EPSILON, noise=NoiseStream(0), **SETTINGS)
    attack(images, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    attack.noise = NoiseStream(SEED, offset=OFFSET)
    expected, _ = plain_results(model, images, labels, **SETTINGS)
    torch.testing.assert_close(attack(images, labels), expected, rtol=0, atol=1e-9)


def test_an_image_does_not_depend_on_how_the_others_fare(problem):
    """Other images that are done at once, or run to the end: the noise of an image is its place's."""
    model, images, labels = problem
    results = []
    for others in (labels, (model(images).argmax(1) + 1) % 4):
        mixed = others.clone()
        mixed[5] = labels[5]
        attack = SPSA(model, EPSILON, noise=NoiseStream(SEED), **SETTINGS)
        results.append((attack(images, mixed)[5], attack.queries[5]))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


class Counting(nn.Module):
    """Notes how many images it is given at a time."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.batches = []

    def forward(self, images):
        assert not torch.is_grad_enabled() and not images.requires_grad, "a gradient-free attack"
        self.batches.append(len(images))
        return self.model(images)


@pytest.mark.parametrize("query_batch", [7, 40, 1000])
def test_queries_of_several_images_are_made_together_only_if_they_fit(problem, monkeypatch, query_batch):
    """So that memory has a bound: those of one image at least, and all images' where they may go through at once."""
    model, images, labels = problem
    sizes, losses = [], GradientSession.losses
    monkeypatch.setattr(
        GradientSession, "losses", lambda self, x, targets: sizes.append(len(x)) or losses(self, x, targets)
    )
    SPSA(model, EPSILON, query_batch=query_batch, noise=NoiseStream(SEED), **SETTINGS)(images, labels)
    assert max(sizes) == {7: 16, 40: 32, 1000: 7 * 16}[query_batch]


@pytest.mark.parametrize("query_batch", [7, 100])
def test_the_queries_are_those_that_the_model_sees(problem, query_batch):
    """Each is counted, none is differentiable, and no more go through at once than may."""
    model, images, labels = problem
    counting = Counting(model)
    attack = SPSA(counting, EPSILON, query_batch=query_batch, engine=NO_TWIN, noise=NoiseStream(SEED), **SETTINGS)
    attack.perturb(images, labels)
    assert sum(counting.batches) == int(attack.queries.sum())
    assert max(counting.batches) <= query_batch
    assert max(counting.batches) > query_batch - SETTINGS["samples"]


def test_the_twin_is_not_differentiated_either(problem, monkeypatch):
    model, images, labels = problem
    attack = SPSA(model, EPSILON, noise=NoiseStream(SEED), **SETTINGS)
    attack(images, labels)
    assert attack.input_gradient.twin is not None

    def refuse(*args, **kwargs):
        raise AssertionError("a gradient-free attack")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    graphs = []
    attack.input_gradient.twin.module.register_forward_hook(lambda module, x, out: graphs.append(out.requires_grad))
    attack(images, labels)
    assert graphs and not any(graphs)


class NotDifferentiable(nn.Module):
    """Sees 64 shades only, by way of NumPy: its gradient is zero, if it can be had at all."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        shades = torch.from_numpy((images.cpu().numpy() * 63).round() / 63)
        return self.model(shades.to(images.device))


@pytest.mark.parametrize("engine", [EngineOptions(precision="fp32"), NO_TWIN], ids=["twin", "no-twin"])
def test_a_model_without_a_gradient(problem, engine):
    model, images, labels = problem
    model = NotDifferentiable(model)
    settings = SETTINGS | {"sigma": 0.02}
    expected, queries = plain_results(model, images, labels, **settings)
    attack = SPSA(model, EPSILON, noise=NoiseStream(SEED, offset=OFFSET), engine=engine, **settings)
    torch.testing.assert_close(attack(images, labels), expected, rtol=0, atol=1e-9)
    assert attack.queries.tolist() == queries.tolist()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_adversarial_images(memory_format):
    """In float32: inside ball and bounds, of the images' kind, and no trace on the model or the images."""
    model, images, labels = classified_right()
    images = images.contiguous(memory_format=memory_format)
    state, original = copy.deepcopy(model.state_dict()), images.clone()
    attack = SPSA(model, EPSILON, samples=64, noise=NoiseStream(SEED))
    candidates = attack.perturb(images, labels)
    assert candidates.shape == (1, *images.shape)
    adversarial = attack(images, labels)
    assert adversarial.shape == images.shape and adversarial.dtype == images.dtype
    assert adversarial.is_contiguous(memory_format=memory_format) and not adversarial.requires_grad
    assert (adversarial - images).abs().max() <= EPSILON * (1 + 1e-6)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (model(adversarial).argmax(1) != labels).sum() >= 6
    model.train()
    model.norm.eval()
    attack(images, labels)
    assert model.training and model.conv.training and not model.norm.training
    assert torch.equal(images, original)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_other_data_bounds():
    model, images, _ = classified_right()
    images = images * 4 - 2
    labels = model(images).argmax(1)
    adversarial = SPSA(model, 0.3, lower=-2, upper=2, samples=8, steps=5, step_size=0.2)(images, labels)
    assert adversarial.min() == -2 and adversarial.max() == 2
    assert (adversarial - images).abs().max() <= 0.3 * (1 + 1e-5)


def test_under_inference_mode(problem):
    model, images, labels = problem
    expected = SPSA(model, EPSILON, noise=NoiseStream(SEED), **SETTINGS)(images, labels)
    with torch.inference_mode():
        found = SPSA(model, EPSILON, noise=NoiseStream(SEED), **SETTINGS)(images + 0, labels + 0)
    assert torch.equal(found, expected)


def test_no_steps(problem):
    model, images, labels = problem
    noise = NoiseStream(SEED)
    attack = SPSA(model, EPSILON, steps=0, noise=noise)
    found = attack(images, labels)
    start = ops.uniform_start_(images.clone(), images, NoiseStream(SEED, images.device).state, epsilon=EPSILON)
    start[2] = images[2]
    assert torch.equal(found, start) and attack.queries.tolist() == [1] * 8 and noise.offset == 1


def test_a_model_that_fails_is_given_back(problem):
    model, images, labels = problem
    model.train()

    def fail(module, inputs):
        raise LookupError("planted")

    noise = NoiseStream(SEED)
    attack = SPSA(model, EPSILON, noise=noise, **SETTINGS)
    hook = model.fc.register_forward_pre_hook(fail)
    with pytest.raises(LookupError, match="planted"):
        attack(images, labels)
    hook.remove()
    assert all(module.training for module in model.modules()) and noise.offset == 0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class Broken(nn.Module):
    """Logits as given for the images of the batch, and anywhere else."""

    def __init__(self, natural, elsewhere):
        super().__init__()
        self.natural, self.elsewhere = natural, elsewhere

    def forward(self, images):
        at_image = (images == 0.5).flatten(1).all(1, keepdim=True)
        values = torch.where(at_image, self.natural, self.elsewhere)
        return torch.cat([values, torch.zeros_like(values)], 1)


@pytest.mark.parametrize("natural, elsewhere, message", [
    (float("nan"), 1.0, "logits of 3 of 3 images are NaN"),
    (1.0, float("nan"), "estimated gradient of 3 of 3 images"),
    (1.0, float("inf"), "estimated gradient of 3 of 3 images"),
])  # fmt: skip
def test_logits_that_are_not_finite(natural, elsewhere, message):
    images, labels = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    model = Broken(natural, elsewhere)
    with pytest.raises(FloatingPointError, match=message):
        SPSA(model, EPSILON, samples=4, noise=NoiseStream(0))(images, labels)
    SPSA(model, EPSILON, samples=4, steps=1, noise=NoiseStream(0), check_finite=False)(images, labels)


def test_the_papers_settings_are_the_defaults():
    attack = SPSA(TinyClassifier())
    assert (attack.samples, attack.steps, attack.step_size, attack.sigma) == (256, 100, 0.01, 0.001)
    assert attack.random_start and attack.epsilon == 8 / 255


@pytest.mark.parametrize("options, error, message", [
    ({"samples": 5}, ValueError, "samples must be even"),
    ({"samples": 0}, ValueError, "samples must be in"),
    ({"samples": 8.0}, TypeError, "samples must be an int"),
    ({"steps": -1}, ValueError, "steps must be in"),
    ({"step_size": 0}, ValueError, "step_size must be > 0"),
    ({"sigma": 0.0}, ValueError, "sigma must be > 0"),
    ({"sigma": float("nan")}, ValueError, "sigma must be finite"),
    ({"random_start": 1}, TypeError, "random_start must be a bool"),
    ({"query_batch": 0}, ValueError, "query_batch must be in"),
    ({"query_batch": 4, "engine": "fast"}, TypeError, "engine must be EngineOptions"),
    ({"engine": EngineOptions()}, ValueError, "engine must have precision='fp32'"),
    ({"loss": KLFromNatural(), "random_start": False}, ValueError, "loss must have a gradient at the image"),
    ({"epsilon": -1}, ValueError, "epsilon must be > 0"),
    ({"noise": 3}, TypeError, "noise must be a NoiseStream"),
])  # fmt: skip
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        SPSA(TinyClassifier(), **options)
