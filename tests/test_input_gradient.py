"""InputGradient: the right gradient, and no trace on the model."""

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream
from adt_fast._support.model_state import frozen_parameters, unwrap
from adt_fast.analysis import distribution_entropy, exp_convergence, loss_landscape
from adt_fast.attacks import EXP
from adt_fast.input_gradient import EngineOptions, InputGradient


def traces(model):
    """All that a pass might leave behind: modes, flags, gradients, state."""
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


def assert_same_traces(before, after):
    assert before[:2] == after[:2]
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert all(torch.equal(before[3][name], tensor) for name, tensor in after[3].items())


@pytest.fixture
def model(device):
    """In mixed modes, with one frozen parameter and one gradient from before."""
    model = TinyClassifier().double().to(device).train()
    model.conv.eval()
    model.fc.bias.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    return model


@pytest.fixture
def batch(device):
    images, labels = tiny_batch(7)
    return images.double().to(device), labels.to(device)


def plain_gradient(model, images, labels):
    images = images.clone().requires_grad_()
    logits = model.eval()(images)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    return images.grad, logits.detach()


@pytest.mark.parametrize("chunk", [None, 3, 7, 100])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradient_loss_and_logits(model, batch, chunk, scale):
    before = traces(model)
    with torch.no_grad():  # the caller's setting must not matter
        result = InputGradient(model, options=EngineOptions(precision="fp32", chunk=chunk))(*batch, scale=scale)
    assert_same_traces(before, traces(model))
    grad, logits = plain_gradient(model, *batch)
    torch.testing.assert_close(result.grad, scale * grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.logits, logits)
    torch.testing.assert_close(result.losses, F.cross_entropy(logits, batch[1], reduction="none"))
    assert not any(tensor.requires_grad for tensor in result[:3]) and result.loss_scale == 1.0


