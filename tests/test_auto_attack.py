"""AutoAttack: by a stand-in for its package, what that is called with and leaves behind; and the package itself."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import evaluate
from adt_fast.attacks import AutoAttack

EPSILON = 0.1


@pytest.fixture
def package(monkeypatch):
    """Moves every pixel up by eps, and more: what leaves the ball is put back."""

    calls = []

    class Package:
        def __init__(self, model, **options):
            self.model, self.options = model, options
            self.apgd_targeted, self.fab = SimpleNamespace(n_target_classes=9), SimpleNamespace(n_target_classes=2)
            calls.append(options)

        def run_standard_evaluation(self, images, labels, bs):
            torch.manual_seed(self.options["seed"])
            assert not self.model.training and not any(p.requires_grad for p in self.model.parameters())
            assert self.apgd_targeted.n_target_classes == 3 and self.fab.n_target_classes == 2
            assert images.is_contiguous() and bs == len(images) == len(labels)
            return images + self.options["eps"] * 1.01

    module = ModuleType("autoattack")
    module.AutoAttack = Package
    monkeypatch.setitem(sys.modules, "autoattack", module)
    return calls


@pytest.fixture
def problem(device):
    images, labels = tiny_batch(6)
    return TinyClassifier().to(device).train(), images.to(device), labels.to(device)


def test_what_the_package_is_asked(package, problem):
    model, images, labels = problem
    before = torch.get_rng_state()
    attack = AutoAttack(model, EPSILON, version="plus", seed=7)
    found = attack(images.contiguous(memory_format=torch.channels_last), labels)
    assert package == [
        {"norm": "Linf", "eps": EPSILON, "version": "plus", "seed": 7, "device": str(images.device), "verbose": False}
    ]
    torch.testing.assert_close(found, (images + EPSILON).clamp(max=1))
    assert (found.double() - images.double()).abs().max() <= EPSILON
    assert torch.equal(torch.get_rng_state(), before), "its seeding stays inside"
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_it_is_an_attack_by_name(package, problem):
    model, images, labels = problem
    report = evaluate(model, [(images, labels)], "autoattack:version=rand:seed=3", epsilon=0.5, norm="l2")
    assert package[0]["norm"] == "L2" and package[0]["version"] == "rand" and package[0]["seed"] == 3
    assert len(report) == 6
    evaluate(model, [(images, labels)], "autoattack", epsilon=0.5, seed=11)
    assert package[-1]["seed"] == 11, "the evaluation's"


@pytest.mark.parametrize("options, error, message", [
    ({"epsilon": 0.0}, ValueError, "epsilon"),
    ({"norm": "l1"}, ValueError, "norm"),
    ({"version": "fast"}, ValueError, "version"),
    ({"seed": -1}, ValueError, "seed"),
    ({"model": torch.relu}, TypeError, "model"),
])  # fmt: skip
def test_bad_arguments(package, options, error, message):
    with pytest.raises(error, match=message):
        AutoAttack(**{"model": TinyClassifier()} | options)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(ImportError, match="pip install git"):
        AutoAttack(TinyClassifier())


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.25), ("l2", 1.0)])
def test_the_package_itself(problem, norm, epsilon):
    pytest.importorskip("autoattack", reason="its authors' package is on no index; docs/attacks.md says how to get it")
    model, images, _ = problem
    labels = model.eval()(images).argmax(1)
    attack = AutoAttack(model.train(), epsilon, norm=norm, seed=7)
    found = attack(images, labels)
    moved = (found.double() - images.double()).flatten(1)
    size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    still_right = model.eval()(found).argmax(1) == labels
    assert found.min() >= 0 and found.max() <= 1 and (size <= epsilon * (1 + 1e-6)).all()
    assert torch.equal(size == 0, still_right), "an image is moved if and only if that makes the model wrong"
    assert not still_right.all(), "a ball this wide has adversarial examples"
