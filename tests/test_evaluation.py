"""Accuracies against plain counts; the model as it was; the table."""

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream
from adt_fast.attacks import PGD
from adt_fast.data import ImageData
from adt_fast.evaluation import Accuracy, accuracy_table, evaluate_accuracy


@pytest.fixture
def model(device):
    return TinyClassifier().to(device).train()


def batches():
    return [tiny_batch(8, seed) for seed in range(4)]


def plain_count(model, data, attack=None):
    model.eval()
    count = 0
    for images, labels in data:
        images = images if attack is None else attack(images, labels)
        count += (model(images).argmax(1) == labels).sum().item()
    return count


def test_natural_accuracy(model, device):
    accuracy = evaluate_accuracy(model, batches())
    assert all(module.training for module in model.modules()), "modes are restored"
    assert accuracy == Accuracy(plain_count(model.cpu(), batches()), 32)
    assert 0 < accuracy.correct < 32, "a count that can tell something"


def test_accuracy_under_attack(model, device):
    attack = PGD(model, 0.1, steps=5, noise=NoiseStream(1))
    robust = evaluate_accuracy(model, batches(), attack)
    assert robust.correct < evaluate_accuracy(model, batches()).correct
    if device.type == "cpu":
        assert robust.correct == plain_count(model, batches(), PGD(model, 0.1, steps=5, noise=NoiseStream(1)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_wrong(model, device, bad):
    """Though argmax takes them for the largest, and so for the class of the first image."""
    images, _ = tiny_batch(8)
    labels = model.eval()(images.to(device)).argmax(1).cpu()
    assert evaluate_accuracy(model, [(images, labels)]) == Accuracy(8, 8)
    model.register_forward_hook(lambda module, inputs, logits: logits.index_fill(1, labels[:1].to(device), bad))
    assert evaluate_accuracy(model, [(images, labels)]) == Accuracy(0, 8)


def test_image_data_in_any_batch_size(model):
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    data = ImageData((images * 255).round().byte(), labels, 4, "tiny", (0.5,) * 3, (0.5,) * 3)
    results = {evaluate_accuracy(model, data, batch_size=size) for size in (5, 32, 100)}
    assert len(results) == 1 and results.pop().total == 32


def test_it_is_float32_whatever_autocast_says(model, device):
    seen = []
    model.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        evaluate_accuracy(model, batches()[:1], PGD(model, 0.1, steps=1, noise=NoiseStream(1)))
    assert set(seen) == {torch.float32}


def test_modes_are_restored_after_an_exception(model):
    def broken(images, labels):
        raise RuntimeError("broken")

    model.conv.eval()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate_accuracy(model, batches(), broken)
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_bad_data(model):
    images, labels = tiny_batch()
    with pytest.raises(ValueError, match="data must have at least one image"):
        evaluate_accuracy(model, [])
    with pytest.raises(ValueError, match="images must be finite, in"):
        evaluate_accuracy(model, [(images * 255, labels)])
    with pytest.raises(ValueError, match="labels must be in"):
        evaluate_accuracy(model, [(images, labels + 4)])
    with pytest.raises(TypeError, match="model"):
        evaluate_accuracy(torch.relu, [(images, labels)])


def test_table():
    rows = {"natural": Accuracy(353, 360), "PGD-20": Accuracy(9, 360)}
    assert accuracy_table(rows).splitlines() == [
        "test accuracy             correct",
        "---------------------------------",
        "natural        98.06%  353 of 360",
        "PGD-20          2.50%    9 of 360",
    ]
    assert float(rows["natural"]) == 353 / 360