def test_a_loss_of_ones_own(model, batch):
    def margin(logits, labels):
        return logits.logsumexp(1) - 2 * logits.gather(1, labels[:, None])[:, 0]

    result = InputGradient(model, loss=margin)(*batch)
    images = batch[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(margin(model.eval()(images), batch[1]).sum(), images)
    torch.testing.assert_close(result.grad, grad)


class WeightGradientDetector(torch.autograd.Function):
    """images * weight, whose backward notes whether anyone asks for the weight's gradient."""

    asked = False

    @staticmethod
    def forward(ctx, images, weight):
        ctx.save_for_backward(weight)
        return images * weight

    @staticmethod
    def backward(ctx, grad):
        WeightGradientDetector.asked |= ctx.needs_input_grad[1]
        return grad * ctx.saved_tensors[0], grad.sum()


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return WeightGradientDetector.apply(images, self.weight).flatten(1)[:, :4]


def test_weight_gradients_are_never_computed():
    images, labels = tiny_batch()
    model = Detector()
    F.cross_entropy(model(images), labels).backward()
    assert WeightGradientDetector.asked, "the detector must work"
    WeightGradientDetector.asked = False
    InputGradient(model)(images, labels)
    assert not WeightGradientDetector.asked


def test_running_statistics_follow_the_mode(model, batch):
    def run(mode):
        before = model.norm.running_mean.clone()
        InputGradient(model, model_mode=mode)(*batch)
        return not torch.equal(before, model.norm.running_mean)

    assert not run("eval")
    assert run("train")
    assert run("keep")  # the batch norm is in train mode
    model.norm.eval()
    assert not run("keep")


def test_exceptions_leave_no_trace(model, batch):
    def broken_loss(logits, labels):
        raise RuntimeError("broken")

    before = traces(model)
    with pytest.raises(RuntimeError, match="broken"):
        InputGradient(model, loss=broken_loss)(*batch)
    assert_same_traces(before, traces(model))
    with pytest.raises(RuntimeError, match="inside"), frozen_parameters(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError("inside")
    assert_same_traces(before, traces(model))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_under_inference_mode(model, batch, precision):
    """What the engine keeps, such as a twin, is of use outside of it afterwards."""
    model, images = model.float(), batch[0].float()
    engine, other = (InputGradient(model, options=EngineOptions(precision=precision)) for _ in range(2))
    expected = other(images, batch[1])
    with torch.inference_mode():
        inside = engine(images + 0, batch[1] + 0)
    for result in (inside, engine(images, batch[1])):
        assert torch.equal(result.grad, expected.grad) and torch.equal(result.losses, expected.losses)
        result.grad.add_(1)


ANALYSES = {
    "maximize": lambda model, batch: EXP(model, noise=NoiseStream(1)).maximize(*batch),
    "landscape": lambda model, batch: loss_landscape(model, *batch, steps=3),
    "convergence": lambda model, batch: exp_convergence({"model": model}, [batch], steps=2, samples=1),
    "entropy": lambda model, batch: distribution_entropy(EXP(model, steps=2, noise=NoiseStream(1)), [batch]),
}


def tensors_of(result):
    values = result if isinstance(result, tuple) else vars(result).values()
    return [value for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("analyse", ANALYSES.values(), ids=ANALYSES)
def test_what_calls_the_engine_runs_under_inference_mode(batch, analyse):
    model, batch = TinyClassifier(), (batch[0].float().cpu(), batch[1].cpu())
    expected = analyse(model, batch)
    with torch.inference_mode():
        found = analyse(model, batch)
    numbers, others = map(tensors_of, (expected, found))
    assert numbers and all(torch.equal(a, b) for a, b in zip(numbers, others, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_named(batch, bad):
    class Explodes(nn.Module):
        def forward(self, images):
            factors = torch.ones_like(images)
            factors[2, 1, 0, 0] = bad
            return (images * factors).flatten(1)

    images, labels = batch
    model = Explodes()
    with pytest.raises(FloatingPointError, match=r"in \d+ elements of 1 of 7 examples"):
        InputGradient(model)(images, labels)
    InputGradient(model, check_finite=False)(images, labels)


def test_a_large_finite_gradient_passes():
    """Its sum overflows float32, itself it does not."""
    images, labels = tiny_batch()
    result = InputGradient(TinyClassifier(), loss=lambda logits, labels: logits.sum(1) * 1e37)(images, labels)
    assert torch.isfinite(result.grad).all() and not torch.isfinite(result.grad.abs().sum())


def test_wrappers_are_taken_off(model, batch):
    distributed = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(distributed)  # without the process group that its own __init__ asks for
    distributed.module = model
    assert unwrap(distributed) is unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(nn.DataParallel(model), backend="eager")) is model
    torch.testing.assert_close(
        InputGradient(nn.DataParallel(model))(*batch).grad, InputGradient(model)(*batch).grad, rtol=0, atol=0
    )


def test_losses_without_a_gradient(model, batch):
    before = traces(model)
    expected = InputGradient(model)(*batch).losses
    for chunk in (None, 3):
        engine = InputGradient(model, options=EngineOptions(precision="fp32", chunk=chunk))
        torch.testing.assert_close(engine.losses(*batch), expected)
    assert_same_traces(before, traces(model))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"model_mode": "test"}, ValueError, "model_mode"),
        ({"options": "fp32"}, TypeError, "options"),
        ({"options": EngineOptions(chunk=2), "model_mode": "train"}, ValueError, "chunk"),
        ({"options": EngineOptions(chunk=2), "model_mode": "keep"}, ValueError, "chunk"),
        ({"loss": "cross_entropy"}, TypeError, "loss"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        InputGradient(TinyClassifier(), **options)


def test_bad_calls():
    images, labels = tiny_batch()
    with pytest.raises(TypeError, match="model"):
        InputGradient(lambda x: x)
    engine = InputGradient(TinyClassifier())
    with pytest.raises(ValueError, match="x and labels"):
        engine(images, labels[:2])
    with pytest.raises(ValueError, match="x and labels"):
        engine(images[:0], labels[:0])
    with pytest.raises(ValueError, match="scale"):
        engine(images, labels, scale=float("nan"))
    with pytest.raises(ValueError, match="one number per example"):
        InputGradient(TinyClassifier(), loss=F.cross_entropy)(images, labels)
    with pytest.raises(RuntimeError, match="detached"):
        InputGradient(TinyClassifier(), loss=lambda logits, _: logits.detach().sum(1))(images, labels)
