"""The loop around a step: parts of a minibatch, clipped gradients, clean accuracy, the progress bar."""

import copy
import io
import re
import sys

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream
from adt_fast._training.step import TrainingStep
from adt_fast.input_gradient import FLOAT32
from adt_fast.methods import create_method
from adt_fast.models import create_model
from adt_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = {
    "standard": {},
    "at-pgd": {"steps": 2},
    "alp": {"steps": 2},
    "trades": {"steps": 2},
    "adt-exp": {"steps": 3, "samples": 2},
    "adt-exp paper": {"steps": 3, "samples": 2, "recipe": "paper"},
    "adt-exp-am": {"image_shape": (3, 6, 5), "generator_width": 3},
    "adt-imp-am": {"image_shape": (3, 6, 5), "generator_width": 3, "recipe": "paper"},  # without a hinge
}


def trainer_of(name, *, model=None, learning_rate=0.1, engine=FLOAT32, **options):
    """In float64, batch norm everywhere in eval mode: nothing but a loss's mean joins the images of a minibatch."""
    torch.manual_seed(5)
    model = TinyClassifier().double() if model is None else model
    method = create_method(
        name.split()[0], model, epsilon=0.1, noise=NoiseStream(3), engine=engine, **METHODS.get(name, {})
    )
    for network in () if method.joint is None else method.joint.networks.values():
        network.double().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-3)
    return Trainer(model, optimizer, method, **{"outer_mode": "eval"} | options)


def batch(count, seed=1):
    images, labels = tiny_batch(count, seed)
    return images.double(), labels


def weights(trainer):
    joint = trainer.method.joint
    networks = {} if joint is None else joint.networks
    return {"model": trainer.model.state_dict()} | {name: one.state_dict() for name, one in networks.items()}


@pytest.mark.parametrize("name", [*METHODS, "feascatter"])
def test_the_default_device_of_the_caller_changes_nothing(name):
    """Not even that of torch.set_default_device("cuda") for a model on the CPU, whose kernels take addresses."""

    def fresh():
        torch.manual_seed(5)
        model = create_model("small-cnn", in_channels=3, mean=[0.5] * 3, std=[0.5] * 3)
        trainer = trainer_of(name, model=model, accumulation_steps=2, max_grad_norm=1.0, ema_decay=0.9)
        for network in () if trainer.method.joint is None else trainer.method.joint.networks.values():
            network.float()
        return trainer

    images, labels = tiny_batch(4)
    trainer, elsewhere = fresh(), fresh()
    result = trainer.step(images, labels, measure_clean=True)
    with torch.device("meta"):
        assert elsewhere.step(images, labels, measure_clean=True) == result
        state = elsewhere.state_dict()
    torch.testing.assert_close(state["model"], trainer.state_dict()["model"], rtol=0, atol=0)


# Parts of a minibatch


@pytest.mark.parametrize("parts", [2, 3, 99])
@pytest.mark.parametrize("name", METHODS)
def test_parts_are_the_whole_minibatch(name, parts):
    """7 images: parts of 3 and 4, of 2, 2 and 3, and one by one, for no part is empty."""
    whole, in_parts = trainer_of(name), trainer_of(name, accumulation_steps=parts)
    for seed in range(2):
        expected = whole.step(*batch(7, seed), measure_clean=True)
        found = in_parts.step(*batch(7, seed), measure_clean=True)
        assert vars(found) == pytest.approx(vars(expected), rel=1e-12)
    torch.testing.assert_close(weights(in_parts), weights(whole), rtol=0, atol=1e-12)
    if whole.method.maximizer is not None:
        assert in_parts.method.maximizer.noise.offset == whole.method.maximizer.noise.offset > 0
        assert in_parts.method.maximizer.share is None


def test_parts_go_through_the_model_one_after_another():
    """What a backward pass keeps is that of a part: the most images in a forward pass that has a graph."""
    most = {}
    for parts in (1, 4):
        trainer = trainer_of("adt-exp", accumulation_steps=parts)
        seen = []
        trainer.model.fc.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
        trainer.step(*batch(8))
        most[parts] = max(seen)
    assert most == {1: 2 * 8, 4: 2 * 2}, "2 samples of 8 images at once, or of 2"


