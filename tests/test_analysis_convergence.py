"""Loss and accuracy at each step of EXP against an EXP run of that many steps."""

import csv

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream
from adt_fast.analysis import exp_convergence
from adt_fast.attacks import EXP, exp_recipe
from adt_fast.input_gradient import EngineOptions

EPSILON = 0.2


@pytest.fixture
def models(device):
    return {f"seed {seed}": TinyClassifier(seed=seed).to(device).double().train() for seed in (0, 1)}


@pytest.fixture
def batches(device):
    parts = [tiny_batch(size, seed) for size, seed in ((5, 1), (3, 2))]
    return [(images.double().to(device), labels.to(device)) for images, labels in parts]


def separate_runs(model, batches, steps, *, samples, recipe, seed, offset_of):
    """Loss and accuracy of a run of so many steps, whose last samples are as many as those of a step."""
    recipe = exp_recipe(recipe, outer_samples=samples)
    loss = correct = count = 0
    for index, (images, labels) in enumerate(batches):
        noise = NoiseStream(seed, images.device, offset_of(index))
        attack = EXP(model, EPSILON, steps=steps, samples=samples, step_size=0.3, recipe=recipe, noise=noise)
        x_adv = attack.maximize(images, labels).x_adv
        assert len(x_adv) == samples
        model.eval()
        for one in x_adv:
            logits = model(one)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count, correct / count


@pytest.mark.parametrize("recipe", ["published", "paper", "published,accumulate=false"])
def test_every_step_is_a_run_of_its_own(models, batches, recipe):
    found = exp_convergence(models, batches, epsilon=EPSILON, steps=6, samples=4, recipe=recipe, seed=7)
    assert found.losses.shape == found.accuracies.shape == (2, 7) and found.images == 8
    for row, model in enumerate(models.values()):
        for steps in range(7):
            # The whole run draws 8 times for every batch, and both start from the same draw.
            loss, accuracy = separate_runs(
                model, batches, steps, samples=4, recipe=recipe, seed=7, offset_of=lambda index: 8 * index
            )
            assert found.losses[row, steps].item() == pytest.approx(loss, rel=1e-9)
            assert found.accuracies[row, steps].item() == pytest.approx(accuracy, abs=1e-12)
    assert (found.losses[:, -1] > found.losses[:, 0]).all(), "an attack that attacks"


def test_chunks_do_not_matter(models, batches, monkeypatch):
    whole = exp_convergence(models, batches, epsilon=EPSILON, steps=2, samples=4)
    chunked = EngineOptions(precision="fp32", graph=False, chunk=3)
    monkeypatch.setattr("adt_fast.analysis.convergence.EngineOptions", lambda **options: chunked)
    parts = exp_convergence(models, batches, epsilon=EPSILON, steps=2, samples=4)
    torch.testing.assert_close(whole.losses, parts.losses)
    assert torch.equal(whole.accuracies, parts.accuracies)


def test_no_step_at_all(models, batches):
    found = exp_convergence(models, batches, epsilon=EPSILON, steps=0, samples=2)
    assert found.losses.shape == (2, 1)


def test_models_are_left_as_they_were(models, batches):
    exp_convergence(models, batches, epsilon=EPSILON, steps=1, samples=1)
    for model in models.values():
        assert all(module.training for module in model.modules())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_files(models, batches, tmp_path):
    pytest.importorskip("matplotlib")
    found = exp_convergence(models, batches, epsilon=EPSILON, steps=2, samples=2)
    saved = found.save(tmp_path)
    with open(saved.files[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["steps"]) for row in rows] == [(m, str(t)) for m in models for t in range(3)]
    assert float(rows[4]["loss"]) == found.losses[1, 1].item()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"steps": -1}, ValueError, "steps must be in"),
        ({"samples": 0}, ValueError, "samples must be in"),
        ({"step_size": 0.0}, ValueError, "step_size must be > 0"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be > 0"),
        ({"recipe": "mine"}, ValueError, "recipe must be one of"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"models": {}}, ValueError, "models must have at least one"),
        ({"data": []}, ValueError, "data must have at least one image"),
        ({"models": {"a": torch.relu}}, TypeError, "model must be"),
    ],
)
def test_bad_arguments(options, error, message):
    arguments = {"models": {"a": TinyClassifier()}, "data": [tiny_batch(2)]} | options
    with pytest.raises(error, match=message):
        exp_convergence(**arguments)
