"""compat.torchattacks and compat.foolbox: the same images as the attacks they stand for, in the others' call shapes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

import adt_fast.compat.foolbox as fb
import adt_fast.compat.torchattacks as torchattacks
from adt_fast import NoiseStream, attacks

EPSILON = 0.1


@pytest.fixture
def problem(device):
    images, labels = tiny_batch(6)
    return TinyClassifier().to(device).train(), images.to(device), labels.to(device)


def same_images(make, call, expected, images, labels):
    """Both seeded by torch, from construction on."""
    torch.manual_seed(3)
    found = call(make())
    torch.manual_seed(3)
    assert torch.equal(found, expected()(images, labels))


@pytest.mark.parametrize("theirs, ours", [
    (lambda m: torchattacks.FGSM(m, eps=EPSILON), lambda m, **o: attacks.FGSM(m, EPSILON, **o)),
    (lambda m: torchattacks.PGD(m, EPSILON, 0.02, 4),
     lambda m, **o: attacks.PGD(m, EPSILON, step_size=0.02, steps=4, **o)),
    (lambda m: torchattacks.PGDL2(m, alpha=0.3, random_start=False),
     lambda m, **o: attacks.PGD(m, 1.0, norm="l2", step_size=0.3, steps=10, random_start=False, **o)),
    (lambda m: torchattacks.MIFGSM(m, decay=0.5),
     lambda m, **o: attacks.MIM(m, 8 / 255, step_size=2 / 255, steps=10, decay=0.5, **o)),
    (lambda m: torchattacks.SPSA(m, nb_iter=2, nb_sample=4, delta=0.02),
     lambda m, **o: attacks.SPSA(m, 0.3, steps=2, samples=8, sigma=0.02, query_batch=64, **o)),
])  # fmt: skip
def test_torchattacks_names(problem, theirs, ours):
    model, images, labels = problem

    same_images(lambda: theirs(model), lambda attack: attack(images, labels), lambda: ours(model), images, labels)
    modes = {"default": "none", "targeted_by_label": "given", "targeted_least_likely": "least-likely"}
    for mode, target in modes.items():
        attack = theirs(model)
        noise = attack.noise = NoiseStream(4, images.device)
        random = torch.random.get_rng_state()
        getattr(attack, f"set_mode_{mode}")()
        assert attack.noise is noise and torch.equal(torch.random.get_rng_state(), random)
        assert attack.attack.target == target and attack.get_mode().startswith(mode.split("_")[0])
        twin = ours(model, target=target)
        attack.attack.noise, twin.noise = (NoiseStream(5, images.device) for _ in range(2))
        assert torch.equal(attack(images, labels), twin(images, labels))
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training
    with pytest.raises(ValueError, match="kth_min must be 1"):
        theirs(model).set_mode_targeted_least_likely(2)


@pytest.mark.parametrize("theirs, ours", [
    (fb.FGSM(), lambda m, e, **o: attacks.FGSM(m, e, **o)),
    (fb.FGSM(random_start=True), lambda m, e, **o: attacks.PGD(m, e, steps=1, step_size=e, **o)),
    (fb.LinfPGD(steps=4), lambda m, e, **o: attacks.PGD(m, e, steps=4, step_size=0.01 / 0.3 * e, **o)),
    (fb.LinfPGD(abs_stepsize=0.01, random_start=False),
     lambda m, e, **o: attacks.PGD(m, e, steps=40, step_size=0.01, random_start=False, **o)),
    (fb.L2PGD(steps=4), lambda m, e, **o: attacks.PGD(m, e, norm="l2", steps=4, step_size=0.025 * e, **o)),
    (fb.LinfMomentumIterativeFastGradientMethod(momentum=0.5),
     lambda m, e, **o: attacks.MIM(m, e, steps=10, step_size=0.2 * e, decay=0.5, **o)),
])  # fmt: skip
def test_foolbox_names(problem, theirs, ours):
    model, images, labels = problem
    same_images(lambda: theirs, lambda attack: attack(model, images, labels, epsilons=EPSILON)[0],
                lambda: ours(model, EPSILON), images, labels)  # fmt: skip
    raw, clipped, success = theirs(model, images, labels, epsilons=[0.01, 0.3])
    assert len(raw) == len(clipped) == 2 and success.shape == (2, 6) and success.dtype == torch.bool
    for x_adv, same, fooled, epsilon in zip(raw, clipped, success, (0.01, 0.3), strict=True):
        assert torch.equal(x_adv, same)
        if "norm" not in theirs._options:
            assert 0.9 * epsilon < (x_adv - images).abs().max() <= epsilon
        assert torch.equal(fooled, model.eval()(x_adv).argmax(1) != labels)
    goal = (labels + 1) % 4
    criterion = SimpleNamespace(target_classes=SimpleNamespace(raw=goal), labels=None)
    same_images(lambda: theirs, lambda attack: attack(model, images, criterion, epsilons=EPSILON)[0],
                lambda: ours(model, EPSILON, target="given"), images, goal)  # fmt: skip
    x_adv, _, success = theirs(model, images, criterion, epsilons=0.5)
    assert torch.equal(success, model(x_adv).argmax(1) == goal)
    same_images(lambda: theirs,
                lambda attack: attack(model, images, SimpleNamespace(labels=labels), epsilons=EPSILON)[0],
                lambda: ours(model, EPSILON), images, labels)  # fmt: skip


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_radii_in_a_tensor(problem, kind):
    model, images, labels = problem
    one, _, success = fb.FGSM()(model, images, labels, epsilons=kind(EPSILON))
    several, _, successes = fb.FGSM()(model, images, labels, epsilons=kind([EPSILON, 0.01]))
    assert one.shape == images.shape and success.shape == labels.shape and successes.shape == (2, *labels.shape)
    torch.testing.assert_close(several[0], one)
    torch.testing.assert_close(one, attacks.FGSM(model, EPSILON)(images, labels))


def test_criteria_that_are_none(problem):
    model, images, _ = problem
    with pytest.raises(TypeError, match="criterion must be labels, or have labels or target_classes, got str"):
        fb.FGSM()(model, images, "labels", epsilons=EPSILON)
