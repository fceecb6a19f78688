"""Networks trained against the classifier: the reversed gradient, and a state that goes on from a file bit for bit."""

import copy
import math
import pickle

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream
from adt_fast.attacks import PGD
from adt_fast.checkpoint import (
    CheckpointError,
    load_checkpoint,
    pack_state,
    save_checkpoint,
    save_model,
    unpack_state,
)
from adt_fast.input_gradient import FLOAT32
from adt_fast.methods import JointTraining, create_method, reverse_gradient
from adt_fast.models import create_model
from adt_fast.trainer import Trainer

NAMES = ["l2l", "adt-exp-am", "adt-imp-am"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "joint.safetensors"


def test_reverse_gradient():
    x = torch.randn(3, 4, requires_grad=True)
    y = reverse_gradient(x)
    assert torch.equal(y, x)
    weights = torch.randn(3, 4)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    assert torch.equal(grad, -weights)
    (grad,) = torch.autograd.grad((reverse_gradient(reverse_gradient(x)) * weights).sum(), x)
    assert torch.equal(grad, weights)
    (grad,) = torch.autograd.grad((reverse_gradient(x) + x).sum(), x)
    assert not grad.any(), "only what goes through it is reversed"
    assert not reverse_gradient(x.detach()).requires_grad


def trainer_of(name, seed, **options):
    """A trainer whose networks, and whose noise, depend on the seed."""
    torch.manual_seed(seed)
    model = TinyClassifier(seed=seed)
    settings = {"epsilon": 0.1, "image_shape": (3, 6, 5), "generator_width": 3} | options
    method = create_method(name, model, noise=NoiseStream(seed), engine=FLOAT32, **settings)
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), method)


def train(trainer, steps, seed):
    return [trainer.step(*tiny_batch(6, seed=seed + step)) for step in range(steps)]


