"""WeightAverage: against a plain loop, on models whose tensors are shared or are no weights, and in a trainer."""

import copy

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast.methods import create_method
from adt_fast.trainer import Trainer
from adt_fast.weight_average import WeightAverage

pytestmark = pytest.mark.usefixtures("one_thread")

DECAY = 0.3  # reached after 3 steps, whose own are 2/11, 3/12 and 4/13


class Peculiar(nn.Module):
    """Tied weights, a buffer under two names, one that is not saved, integers, bools, and 16 bits."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("shift", torch.zeros(2))
        self.again = nn.Module()
        self.again.register_buffer("shift", self.shift)
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("narrow", torch.zeros(2, dtype=torch.bfloat16))


def tensors(model):
    """Every one, by name, those that are not saved too."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@torch.no_grad()
def move(model, step):
    generator = torch.Generator().manual_seed(step)
    for tensor in tensors(model).values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        else:
            tensor.copy_(torch.randint(2, tensor.shape, generator=generator))


def plain_average(start, following):
    """In float64, by the formula."""
    average = start.double()
    for n, value in enumerate(following, start=1):
        d = min(DECAY, (1 + n) / (10 + n))
        average = average + (1 - d) * (value.double() - average)
    return average


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_it_is_the_plain_average(steps):
    model = Peculiar()
    history = [{name: tensor.clone() for name, tensor in tensors(model).items()}]
    average = WeightAverage(model, DECAY)
    for step in range(steps):
        move(model, step)
        average.update(model)
        history.append({name: tensor.clone() for name, tensor in tensors(model).items()})
    assert average.steps == steps
    found = tensors(average.model)
    assert {"unsaved", "norm.running_var", "norm.num_batches_tracked"} <= found.keys()
    for name, tensor in found.items():
        values = [moment[name] for moment in history]
        assert tensor.dtype == values[0].dtype and not tensor.requires_grad
        if tensor.is_floating_point():
            tolerance = 0.02 if tensor.dtype == torch.bfloat16 else 1e-6
            expected = plain_average(values[0], values[1:])
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=tolerance, msg=name)
        else:
            assert torch.equal(tensor, values[-1]), name


def test_what_is_shared_stays_so():
    """And is averaged once a step, as one tensor."""
    average = WeightAverage(Peculiar(), DECAY)
    assert average.model.second.weight is average.model.first.weight
    assert average.model.again.shift is average.model.shift


def test_it_is_a_model_of_its_own():
    """Without wrappers, in eval mode whatever the model is in, and not where the model is."""
    model = TinyClassifier()
    average = WeightAverage(nn.DataParallel(model.train()), DECAY)
    assert type(average.model) is TinyClassifier and not average.model.training and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = copy.deepcopy(average.model.state_dict())
    with torch.no_grad():
        model.fc.weight.add_(1)
    torch.testing.assert_close(average.model.state_dict(), before, rtol=0, atol=0)
    average.update(nn.DataParallel(model))
    assert not torch.equal(average.model.fc.weight, before["fc.weight"])


def test_its_state_goes_on():
    model = Peculiar()
    average = WeightAverage(model, DECAY)
    move(model, 0)
    average.update(model)
    state = copy.deepcopy(average.state_dict())
    other = WeightAverage(Peculiar(), DECAY)
    other.load_state_dict(state)
    move(model, 1)
    for one in (average, other):
        one.update(model)
    torch.testing.assert_close(other.state_dict(), average.state_dict(), rtol=0, atol=0)
    assert other.steps == 2


@pytest.mark.parametrize(
    "model, error",
    [
        (torch.relu, TypeError),
        (nn.Linear(3, 3), ValueError),
        (Peculiar().double(), ValueError),
        (nn.Sequential(Peculiar(), nn.Linear(1, 1)), ValueError),
    ],
    ids=["none", "another", "another type", "more"],
)
def test_other_models_change_nothing(model, error):
    average = WeightAverage(Peculiar(), DECAY)
    before = copy.deepcopy(average.state_dict())
    with pytest.raises(error, match="model must be"):
        average.update(model)
    assert average.steps == before["steps"] == 0
    assert all(torch.equal(value, before["model"][name]) for name, value in average.model.state_dict().items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": -1}, "steps of the average must be in"),
        ({"model": {}}, "weight average like this one, but 15 of its tensors differ"),
        ({"more": 1}, "state of the average must have the keys 'model' and 'steps'"),
    ],
)
def test_other_states_change_nothing(change, message):
    average = WeightAverage(Peculiar(), DECAY)
    before = copy.deepcopy(average.state_dict())
    with pytest.raises(ValueError, match=message):
        average.load_state_dict(average.state_dict() | change)
    torch.testing.assert_close(average.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("decay, error", [(0, ValueError), (1.0, ValueError), (float("nan"), ValueError),
                                          ("0.9", TypeError), (True, TypeError)])  # fmt: skip
def test_impossible_decays(decay, error):
    with pytest.raises(error, match="decay must be"):
        WeightAverage(TinyClassifier(), decay)


def test_a_trainer_follows_every_step():
    """Not those that failed; and without an average, the model itself is what was trained."""
    def trainer_of(ema_decay):
        model = TinyClassifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(nn.DataParallel(model), optimizer, create_method("standard", model), ema_decay=ema_decay)

    plain, averaged = trainer_of(None), trainer_of(DECAY)
    assert plain.average is None and plain.trained_model is plain.model.module
    assert averaged.trained_model is averaged.average.model
    expected = WeightAverage(plain.model, DECAY)
    for seed in range(3):
        for trainer in (plain, averaged):
            trainer.step(*tiny_batch(6, seed))
        expected.update(plain.model)
    with pytest.raises(ValueError, match="images must be finite"):
        averaged.step(tiny_batch(6)[0] * 2, tiny_batch(6)[1])
    torch.testing.assert_close(averaged.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(averaged.average.state_dict(), expected.state_dict(), rtol=0, atol=0)
