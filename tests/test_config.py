"""Settings: numbers as people write them, defaults that depend on others, schedules, and impossible values."""

from dataclasses import replace

import pytest
import torch

from adt_fast._settings.dataset_defaults import DATASET_DEFAULTS
from adt_fast._support.devices import resolve_device
from adt_fast._support.option_text import parse_number
from adt_fast.config import TrainConfig
from adt_fast.data import dataset_names
from adt_fast.methods import method_names
from adt_fast.schedules import create_schedule


@pytest.mark.parametrize(
    "text, value", [("8/255", 8 / 255), ("0.1", 0.1), ("1e-3", 1e-3), (" 4 / 255 ", 4 / 255), ("-2", -2.0), ("3", 3.0)]
)
def test_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "/", "8/", "/255", "8/0", "8/255/2", "eight", "nan", "inf", "1/nan", "0x10"])
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match="expected a "):
        parse_number(text)


def test_defaults_follow_the_data_set():
    assert set(DATASET_DEFAULTS) == set(dataset_names())
    digits = TrainConfig(device="cpu").resolved()
    assert (digits.model, digits.epsilon, digits.test_limit) == ("small-cnn", 0.15, None)
    cifar = TrainConfig(dataset="cifar10", device="cpu").resolved()
    assert (cifar.epsilon, cifar.test_limit) == (8 / 255, 1000)
    svhn = TrainConfig(dataset="svhn", device="cpu", epochs=3, model="wrn-10-2").resolved()
    assert (svhn.epsilon, svhn.epochs, svhn.model) == (4 / 255, 3, "wrn-10-2")


def test_defaults_follow_the_method():
    adt = TrainConfig(device="cpu", samples=2).resolved()
    assert adt.method_options() == {
        "recipe": "published", "steps": 7, "samples": 2, "step_size": 0.3, "entropy_weight": 0.01,
        "label_smoothing": 0.0,
    }  # fmt: skip
    assert TrainConfig(device="cpu", method="at-pgd").resolved().method_options() == {
        "steps": 7, "norm": "linf", "random_start": True, "label_smoothing": 0.0
    }  # fmt: skip
    assert TrainConfig(device="cpu", method="standard").resolved().method_options() == {"label_smoothing": 0.0}
    assert TrainConfig(device="cpu", method="l2l").resolved().generator_width == 64
    rates = {name: TrainConfig(device="cpu", method=name).resolved().learning_rate for name in method_names()}
    assert {name for name, rate in rates.items() if rate == 0.1} == {name for name in rates if "trades" in name}
    assert set(rates.values()) == {0.1, 0.2}
    assert TrainConfig(device="cpu", method="trades", learning_rate=0.3).resolved().learning_rate == 0.3
    assert TrainConfig(device="cpu", method="trades", dataset="svhn").resolved().learning_rate == 0.1
    assert TrainConfig(device="cpu", method="l2l", dataset="svhn").resolved().generator_width == 256


def test_nothing_else_changes():
    config = TrainConfig(device="cpu", seed=3, train_limit=5, momentum=0.5)
    resolved = config.resolved()
    assert resolved.resolved() == resolved
    names = [name for name, value in config.as_dict().items() if value is not None]
    assert {name: resolved.as_dict()[name] for name in names} == {name: config.as_dict()[name] for name in names}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "adt-epx"}, "did you mean 'adt-exp'"),
        ({"dataset": "cifar"}, "did you mean 'cifar10'"),
        ({"method": "standard", "samples": 3}, "samples is no option of method 'standard', which has label_smoothing"),
        ({"method": "at-pgd", "recipe": "paper"}, "recipe is no option of method 'at-pgd', which has steps, step_size"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"train_limit": 0}, "train_limit"),
        ({"test_limit": 0}, "test_limit"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"momentum": -0.1}, "momentum"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"seed": -1}, "seed"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not here"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(TrainConfig(device="cpu"), **settings).resolved()


def test_auto_is_the_gpu_if_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cpu:3", "cpu:0", "meta", "mps", "xpu:0", "gpu", "cuda:99"])
def test_other_devices_are_refused(name):
    with pytest.raises(ValueError, match=f"device .*{name}"):
        resolve_device(name)
    assert resolve_device("cpu") == torch.device("cpu")


def rates(name, epochs, batches):
    """The learning rate of every minibatch, the highest being 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_schedule(name, optimizer, epochs=epochs, batches=batches)
    found = []
    for _ in range(epochs * batches):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found, optimizer.param_groups[0]["lr"]


def test_schedules():
    assert rates("constant", 2, 3) == ([1.0] * 6, 1.0)
    cosine, end = rates("cosine", 2, 2)
    assert cosine == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]) and end == pytest.approx(0.0)
    one_cycle, end = rates("one-cycle", 10, 10)
    assert one_cycle[0] == pytest.approx(0.04) and one_cycle[30] == pytest.approx(1.0) == max(one_cycle)
    assert one_cycle[65] == pytest.approx(0.5) and end == pytest.approx(0.0)


@pytest.mark.parametrize("epochs, at_full_rate", [(76, 74), (38, 37), (10, 9), (2, 1), (1, 1)])
def test_the_papers_schedule(epochs, at_full_rate):
    """From the 75th of 76 epochs on, a tenth."""
    found, _ = rates("step", epochs, 7)
    assert found == pytest.approx([1.0] * 7 * at_full_rate + [0.1] * 7 * (epochs - at_full_rate))


def test_unknown_schedule():
    with pytest.raises(ValueError, match="one-cycle"):
        rates("linear", 1, 1)


def test_the_l2_ball_needs_a_radius():
    with pytest.raises(ValueError, match="epsilon must be given with norm l2"):
        TrainConfig(device="cpu", method="at-pgd", norm="l2").resolved()
    assert TrainConfig(device="cpu", method="at-pgd", norm="l2", epsilon=0.5).resolved().epsilon == 0.5
