"""What attacks share: targets, restarts, the L2 ball, and the ball to the last bit; and attacks on another model."""

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream, ops
from adt_fast.attacks import CW, EXP, EXPAM, FGSM, MIM, PGD, Attack, FeatureScatter, Transfer
from adt_fast.attacks._ball import confine, l2_start
from adt_fast.losses import KLFromNatural, Margin, TargetMargin, cross_entropy, towards

EPSILON = 0.1


@pytest.fixture
def problem(device):
    images, labels = tiny_batch(6)
    return TinyClassifier().double().to(device).eval(), images.double().to(device), labels.to(device)


def gradient(function, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


# Targets


def plain_margin(logits, target):
    """The target's logit less the best other one, capped at 50."""
    other = torch.stack([torch.cat([row[:t], row[t + 1 :]]).max() for row, t in zip(logits, target)])
    return (logits.gather(1, target[:, None])[:, 0] - other).clamp(max=50.0)


@pytest.mark.parametrize("kind, objective", [
    (PGD, lambda logits, target: -F.cross_entropy(logits, target, reduction="none")),
    (CW, plain_margin),
])  # fmt: skip
@pytest.mark.parametrize("target", ["given", "least-likely"])
def test_targeted_pgd_and_cw_against_a_plain_loop(problem, kind, objective, target):
    model, images, labels = problem
    given = (labels + 1) % 4
    goal = given if target == "given" else model(images).argmin(1)
    x = ops.uniform_start_(images.clone(), images, NoiseStream(3, images.device).state, epsilon=EPSILON)
    for _ in range(5):
        x = x + EPSILON / 4 * gradient(lambda x: objective(model(x), goal), x).sign()
        x = torch.min(torch.max(x, images - EPSILON), images + EPSILON).clamp(0, 1)
    found = kind(model, EPSILON, steps=5, target=target, noise=NoiseStream(3))(images, given)
    torch.testing.assert_close(found, x.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [FGSM, PGD, MIM, CW, EXP])
def test_a_target_comes_nearer(problem, kind):
    model, images, labels = problem
    goal = (labels + 2) % 4
    found = kind(model, EPSILON, target="given", noise=NoiseStream(1))(images, goal)
    before, after = (F.cross_entropy(model(x), goal, reduction="none") for x in (images, found))
    assert (after < before).all()
    assert ((found - images).abs() <= EPSILON).all()


def test_the_margin_towards_a_class_has_a_gradient_however_far_it_is(problem):
    logits = torch.tensor([[100.0, 0.0, 0.0], [-80.0, 0.0, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(TargetMargin(50.0)(logits, torch.tensor([1, 2])).sum(), logits)
    assert torch.equal(grad, torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]]))
    assert TargetMargin(50.0)(logits, torch.tensor([0, 1])).tolist() == [50.0, 0.0], "far enough is far enough"
    assert towards(Margin(3.0)) == TargetMargin(3.0)


@pytest.mark.parametrize("attack, options", [
    (FeatureScatter, {}), (EXPAM, {"generator": torch.nn.Identity()}),
])  # fmt: skip
def test_attacks_that_go_for_no_class(attack, options):
    with pytest.raises(ValueError, match="target must be 'none' for"):
        attack(TinyClassifier(), EPSILON, target="given", **options)


@pytest.mark.parametrize("options, message", [
    ({"target": "random"}, "target must be one of"),
    ({"target": "given", "loss": KLFromNatural()}, "loss must be of a class for a targeted attack"),
    ({"restarts": 0}, "restarts must be in"),
    ({"random_start": False, "restarts": 2}, "restarts must be 1 for PGD, which draws no noise"),
    ({"norm": "l1"}, "norm must be one of 'linf', 'l2'"),
])  # fmt: skip
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        PGD(TinyClassifier(), EPSILON, **options)


def test_attacks_without_noise_refuse_restarts():
    for kind in (FGSM, MIM):
        with pytest.raises(ValueError, match=f"restarts must be 1 for {kind.__name__}"):
            kind(TinyClassifier(), EPSILON, restarts=3)


# Restarts


class Scripted(Attack):
    """Gives candidates that are told beforehand, and remembers what it was asked to attack."""

    def __init__(self, model, runs, **options):
        super().__init__(model, 1.0, **options)
        self.runs, self.asked = iter(runs), []

    def perturb(self, images, labels):
        self.asked.append(labels.tolist())
        return next(self.runs).to(images).unsqueeze(0)


class Says(torch.nn.Module):
    """Logits are the pixels."""

    def forward(self, images):
        return images.flatten(1)


def pixels(*rows):
    return torch.tensor(rows, dtype=torch.float32)[:, :, None, None]


def test_restarts_attack_what_is_left_and_keep_the_best():
    images, labels = pixels([1, 0, 0], [1, 0, 0], [1, 0, 0]), torch.tensor([0, 0, 0])
    runs = [
        pixels([0, 1, 0], [0.6, 0.5, 0.5], [1, 0, 0]),  # the first is fooled
        pixels([0.9, 0.5, 0.0], [0.4, 0.5, 0.0]),  # the second stays with the first run, the third is fooled
        pixels([0.6, 0.5, 0.5]),
    ]
    attack = Scripted(Says(), runs, restarts=3)
    found = attack(images, labels)
    assert attack.asked == [[0, 0, 0], [0, 0], [0]]
    assert torch.equal(found, pixels([0, 1, 0], [0.6, 0.5, 0.5], [0.4, 0.5, 0.0]))


def test_a_success_counts_for_more_than_a_loss():
    """A loss of 1.0 without success, and 0.8 with: cross entropy alone would take the wrong one."""
    near = torch.tensor([0.36, 0.33, 0.31]).log()
    fooled = torch.tensor([0.45, 0.55, 1e-6]).log()
    candidates = ((torch.stack([near, fooled]) + 20) / 20)[:, None, :, None, None]  # as pixels in [0, 1]

    class Scaled(Says):
        def forward(self, images):
            return super().forward(images) * 20 - 20

    attack = Scripted(Scaled(), [])
    worst = attack._worst(candidates, candidates[0], torch.tensor([0]))
    losses = [float(cross_entropy(Scaled()(x), torch.tensor([0]))) for x in candidates]
    assert losses[0] > losses[1]
    assert torch.equal(worst, candidates[1])


def test_restarts_are_at_least_as_strong(problem):
    model, images, labels = problem
    once = PGD(model, EPSILON, steps=2, noise=NoiseStream(4))(images, labels)
    often = PGD(model, EPSILON, steps=2, restarts=8, noise=NoiseStream(4))(images, labels)
    right = [(model(x).argmax(1) == labels) for x in (once, often)]
    losses = [cross_entropy(model(x), labels) for x in (once, often)]
    assert (right[1] <= right[0]).all() and (losses[1][right[0]] >= losses[0][right[0]]).all()
    assert not torch.equal(once, often)


# The L2 ball


@pytest.mark.parametrize("random_start", [True, False, "gaussian"])
def test_l2_pgd_against_a_plain_loop(problem, random_start):
    model, images, labels = problem
    radius, noise = 0.5, NoiseStream(9, images.device)
    x = images.clone()
    if random_start is True:
        x = l2_start(images, noise.state, epsilon=radius, lower=0.0, upper=1.0)
    elif random_start == "gaussian":
        x = (x + 0.001 * ops.normal(x, noise.state)[0]).clamp(0, 1)
    for _ in range(6):
        grad = gradient(lambda x: F.cross_entropy(model(x), labels, reduction="none"), x)
        x = x + radius / 4 * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
        delta = x - images
        length = delta.flatten(1).norm(dim=1)[:, None, None, None]
        x = (images + delta * (radius / length).clamp(max=1)).clamp(0, 1)
    attack = PGD(model, radius, steps=6, norm="l2", random_start=random_start, noise=noise)
    torch.testing.assert_close(attack(images, labels), x.detach(), rtol=0, atol=1e-9)
    assert noise.offset == (random_start is not False)


def test_the_l2_start_is_uniform_in_the_ball(device):
    """The D-th power of its length is uniform, and its direction has no preference."""
    x = torch.zeros(20000, 1, 2, 2, dtype=torch.float64, device=device)
    start = l2_start(x, NoiseStream(2, device).state, epsilon=2.0, lower=-9.0, upper=9.0).flatten(1)
    lengths = start.norm(dim=1)
    assert lengths.max() <= 2.0
    ordered = (lengths / 2).pow(4).sort().values
    expected = torch.linspace(0, 1, len(ordered), dtype=torch.float64, device=device)
    assert (ordered - expected).abs().max() < 1.63 / len(ordered) ** 0.5  # Kolmogorov-Smirnov at 1%
    assert start.mean(0).abs().max() < 0.04
    covariance = start.T @ start / len(start)
    torch.testing.assert_close(covariance, torch.eye(4).to(start) * 4 / 6, rtol=0, atol=0.05)  # radius^2 / (D + 2)


def test_the_l2_start_does_not_depend_on_the_layout(device):
    x = torch.rand(5, 3, 4, 6, device=device)
    starts = [
        l2_start(layout, NoiseStream(2, device).state, epsilon=1.0, lower=0.0, upper=1.0)
        for layout in (x, x.to(memory_format=torch.channels_last))
    ]
    assert torch.equal(*starts) and starts[1].is_contiguous(memory_format=torch.channels_last)


# The ball to the last bit


def exactly_inside(x_adv, x, epsilon, norm):
    """In float64, where the difference of two float32 numbers is exact."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return bool((delta.abs().amax(1) <= epsilon).all() if norm == "linf" else (delta.norm(dim=1) <= epsilon).all())


@pytest.mark.parametrize("norm, epsilon", [("linf", 8 / 255), ("linf", 0.1), ("l2", 0.5), ("l2", 128 / 255)])
def test_no_image_leaves_the_ball_by_rounding(device, norm, epsilon):
    x = torch.rand(200, 3, 8, 8, device=device)
    direction = torch.randn_like(x).sign()
    if norm == "l2":
        direction /= direction.flatten(1).norm(dim=1)[:, None, None, None]
    rounded = torch.add(x, direction, alpha=epsilon)
    assert not exactly_inside(rounded, x, epsilon, norm), "what this is about"
    ball = {"norm": norm, "epsilon": epsilon, "lower": 0.0, "upper": 1.0}
    found = confine(rounded.clone().unsqueeze(0), x, **ball)[0]
    assert exactly_inside(found, x, epsilon, norm)
    assert found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found, rounded.clamp(0, 1), rtol=0, atol=1e-6)
    far = confine((x + 3 * direction).unsqueeze(0), x, **ball)[0]
    assert exactly_inside(far, x, epsilon, norm)


def test_what_is_inside_is_left_alone(device):
    x = torch.rand(20, 3, 4, 4, device=device)
    inside = torch.add(x, torch.rand_like(x) * 2 - 1, alpha=0.05).clamp(0, 1)
    for norm, epsilon in (("linf", 0.1), ("l2", 1.0)):
        found = confine(inside.clone().unsqueeze(0), x, norm=norm, epsilon=epsilon, lower=0.0, upper=1.0)[0]
        assert torch.equal(found, inside)


@pytest.mark.parametrize("norm, epsilon", [("linf", 8 / 255), ("l2", 0.5)])
def test_attacks_stay_inside_exactly(device, norm, epsilon):
    images, labels = (part.to(device) for part in tiny_batch(64))
    model = TinyClassifier().to(device)
    others = [FGSM(model, epsilon), MIM(model, epsilon), EXP(model, epsilon, recipe="paper", steps=3, samples=2)]
    for attack in [PGD(model, epsilon, norm=norm), CW(model, epsilon, norm=norm), *(others if norm == "linf" else [])]:
        found = attack(images, labels)
        assert exactly_inside(found, images, epsilon, norm)
        assert found.min() >= 0 and found.max() <= 1


# Another model


def test_transfer(problem):
    model, images, labels = problem
    source = TinyClassifier(seed=5).double().to(images.device)
    attack = Transfer(source, MIM, EPSILON, steps=3)
    assert torch.equal(attack(images, labels), MIM(source, EPSILON, steps=3)(images, labels))
    assert attack.is_black_box and attack.epsilon == EPSILON
    attack.noise = stream = NoiseStream(8)
    assert attack.attack.noise is stream
    assert isinstance(Transfer(source).attack, PGD)
    with pytest.raises(ValueError, match="steps"):
        Transfer(source, MIM, EPSILON, steps=-1)
