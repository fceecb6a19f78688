"""The transfer matrix against a loop that makes the examples anew for every pair."""

import csv

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream
from adt_fast.analysis import transfer_accuracy, transfer_attacks
from adt_fast.attacks import MIM, PGD, Attack

EPSILON = 0.15


@pytest.fixture
def models(device):
    return {f"seed {seed}": TinyClassifier(seed=seed).to(device).train() for seed in range(3)}


@pytest.fixture
def batches(device):
    parts = [tiny_batch(size, seed) for size, seed in ((8, 1), (8, 2), (5, 3))]
    return [(images.to(device), labels.to(device)) for images, labels in parts]


def factories():
    return {
        "PGD": lambda model: PGD(model, EPSILON, steps=3, noise=NoiseStream(4)),
        "MIM": lambda model: MIM(model, EPSILON / 3, steps=3),
    }


def count(model, batches):
    model.eval()
    return sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches)


def test_against_brute_force(models, batches):
    sources = {name: models[name] for name in ("seed 0", "seed 1")}
    found = transfer_accuracy(sources, models, batches, attacks=factories())
    assert all(module.training for model in models.values() for module in model.modules())
    assert found.correct.shape == (2, 2, 3) and found.images == 21
    for a, factory in enumerate(factories().values()):
        for s, source in enumerate(sources.values()):
            for t, target in enumerate(models.values()):
                attack = factory(source)
                perturbed = [(attack(images, labels), labels) for images, labels in batches]
                assert found.correct[a, s, t].item() == count(target, perturbed)
    assert found.natural.tolist() == [count(model, batches) for model in models.values()]
    assert torch.equal(found.accuracies, found.correct.double() / 21)
    assert len(set(found.correct.flatten().tolist())) > 5, "counts that can tell attacks and models apart"


def test_examples_are_made_once(models, batches):
    class Counted(Attack):
        calls = 0

        def perturb(self, images, labels):
            Counted.calls += 1
            return images.unsqueeze(0).clone()

    found = transfer_accuracy(models, models, batches, attacks={"none": Counted})
    assert Counted.calls == 3 * 3, "sources times batches"
    assert all(torch.equal(row, found.natural) for row in found.correct[0])


def test_the_papers_attacks(models):
    attacks = transfer_attacks(EPSILON, seed=5)
    assert list(attacks) == ["PGD-20", "MIM-20"]
    pgd, mim = (factory(models["seed 0"]) for factory in attacks.values())
    assert (type(pgd), pgd.steps, pgd.step_size, pgd.noise.seed) == (PGD, 20, EPSILON / 4, 5)
    assert (type(mim), mim.steps, mim.step_size, mim.decay) == (MIM, 20, EPSILON / 4, 1.0)
    assert pgd.epsilon == mim.epsilon == EPSILON and pgd.random_start is True


def test_files(models, batches, tmp_path):
    pytest.importorskip("matplotlib")
    found = transfer_accuracy(models, models, batches, attacks=factories())
    saved = found.save(tmp_path)
    with open(saved.files[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + 2 * 3 * 3 and rows[0]["attack"] == "" and rows[0]["correct"] == str(found.natural[0].item())
    row = rows[3 + 9 + 3 + 2]
    assert (row["attack"], row["source"], row["target"]) == ("MIM", "seed 1", "seed 2")
    assert float(row["accuracy"]) == found.accuracies[1, 1, 2].item()


def test_bad_arguments(models, batches):
    for name in ("sources", "targets", "attacks"):
        arguments = {"sources": models, "targets": models, "attacks": factories()} | {name: {}}
        with pytest.raises(ValueError, match=f"{name} must have at least one"):
            transfer_accuracy(data=batches, **arguments)
    with pytest.raises(ValueError, match="data must have at least one image"):
        transfer_accuracy(models, models, [], attacks=factories())
    with pytest.raises(TypeError, match="model must be"):
        transfer_accuracy({"a": torch.relu}, models, batches)
    with pytest.raises(ValueError, match="images must be finite"):
        transfer_accuracy(models, models, [(batches[0][0] * 255, batches[0][1])], attacks=factories())
    with pytest.raises(ValueError, match="seed"):
        transfer_attacks(seed=-1)
