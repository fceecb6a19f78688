"""The maximizers of training methods against plain loops: FGSM, PGD and EXP on the KL divergence, FeatureScatter."""

import pytest
import torch
from plain_adt import TinyClassifier, recipe_inner, tiny_batch
from plain_methods import cosine_cost, cross_entropy, input_gradient, kl_divergence, project, sinkhorn

from adt_fast import NoiseStream, ops
from adt_fast.attacks import EXP, FGSM, PGD, FeatureScatter, exp_recipe
from adt_fast.attacks.feature_scatter import sinkhorn_plan
from adt_fast.input_gradient import FLOAT32, EngineOptions
from adt_fast.losses import KLFromNatural

EPSILON, SEED = 0.1, 7
CHUNKED = EngineOptions(precision="fp32", chunk=4)
NO_TWIN = EngineOptions(precision="fp32", twin=False)


@pytest.fixture
def problem(device):
    images, labels = tiny_batch(6)
    return TinyClassifier().double().to(device).eval(), images.double().to(device), labels.to(device)


def assert_same_images(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def random_logits(batch, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, classes, generator=generator, dtype=torch.float64)


# FGSM


def test_fgsm(problem):
    """Eq. 2, and inside the data bounds."""
    model, images, labels = problem
    noise = NoiseStream(SEED)
    grad = input_gradient(lambda x: cross_entropy(model(x), labels).sum(), images)
    expected = (images + EPSILON * grad.sign()).clamp(0, 1)
    assert not torch.equal(expected, images + EPSILON * grad.sign())
    assert_same_images(FGSM(model, EPSILON, noise=noise)(images, labels), expected)
    assert noise.offset == 0


def test_fgsm_towards_the_least_likely_class(problem):
    model, images, labels = problem
    least = model(images).argmin(1)
    grad = input_gradient(lambda x: cross_entropy(model(x), least).sum(), images)
    expected = (images - EPSILON * grad.sign()).clamp(0, 1)
    attack = FGSM(model, EPSILON, target="least-likely")
    adversarial = attack(images, labels)
    assert_same_images(adversarial, expected)
    assert_same_images(attack(images, (labels + 1) % 4), expected)  # labels are not used
    assert (cross_entropy(model(adversarial), least) < cross_entropy(model(images), least)).all()


def test_fgsm_refuses_other_targets():
    with pytest.raises(ValueError, match="target must be one of"):
        FGSM(TinyClassifier(), target="random")


# On the KL divergence


@pytest.mark.parametrize("engine", [FLOAT32, CHUNKED, NO_TWIN], ids=["twin", "chunked", "no-twin"])
@pytest.mark.parametrize("random_start", ["gaussian", True])
def test_pgd_on_the_kl_divergence(problem, random_start, engine):
    """TRADES' inner maximisation, from a little noise and from anywhere in the ball."""
    model, images, labels = problem
    noise = NoiseStream(SEED, images.device, offset=2)
    natural = model(images).detach()
    if random_start == "gaussian":
        x = project(images + 0.001 * ops.normal(images, noise.state)[0], images, EPSILON)
    else:
        x = ops.uniform_start_(images.clone(), images, noise.state, epsilon=EPSILON)
    for _ in range(5):
        grad = input_gradient(lambda x: kl_divergence(natural, model(x)).sum(), x)
        x = project(x + EPSILON / 4 * grad.sign(), images, EPSILON)
    attack = PGD(model, EPSILON, steps=5, random_start=random_start, loss=KLFromNatural(), noise=noise, engine=engine)
    assert_same_images(attack(images, labels), x)
    assert noise.offset == 3


@pytest.mark.parametrize("epsilon", [EPSILON, 1e-3])
def test_the_gaussian_start_stays_in_the_ball(problem, epsilon):
    """At a tiny epsilon its steps of 0.001 would leave the ball, and dark and bright pixels the data bounds."""
    model, images, labels = problem
    noise = NoiseStream(SEED, images.device)
    start = images + 0.001 * ops.normal(images, noise.state)[0]
    attack = PGD(model, epsilon, steps=0, random_start="gaussian", noise=noise)
    found = attack(images, labels)
    assert_same_images(found, project(start, images, epsilon))
    assert not torch.equal(found, start)


@pytest.mark.parametrize("attack, options", [(PGD, {"random_start": False}), (FGSM, {})])
def test_a_start_without_a_gradient_is_refused(attack, options):
    """At the image itself, the divergence from it is flat: such an attack would do nothing."""
    with pytest.raises(ValueError, match="loss must have a gradient at the image"):
        attack(TinyClassifier(), loss=KLFromNatural(), **options)


@pytest.mark.parametrize("random_start", ["normal", "", 1, None])
def test_pgd_refuses_other_starts(random_start):
    with pytest.raises(ValueError, match="random_start"):
        PGD(TinyClassifier(), random_start=random_start)


@pytest.mark.parametrize("recipe", ["published", "paper"])
@pytest.mark.parametrize("weight", [6.0, 1.0])
def test_exp_on_the_kl_divergence(problem, recipe, weight):
    model, images, labels = problem
    settings = {"epsilon": EPSILON, "step_size": 0.3, "entropy_weight": 0.02}
    recipe, noise = exp_recipe(recipe), NoiseStream(SEED, images.device)
    normals = torch.stack([ops.normal(images, noise.state, samples=3, draw=t) for t in range(4)])
    mu, rho = recipe_inner(
        model, images, model(images).detach(), normals, recipe, **settings,
        losses_of=lambda logits, natural: weight * kl_divergence(natural, logits),
    )  # fmt: skip
    attack = EXP(model, steps=4, samples=3, recipe=recipe, loss=KLFromNatural(weight), noise=noise, **settings)
    found = attack.maximize(images, labels)
    torch.testing.assert_close(found.mu, mu, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.rho, rho, rtol=0, atol=1e-8)


def test_attacks_on_the_kl_divergence_raise_it(problem):
    """And choose the worst of several candidates by it."""
    model, images, labels = problem
    natural = model(images).detach()

    def divergence(x):
        return kl_divergence(natural, model(x)).detach()

    options = {"loss": KLFromNatural(), "noise": NoiseStream(SEED)}
    random = divergence(PGD(model, EPSILON, steps=0, noise=NoiseStream(SEED))(images, labels))
    assert (divergence(PGD(model, EPSILON, steps=5, **options)(images, labels)) > 3 * random).all()
    attack = EXP(model, EPSILON, steps=2, samples=2, recipe="published,outer_samples=4", **options)
    offset = attack.noise.offset
    worst = attack(images, labels)
    attack.noise.load_state_dict({"seed": SEED, "offset": offset})
    candidates = attack.perturb(images, labels)
    torch.testing.assert_close(divergence(worst), torch.stack([divergence(x) for x in candidates]).amax(0))


# Feature scattering


@pytest.mark.parametrize("engine", [FLOAT32, CHUNKED, NO_TWIN], ids=["twin", "chunked", "no-twin"])
@pytest.mark.parametrize("steps, step_size", [(1, None), (3, 0.03), (0, None)])
def test_feature_scatter_against_a_plain_loop(problem, steps, step_size, engine):
    model, images, labels = problem
    noise = NoiseStream(SEED, images.device, offset=4)
    natural = model(images).detach()
    x = ops.uniform_start_(images.clone(), images, noise.state, epsilon=EPSILON)

    def distance(x):
        cost = cosine_cost(natural, model(x))
        plan, _ = sinkhorn(cost, 0.01, iterations=100, tolerance=0.1)
        return (plan * cost).sum()

    for _ in range(steps):
        x = project(x + (step_size or EPSILON) * input_gradient(distance, x).sign(), images, EPSILON)
    attack = FeatureScatter(model, EPSILON, steps=steps, step_size=step_size, noise=noise, engine=engine)
    assert_same_images(attack(images, labels), x)
    assert noise.offset == 5


@pytest.mark.parametrize("regularization", [0.01, 0.1])
@pytest.mark.parametrize("iterations, tolerance", [(100, 0.1), (7, 0.0), (1, 0.0)])
def test_the_distance_and_its_gradient(regularization, iterations, tolerance):
    """Through the iterations, and in both arguments; the batches may differ in size."""
    natural, perturbed = (random_logits(batch, seed=batch).requires_grad_() for batch in (5, 6))
    cost = cosine_cost(natural, perturbed)
    plan, _ = sinkhorn(cost, regularization, iterations=iterations, tolerance=tolerance)
    expected = (plan * cost).sum()
    attack = FeatureScatter(TinyClassifier(), regularization=regularization, iterations=iterations, tolerance=tolerance)
    found = attack.distance(natural, perturbed)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (natural, perturbed)),
        torch.autograd.grad(expected, (natural, perturbed)),
        rtol=1e-7, atol=1e-10,
    )  # fmt: skip