def saved_bytes(trainer, images, labels):
    """The most that tensors kept for backward passes take at a time."""
    held, peak = {}, 0

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            held[id(self)] = tensor.numel() * tensor.element_size()
            nonlocal peak
            peak = max(peak, sum(held.values()))

        def __del__(self):
            del held[id(self)]

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        trainer.step(images, labels)
    return peak


def test_parts_need_less_memory():
    images, labels = batch(32)
    peaks = [saved_bytes(trainer_of("at-pgd", accumulation_steps=parts), images, labels) for parts in (1, 8)]
    assert peaks[1] < 0.25 * peaks[0], peaks


@pytest.mark.parametrize("part", [1, 2])
def test_an_error_in_a_part_leaves_the_weights(part, monkeypatch):
    """The first or the second; and the next step is as if there had been none."""
    trainer, other = (trainer_of("adt-imp-am", accumulation_steps=2) for _ in range(2))
    before = copy.deepcopy((weights(trainer), trainer.optimizer.state_dict(), trainer.method.joint.state_dict()))
    backward, calls = TrainingStep._backward, []

    def failing(self, *arguments, **options):
        calls.append(1)
        sums = backward(self, *arguments, **options)
        if len(calls) == part:
            raise RuntimeError("out of memory")
        return sums

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(TrainingStep, "_backward", failing)
        trainer.step(*batch(7))
    after = weights(trainer), trainer.optimizer.state_dict(), trainer.method.joint.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert trainer.method.maximizer.share is None
    for one in (trainer, other):
        one.method.maximizer.noise.load_state_dict({"seed": 3, "offset": 0})
        one.step(*batch(7, seed=2))
    torch.testing.assert_close(weights(trainer), weights(other), rtol=0, atol=0)


def test_a_loss_that_is_not_finite_in_one_part_leaves_the_weights():
    trainer = trainer_of("standard", accumulation_steps=2)
    before = copy.deepcopy(weights(trainer))
    calls = []

    def spoil(_, __, logits):
        calls.append(1)
        return logits * float("nan") if len(calls) == 3 else logits  # of the count of classes, and the first part

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match="the training loss is nan"):
        trainer.step(*batch(6))
    assert len(calls) == 3
    torch.testing.assert_close(weights(trainer), before, rtol=0, atol=0)


# Clipping


@pytest.mark.parametrize("name", ["standard", "adt-exp"])
@pytest.mark.parametrize("share", [0.3, 2.0])
def test_clipped_gradients_are_those_of_pytorch(name, share):
    """A limit below the norm, and one above it."""
    plain = trainer_of(name)
    step = copy.deepcopy(plain)
    step.step(*batch(6))
    grads = [parameter.grad for parameter in step.model.parameters()]
    norm = float(torch.stack([grad.square().sum() for grad in grads]).sum().sqrt())

    def clip(optimizer, *_):
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), share * norm)

    plain.optimizer.register_step_pre_hook(clip)
    clipped = trainer_of(name, max_grad_norm=share * norm)
    for trainer in (plain, clipped):
        trainer.step(*batch(6))
    torch.testing.assert_close(weights(clipped), weights(plain), rtol=0, atol=1e-14)
    found = torch.stack([parameter.grad.square().sum() for parameter in clipped.model.parameters()]).sum().sqrt()
    assert float(found) == pytest.approx(min(share, 1) * norm, rel=1e-5)


def test_the_whole_minibatch_is_clipped_and_not_its_parts():
    whole, in_parts = (trainer_of("at-pgd", max_grad_norm=0.01, accumulation_steps=parts) for parts in (1, 3))
    for trainer in (whole, in_parts):
        trainer.step(*batch(7))
    torch.testing.assert_close(weights(in_parts), weights(whole), rtol=0, atol=1e-12)


def test_a_generator_is_not_clipped():
    free, clipped = trainer_of("adt-imp-am"), trainer_of("adt-imp-am", max_grad_norm=1e-6)
    start = copy.deepcopy(weights(free))
    for trainer in (free, clipped):
        trainer.step(*batch(6))
    for network in ("generator", "encoder"):
        torch.testing.assert_close(weights(clipped)[network], weights(free)[network], rtol=0, atol=0)
    moved = {name: (weights(clipped)["model"][name] - start["model"][name]).abs().max() for name in ("fc.weight",)}
    assert moved["fc.weight"] < 1e-3 < (weights(free)["model"]["fc.weight"] - start["model"]["fc.weight"]).abs().max()


