"""Attacks: PGD, MIM and C&W against plain loops, the ball, the noise, the worst of candidates, and bad input."""

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream, ops
from adt_fast.attacks import CW, EXP, MIM, PGD, Attack, exp_recipe
from adt_fast.losses import KLFromNatural, Margin

EPSILON = 0.1


@pytest.fixture
def problem(device):
    images, labels = tiny_batch(6)
    return TinyClassifier().to(device).train(), images.to(device), labels.to(device)


def attacks(model, **options):
    for kind in (PGD, MIM, CW):
        yield kind(model, EPSILON, steps=4, noise=NoiseStream(5), **options)
    for recipe in ("published", "paper"):
        yield EXP(model, EPSILON, steps=3, samples=2, recipe=recipe, noise=NoiseStream(5), **options)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("step_size", [None, 0.05])
def test_pgd_against_a_plain_loop(problem, random_start, step_size):
    model, images, labels = problem
    model, images = model.double(), images.double()
    noise = NoiseStream(7, images.device)
    x = images.clone()
    if random_start:
        ops.uniform_start_(x, images, noise.state, epsilon=EPSILON)
        assert not torch.equal(x, images)
    model.eval()
    for _ in range(4):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        x = x + (step_size or EPSILON / 4) * grad.sign()
        x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
    attack = PGD(model, EPSILON, steps=4, step_size=step_size, random_start=random_start, noise=noise)
    torch.testing.assert_close(attack(images, labels), x.detach(), rtol=0, atol=1e-12)
    assert noise.offset == int(random_start)


@pytest.mark.parametrize("decay, step_size", [(1.0, None), (0.5, 0.05), (0.0, None)])
def test_mim_against_a_plain_loop(problem, decay, step_size):
    model, images, labels = problem
    model, images = model.double(), images.double()
    x, momentum = images.clone(), torch.zeros_like(images)
    model.eval()
    for _ in range(4):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        momentum = decay * momentum + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        x = x + (step_size or EPSILON / 4) * momentum.sign()
        x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
    attack = MIM(model, EPSILON, steps=4, step_size=step_size, decay=decay, noise=NoiseStream(7))
    torch.testing.assert_close(attack(images, labels), x.detach(), rtol=0, atol=1e-12)
    assert attack.noise.offset == 0


@pytest.mark.parametrize("confidence", [50.0, 0.1])
def test_cw_against_a_plain_loop(problem, confidence):
    """PGD on the margin, which is flat for images that are misclassified by more than the confidence."""
    model, images, labels = problem
    model, images = model.double(), images.double()
    noise = NoiseStream(7, images.device)
    x = ops.uniform_start_(images.clone(), images, noise.state, epsilon=EPSILON)
    model.eval()
    for _ in range(5):
        x = x.detach().requires_grad_()
        logits = model(x)
        losses = []
        for row, label in zip(logits, labels, strict=True):
            wrong = torch.cat([row[:label], row[label + 1 :]]).max()
            losses.append(torch.minimum(wrong - row[label], torch.tensor(confidence, dtype=row.dtype)))
        (grad,) = torch.autograd.grad(torch.stack(losses).sum(), x)
        x = x + EPSILON / 4 * grad.sign()
        x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
    attack = CW(model, EPSILON, steps=5, confidence=confidence, noise=noise)
    torch.testing.assert_close(attack(images, labels), x.detach(), rtol=0, atol=1e-12)