def test_the_plans_marginals():
    """Columns in any case, for they were scaled last; rows once the algorithm has converged."""
    cost = cosine_cost(random_logits(5, seed=1), random_logits(7, seed=2))
    for iterations in (1, 500):
        plan = sinkhorn_plan(cost, 0.05, iterations=iterations, tolerance=0.0)
        assert (plan >= 0).all()
        torch.testing.assert_close(plan.sum(0), torch.full((7,), 1 / 7).double())
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 1 / 5).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.1, 1.0, 1e6])
def test_sinkhorn_stops_when_the_potentials_settle(tolerance):
    cost = cosine_cost(random_logits(6, seed=1), random_logits(6, seed=2))
    expected, taken = sinkhorn(cost, 0.01, iterations=60, tolerance=tolerance)
    assert (taken == 60) == (tolerance == 0) and (taken == 1) == (tolerance == 1e6)
    found = sinkhorn_plan(cost, 0.01, iterations=60, tolerance=tolerance)
    torch.testing.assert_close(found, expected)
    if taken > 1:
        fewer = sinkhorn_plan(cost, 0.01, iterations=taken - 1, tolerance=0.0)
        assert not torch.allclose(found, fewer, rtol=1e-12, atol=0), "one iteration less is another plan"


def test_little_regularization_finds_the_best_assignment():
    """The optimal transport between two uniform batches of one size is a permutation."""
    optimize = pytest.importorskip("scipy.optimize")
    cost = cosine_cost(random_logits(8, seed=3), random_logits(8, seed=4))
    rows, columns = optimize.linear_sum_assignment(cost.numpy())
    plan = sinkhorn_plan(cost, 0.001, iterations=2000, tolerance=0.0)
    assert (plan * cost).sum().item() == pytest.approx(cost[rows, columns].mean().item(), abs=2e-3)