def everything(trainer):
    return trainer.model.state_dict(), trainer.method.joint.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_bit_for_bit(name, path):
    """Weights, running statistics and both Adams come back; a fresh trainer then takes the very same steps."""
    trainer = trainer_of(name, seed=1)
    train(trainer, 2, seed=10)
    trainer.method.joint.save(path, {"noise": trainer.method.maximizer.noise.state_dict(), "epoch": 3})
    rest = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()))
    expected = train(trainer, 2, seed=20)

    resumed = trainer_of(name, seed=2)
    metadata = resumed.method.joint.load(path)
    assert metadata["epoch"] == 3
    resumed.method.maximizer.noise.load_state_dict(metadata["noise"])
    resumed.model.load_state_dict(rest[0])
    resumed.optimizer.load_state_dict(rest[1])
    assert train(resumed, 2, seed=20) == expected
    torch.testing.assert_close(everything(resumed), everything(trainer), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_goes_on_bit_for_bit(name):
    """The same in memory; steps that follow do not reach into what was taken."""
    trainer = trainer_of(name, seed=1)
    train(trainer, 1, seed=10)
    saved = copy.deepcopy(everything(trainer))
    resumed = trainer_of(name, seed=2)
    resumed.method.joint.load_state_dict(saved[1])
    torch.testing.assert_close(resumed.method.joint.state_dict(), saved[1], rtol=0, atol=0)
    resumed.model.load_state_dict(saved[0])
    resumed.method.maximizer.noise.load_state_dict(trainer.method.maximizer.noise.state_dict())
    resumed.optimizer.load_state_dict(trainer.optimizer.state_dict())
    assert train(resumed, 1, seed=20) == train(trainer, 1, seed=20)


def test_a_state_before_the_first_step(path):
    """Adam has none yet."""
    trainer, resumed = trainer_of("adt-imp-am", seed=1), trainer_of("adt-imp-am", seed=2)
    trainer.method.joint.save(path, {})
    assert resumed.method.joint.load(path) == {}
    torch.testing.assert_close(resumed.method.joint.state_dict(), trainer.method.joint.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizers(name):
    """Adam of the paper's settings; the betas of other networks than the generator are PyTorch's."""
    joint = trainer_of(name, seed=1).method.joint
    assert joint.optimizers.keys() == joint.networks.keys()
    assert set(joint.networks) == ({"generator", "encoder"} if name == "adt-imp-am" else {"generator"})
    for network, optimizer in joint.optimizers.items():
        assert type(optimizer) is torch.optim.Adam
        (group,) = optimizer.param_groups
        assert group["betas"] == ((0.5, 0.999) if network == "generator" else (0.9, 0.999))
        assert (group["lr"], group["weight_decay"], group["eps"]) == (2e-4, 0, 1e-8)
        assert [id(one) for one in group["params"]] == [id(one) for one in joint.networks[network].parameters()]


def test_zero_grad_drops_the_gradients_of_all_networks():
    trainer = trainer_of("adt-imp-am", seed=1)
    train(trainer, 1, seed=10)
    joint = trainer.method.joint
    parameters = [parameter for network in joint.networks.values() for parameter in network.parameters()]
    assert all(parameter.grad is not None for parameter in parameters)
    joint.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize(
    "rate, error", [(0.0, ValueError), (-1e-4, ValueError), (math.nan, ValueError), ("", TypeError)]
)
def test_bad_learning_rates(rate, error):
    maximizer = trainer_of("l2l", seed=1).method.maximizer
    with pytest.raises(error, match="generator_learning_rate"):
        JointTraining(maximizer, generator_learning_rate=rate)


# Refused


@pytest.mark.parametrize(
    "saved, loaded, options, error, message",
    [
        ("l2l", "adt-imp-am", {}, ValueError, r"networks \['encoder', 'generator'\], got \['generator'\]"),
        ("adt-imp-am", "adt-exp-am", {}, ValueError, r"networks \['generator'\], got \['encoder', 'generator'\]"),
        ("l2l", "adt-exp-am", {}, ValueError, "the first is 'head.weight'"),
        ("adt-exp-am", "adt-exp-am", {"generator_width": 4}, ValueError, "the first is 'blocks"),
        ("adt-imp-am", "adt-imp-am", {"latent_dim": 3}, ValueError, "the first is 'latent"),
    ],
)
def test_other_networks_are_refused(saved, loaded, options, error, message, path):
    trainer = trainer_of(saved, seed=1)
    train(trainer, 1, seed=10)
    trainer.method.joint.save(path, {})
    joint = trainer_of(loaded, seed=2, **options).method.joint
    before = copy.deepcopy(joint.state_dict())
    with pytest.raises(error, match=message):
        joint.load(path)
    torch.testing.assert_close(joint.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: 3, "must be of the networks"),
        (lambda state: {"generator": state["generator"]["network"]}, "keys 'network' and 'optimizer'"),
        (lambda state: {"generator": state["generator"] | {"optimizer": {}}}, "as many parameters"),
        (
            lambda state: {"generator": state["generator"] | {"optimizer": {"state": {}, "param_groups": []}}},
            "as many parameters",
        ),
    ],
)
def test_states_of_another_kind_change_nothing(change, message):
    other = trainer_of("l2l", seed=3).method.joint.state_dict()
    joint = trainer_of("l2l", seed=2).method.joint
    before = copy.deepcopy(joint.state_dict())
    with pytest.raises(ValueError, match=message):
        joint.load_state_dict(change(other))
    torch.testing.assert_close(joint.state_dict(), before, rtol=0, atol=0)


def test_only_amortised_maximizers_have_networks_to_train():
    with pytest.raises(TypeError, match="maximizer must be an AmortizedAttack, got PGD"):
        JointTraining(PGD(create_model("small-cnn")))


def test_files_that_are_something_else(path):
    joint = trainer_of("l2l", seed=1).method.joint
    with pytest.raises(FileNotFoundError):
        joint.load(path)
    save_model(path, create_model("small-cnn"), model_name="small-cnn")
    with pytest.raises(ValueError, match="is a checkpoint, but not of jointly trained networks"):
        joint.load(path)
    torch.save(joint.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"file of torch\.save or pickle"):
        joint.load(path)
    path.write_bytes(pickle.dumps(1))
    with pytest.raises(CheckpointError, match=r"file of torch\.save or pickle"):
        joint.load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        joint.load(path)