def test_a_norm_that_is_not_finite_leaves_the_weights():
    trainer = trainer_of("adt-imp-am", max_grad_norm=1.0)
    before = copy.deepcopy((weights(trainer), trainer.method.joint.state_dict()))
    trainer.model.fc.bias.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(FloatingPointError, match=r"the norm of the gradient is (inf|nan); the weights were left"):
        trainer.step(*batch(6))
    torch.testing.assert_close((weights(trainer), trainer.method.joint.state_dict()), before, rtol=0, atol=0)


# Accuracies


def test_clean_accuracy_is_that_of_the_weights_before_the_step():
    images, labels = batch(40)
    trainer = trainer_of("at-pgd", outer_mode="train", learning_rate=5.0)
    for _ in range(3):
        plain = copy.deepcopy(trainer.model).eval()
        right = int((plain(images).argmax(1) == labels).sum())
        assert trainer.step(images, labels, measure_clean=True).clean_accuracy == right / 40
    plain = copy.deepcopy(trainer.model).eval()
    assert int((plain(images).argmax(1) == labels).sum()) != right, "each step changes it"
    assert trainer.step(images, labels).clean_accuracy is None


def test_standard_training_has_its_clean_accuracy_anyway():
    result = trainer_of("standard", outer_mode="train").step(*batch(9))
    assert result.clean_accuracy == result.accuracy


class WithDropout(TinyClassifier):
    def forward(self, images):
        return super().forward(torch.nn.functional.dropout(images, 0.3, self.training))


@pytest.mark.parametrize("name", ["standard", "adt-exp", "adt-imp-am"])
def test_measuring_changes_no_bit_of_training(name):
    """Not even of batch norm's statistics, or of what a model draws; nor does a bar."""
    ended = {}
    for measure in (False, True):
        trainer = trainer_of(name, model=WithDropout().double(), outer_mode="train")
        for seed in range(3):
            trainer.step(*batch(6, seed), measure_clean=measure)
        ended[measure] = copy.deepcopy((weights(trainer), torch.get_rng_state()))
    torch.testing.assert_close(ended[True], ended[False], rtol=0, atol=0)


def test_one_of_ten_minibatches_is_measured():
    trainer = trainer_of("at-pgd")
    batches, measured = [batch(3, seed) for seed in range(21)], []
    step = trainer._step

    def noted(images, labels, *, measure_clean):
        result = step(images, labels, measure_clean=measure_clean)
        measured.append(result.clean_accuracy)
        return result

    trainer._step = noted
    (result,) = trainer.fit(batches, epochs=1)
    assert [index for index, clean in enumerate(measured) if clean is not None] == [0, 10, 20]
    assert result.clean_accuracy == pytest.approx(sum(measured[::10]) / 3) and result.images == 63


# The bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(trainer, stderr, monkeypatch, **options):
    monkeypatch.setattr(sys, "stderr", stderr)
    trainer.fit([batch(3, seed) for seed in range(4)], epochs=2, **options)
    return stderr.getvalue()


@pytest.mark.parametrize(
    "name, accuracies", [("at-pgd", r"robust [\d.]+%, clean [\d.]+%"), ("standard", r"clean [\d.]+%")]
)
def test_the_bar_on_a_terminal(name, accuracies, monkeypatch):
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    bar = shown(trainer_of(name), Terminal(), monkeypatch)
    last = bar.split("\r")[-1]
    wanted = rf"epoch 2/2: +100%.*8/8 \[\d\d:\d\d<00:00.*, loss [\d.]+, {accuracies}, \d+ images/s\]"
    assert re.search(wanted, last), last


@pytest.mark.parametrize("stderr, options", [(io.StringIO, {}), (Terminal, {"progress": False})])
def test_no_bar_elsewhere(stderr, options, monkeypatch):
    assert shown(trainer_of("standard"), stderr(), monkeypatch, **options) == ""


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("accumulation_steps", 0, ValueError), ("accumulation_steps", 1.5, TypeError),
        ("max_grad_norm", 0.0, ValueError), ("max_grad_norm", float("inf"), ValueError),
        ("ema_decay", 1.0, ValueError), ("ema_decay", 0, ValueError), ("ema_decay", "0.9", TypeError),
    ],
)  # fmt: skip
def test_bad_settings(name, value, error):
    with pytest.raises(error, match=f"^{name} must be"):
        trainer_of("standard", **{name: value})