def test_sinkhorn_does_not_overflow_in_float32():
    """exp(-cost / regularization) itself is zero in float32 from a cost of 1.04 on."""
    natural = random_logits(6, seed=1)
    attack = FeatureScatter(TinyClassifier(), tolerance=0.0)
    opposite = (-natural).float().requires_grad_()
    distance = attack.distance(natural.float()[:1], opposite[:1])
    assert distance.item() == pytest.approx(2.0)
    (grad,) = torch.autograd.grad(attack.distance(natural.float(), opposite), opposite)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"steps": -1}, ValueError),
        ({"step_size": 0.0}, ValueError),
        ({"regularization": 0.0}, ValueError),
        ({"regularization": "0.01"}, TypeError),
        ({"iterations": 0}, ValueError),
        ({"iterations": 10.0}, TypeError),
        ({"tolerance": -0.1}, ValueError),
        ({"tolerance": float("nan")}, ValueError),
    ],
)
def test_bad_settings_of_feature_scatter(options, error):
    with pytest.raises(error, match=next(iter(options))):
        FeatureScatter(TinyClassifier(), **options)


# All of them


def attacks(model, **options):
    yield FGSM(model, EPSILON, **options)
    yield FGSM(model, EPSILON, target="least-likely", **options)
    yield PGD(model, EPSILON, steps=2, random_start="gaussian", loss=KLFromNatural(), **options)
    yield EXP(model, EPSILON, steps=2, samples=2, loss=KLFromNatural(), **options)
    yield FeatureScatter(model, EPSILON, **options)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_no_trace_on_model_or_images(device, memory_format):
    images, labels = tiny_batch(6)
    images, labels = images.to(device, memory_format=memory_format), labels.to(device)
    model = TinyClassifier().to(device).train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for attack in attacks(model):
        original = images.clone()
        adversarial = attack(images, labels)
        assert adversarial.is_contiguous(memory_format=memory_format) and not adversarial.requires_grad
        assert (adversarial - images).abs().max() <= EPSILON * (1 + 1e-6)
        assert adversarial.min() >= 0 and adversarial.max() <= 1 and not torch.equal(adversarial, images)
        assert torch.equal(images, original)
        assert [module.training for module in model.modules()] == [True, True, False, True]
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["conv.bias"]
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(context):
    images, labels = tiny_batch(6)
    model = TinyClassifier()
    pairs = zip(attacks(model, noise=NoiseStream(SEED)), attacks(model, noise=NoiseStream(SEED)), strict=True)
    for plain, within in pairs:
        expected = plain(images, labels)
        with context():
            assert torch.equal(within(images + 0, labels + 0), expected)