def test_damage_is_an_error(path):
    """One bit, anywhere, or a file cut short: an error, and the networks are as they were."""
    trainer = trainer_of("l2l", seed=1)
    joint = trainer.method.joint
    joint.save(path, {"epoch": 3})
    content = path.read_bytes()
    before = copy.deepcopy(joint.state_dict())
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        place = int(torch.randint(len(content), (), generator=generator))
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        for spoiled in (bytes(damaged), content[:place]):
            path.write_bytes(spoiled)
            with pytest.raises(CheckpointError):
                joint.load(path)
    torch.testing.assert_close(joint.state_dict(), before, rtol=0, atol=0)
    path.write_bytes(content)
    assert joint.load(path) == {"epoch": 3}


def test_metadata_that_a_file_cannot_hold_is_refused(path):
    joint = trainer_of("l2l", seed=1).method.joint
    with pytest.raises(TypeError, match="metadata"):
        joint.save(path, {"started": object()})
    assert not path.exists()


# Nested states as a checkpoint's tensors and metadata

T = torch.tensor

STATES = {
    "plain": {"epoch": 3, "rate": 2e-4, "name": "naïve", "none": None, "yes": True, "no": False},
    "keys": {0: T(1.0), 1: {2: T([2, 3]), "2": "a word"}, "x": {}},
    "lists": [T(1), [T(2), [], {}], [1, 2.5, None]],
    "tensors": {"half": T([1.5, -0.0], dtype=torch.bfloat16), "mask": T([True]), "empty": torch.empty(0, 3)},
    "words of the format": {"tensor": 1, "list": [2], "dict": {"dict": 3, "tensor": T(4)}},
    "numbers": {"large": 2**62, "tiny": 5e-324, "infinite": math.inf, "negative zero": -0.0},
    "slashes": {"a": {"b": T(1), "c/d": T(2)}, "a/b": T(3), "a/c": {"d": T(4)}, "/": T(5)},
    "int and str keys": {0: T(1), "0": T(2), 1: [T(3)], "1": {0: T(4)}},
    "nothing": {},
    "only a tensor": T([1.0, 2.0]),
    "only a number": 7,
}


def assert_same(found, expected):
    """Of the same types, too, all the way down; tuples have become lists."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif isinstance(expected, dict):
        assert list(found) == list(expected) and [type(key) for key in found] == [type(key) for key in expected]
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is list and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected) and repr(found) == repr(expected)


@pytest.mark.parametrize("name", STATES)
def test_nested_states_through_a_file(name, path):
    tensors, structure = pack_state(STATES[name])
    assert_same(unpack_state(tensors, structure), STATES[name])
    save_checkpoint(path, tensors, {"state": structure})
    tensors, metadata = load_checkpoint(path)
    assert_same(unpack_state(tensors, metadata["state"]), STATES[name])


def test_tuples_come_back_as_lists(path):
    state = {"betas": (0.5, 0.999), "nested": [(T(1), (None,))]}
    tensors, structure = pack_state(state)
    save_checkpoint(path, tensors, {"state": structure})
    tensors, metadata = load_checkpoint(path)
    assert_same(unpack_state(tensors, metadata["state"]), state)


def test_tensors_are_named_by_their_path():
    tensors, _ = pack_state({"generator": {"optimizer": {"state": {0: {"exp_avg": T(1)}}, "list": [T(2)]}}})
    assert set(tensors) == {"generator/optimizer/state/0/exp_avg", "generator/optimizer/list/0"}


def test_an_optimizers_state_through_a_file(path):
    """Adam's int keys, tuples and step counters; AMSGrad has one tensor more."""
    linear = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(linear.parameters(), lr=0.1, amsgrad=True)
    linear(torch.ones(1, 3)).sum().backward()
    adam.step()
    tensors, structure = pack_state(adam.state_dict())
    save_checkpoint(path, tensors, {"adam": structure})
    tensors, metadata = load_checkpoint(path)
    other = torch.optim.Adam(linear.parameters())
    other.load_state_dict(unpack_state(tensors, metadata["adam"]))
    assert_same(other.state_dict()["state"], adam.state_dict()["state"])
    group = other.state_dict()["param_groups"][0]
    assert group["amsgrad"] is True and tuple(group["betas"]) == (0.9, 0.999)


def test_values_that_a_file_cannot_hold_are_refused(path):
    tensors, structure = pack_state({"optimizer": {"hook": len}})
    with pytest.raises(TypeError, match="metadata"):
        save_checkpoint(path, tensors, {"state": structure})