def test_the_papers_settings_are_the_defaults():
    model = TinyClassifier()
    assert (MIM(model).steps, MIM(model, 0.1).step_size, MIM(model).decay) == (20, 0.025, 1.0)
    assert (CW(model).steps, CW(model, 0.1).step_size, CW(model).random_start) == (30, 0.025, True)
    assert CW(model).input_gradient.loss == Margin(50.0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_adversarial_images(problem, memory_format):
    """Inside ball and bounds, of the images' kind, of higher loss, and no trace on the model or the images."""
    model, images, labels = problem
    images = images.contiguous(memory_format=memory_format)
    natural = F.cross_entropy(model.eval()(images), labels)
    model.train()
    for attack in attacks(model):
        original = images.clone()
        adversarial = attack(images, labels)
        assert adversarial.shape == images.shape and adversarial.dtype == images.dtype
        assert adversarial.is_contiguous(memory_format=memory_format) and not adversarial.requires_grad
        assert (adversarial - images).abs().max() <= EPSILON * (1 + 1e-6)
        assert adversarial.min() >= 0 and adversarial.max() <= 1
        assert torch.equal(images, original)
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        if not isinstance(attack, EXP) or attack.recipe == exp_recipe("published"):
            assert F.cross_entropy(model.eval()(adversarial), labels) > natural + 0.5
            model.train()


def test_noise_makes_calls_differ_and_seeds_make_them_equal(problem):
    model, images, labels = problem
    for first, second in zip(attacks(model), attacks(model), strict=True):
        once, twice = first(images, labels), first(images, labels)
        assert torch.equal(once, twice) == isinstance(first, MIM), "it draws no noise"
        assert torch.equal(once, second(images, labels))


def test_torch_seed_governs_the_default_noise(problem):
    model, images, labels = problem
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(PGD(model, EPSILON)(images, labels))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_noise_follows_the_images(problem):
    model, images, labels = problem
    noise = NoiseStream(5)
    with torch.inference_mode():
        PGD(model, EPSILON, noise=noise)(images, labels)
    PGD(model, EPSILON, noise=noise)(images, labels)
    assert noise.device == images.device and noise.offset == 2 and not noise.state.is_inference()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(problem, context):
    model, images, labels = problem
    for plain, within in zip(attacks(model), attacks(model), strict=True):
        expected = plain(images, labels)
        with context():
            assert torch.equal(within(images + 0, labels + 0), expected)


def test_the_worst_candidate_is_returned(problem):
    model, images, labels = problem
    options = {"steps": 2, "samples": 2, "recipe": exp_recipe("published", outer_samples=5)}
    worst = EXP(model, EPSILON, noise=NoiseStream(3), **options)(images, labels)
    candidates = EXP(model, EPSILON, noise=NoiseStream(3), **options).perturb(images, labels)
    with torch.no_grad():
        losses = torch.stack([F.cross_entropy(model.eval()(x), labels, reduction="none") for x in candidates])
    assert len(set(losses.argmax(0).tolist())) > 1, "the choice must be per example"
    for b, best in enumerate(losses.argmax(0)):
        assert torch.equal(worst[b], candidates[best, b])


def test_other_data_bounds(problem):
    model, images, labels = problem
    for attack in attacks(model, lower=-1.0, upper=2.0):
        adversarial = attack(images * 3 - 1, labels)
        assert adversarial.min() >= -1 and adversarial.max() <= 2 and adversarial.max() > 1


def bad_batches():
    images, labels = tiny_batch(6)
    nan = images.clone()
    nan[3, 1, 2, 2] = float("nan")
    return {
        "a list": (images.tolist(), labels, TypeError, "images must be a torch.Tensor"),
        "bytes": ((images * 255).byte(), labels, TypeError, "images must be float32"),
        "half": (images.half(), labels, TypeError, "images must be float32"),
        "three dimensions": (images[0], labels, ValueError, r"images must be a batch \[B, C, H, W\]"),
        "no images": (images[:0], labels[:0], ValueError, "images must be a batch"),
        "too bright": (images * 2, labels, ValueError, r"images must be finite, in \[0, 1\]"),
        "normalised": (images - 0.5, labels, ValueError, "images must be finite"),
        "a NaN": (nan, labels, ValueError, "images must be finite"),
        "no label tensor": (images, labels.tolist(), TypeError, "labels must be an int64 tensor"),
        "float labels": (images, labels.float(), TypeError, "labels must be an int64 tensor"),
        "int labels": (images, labels.int(), TypeError, "labels must be an int64 tensor"),
        "too few labels": (images, labels[:5], ValueError, "labels must be one class per image"),
        "one-hot labels": (images, F.one_hot(labels), ValueError, "labels must be one class per image"),
        "a class too many": (
            images,
            labels.index_fill(0, torch.tensor(2), 4),
            ValueError,
            r"labels must be in \[0, 3\]",
        ),
        "a negative class": (
            images,
            labels.index_fill(0, torch.tensor(2), -1),
            ValueError,
            r"labels must be in \[0, 3\]",
        ),
    }


@pytest.mark.parametrize("name", bad_batches())
def test_bad_batches_change_nothing(name):
    images, labels, error, message = bad_batches()[name]
    model = TinyClassifier()
    for attack in attacks(model):
        with pytest.raises(error, match=message):
            attack(images, labels)
        assert attack.noise.offset == 0 and model.training


@pytest.mark.cuda
def test_images_elsewhere_are_refused():
    images, labels = tiny_batch()
    with pytest.raises(ValueError, match="images must be on the model's device"):
        PGD(TinyClassifier(), EPSILON)(images.cuda(), labels.cuda())
    with pytest.raises(ValueError, match="labels must be on the images' device"):
        PGD(TinyClassifier().cuda(), EPSILON)(images.cuda(), labels)


@pytest.mark.parametrize(
    "attack, options, error, message",
    [
        (PGD, {"epsilon": 0.0}, ValueError, "epsilon"),
        (PGD, {"epsilon": "8/255"}, TypeError, "epsilon"),
        (PGD, {"lower": 1.0}, ValueError, "lower"),
        (PGD, {"steps": -1}, ValueError, "steps"),
        (PGD, {"steps": 2.0}, TypeError, "steps"),
        (PGD, {"step_size": 0.0}, ValueError, "step_size"),
        (PGD, {"noise": 3}, TypeError, "noise"),
        (MIM, {"steps": -1}, ValueError, "steps"),
        (MIM, {"step_size": -1.0}, ValueError, "step_size"),
        (MIM, {"decay": -0.1}, ValueError, "decay"),
        (MIM, {"decay": "1"}, TypeError, "decay"),
        (MIM, {"loss": KLFromNatural()}, ValueError, "loss"),
        (CW, {"confidence": float("inf")}, ValueError, "confidence"),
        (CW, {"loss": Margin()}, TypeError, "loss"),
        (PGD, {"sampels": 3}, TypeError, "sampels"),
        (EXP, {"samples": 0}, ValueError, "samples"),
        (EXP, {"step_size": float("inf")}, ValueError, "step_size"),
        (EXP, {"entropy_weight": float("nan")}, ValueError, "entropy_weight"),
        (EXP, {"recipe": "Paper"}, ValueError, "recipe"),
    ],
)
def test_bad_settings(attack, options, error, message):
    with pytest.raises(error, match=message):
        attack(TinyClassifier(), **options)


def test_a_model_without_logits_is_refused():
    class Pair(torch.nn.Module):
        def forward(self, images):
            return images, images

    images, labels = tiny_batch()
    with pytest.raises(ValueError, match="model must give logits"):
        PGD(Pair(), EPSILON)(images, labels)
    with pytest.raises(ValueError, match="model must give logits"):
        PGD(torch.nn.Identity(), EPSILON)(images, labels)


def test_attack_is_abstract():
    with pytest.raises(TypeError, match="perturb"):
        Attack(TinyClassifier())
