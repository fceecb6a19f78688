"""The attack twin: the same function as the classifier, with less to do, and fresh weights whenever it is asked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adt_fast.input_gradient import EngineOptions, InputGradient
from adt_fast.input_gradient.layers import FoldedConvolution, WinogradConvolution
from adt_fast.input_gradient.twin import AttackTwin, TwinUnavailable
from adt_fast.models import Normalize, create_model


class PostActivation(nn.Module):
    """conv-BN-ReLU, ReLU as a module, a function, a method and in place; a residual sum; a stem normalisation."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8, affine=False)
        self.conv3, self.norm3 = nn.Conv2d(8, 8, 1, stride=2), nn.BatchNorm2d(8, eps=0.1)
        self.relu = nn.ReLU(inplace=True)
        self.fc, self.norm4 = nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(self.normalize(x))))
        out = F.relu(out + self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out)).relu_()
        return self.norm4(self.fc(out.mean((2, 3))))


class PreActivation(nn.Module):
    """BN-ReLU-conv with a shared activation, a BN that two read, a conv whose output two read."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        stem = self.stem(x)
        normed = self.norm1(stem)
        out = self.norm2(self.conv1(torch.relu(normed)))
        out = self.conv2(F.relu(out)) + stem
        out = out + normed
        return self.fc(out.mean((2, 3)))


class SharedModules(nn.Module):
    """One convolution and one batch norm, used twice: nothing may be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        for _ in range(2):
            x = F.relu(self.norm(self.conv(x)))
        return self.fc(x.mean((2, 3)))


class DataDependent(nn.Module):
    """Its graph depends on its input, so it cannot be read."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x):
        out = self.norm(self.conv(x))
        return self.fc(out.mean((2, 3)) if out.sum() > 0 else out.amax((2, 3)))


def with_statistics(model):
    """Running statistics, scales and weights that are not trivial."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            if module.weight is not None:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model


MODELS = {
    "post-activation": PostActivation,
    "pre-activation": PreActivation,
    "shared": SharedModules,
    "data-dependent": DataDependent,
    **{
        name: lambda name=name: create_model(name, mean=[0.5, 0.5, 0.4], std=[0.2, 0.2, 0.3])
        for name in ("wrn-10-2", "preactresnet-18", "small-cnn")
    },
    "wrn-10-2 of others": lambda: create_model(
        "wrn-10-2", mean=[0.5, 0.5, 0.4], std=[0.2, 0.2, 0.3], activation="silu", padding="same"
    ),
}


@pytest.fixture(params=MODELS)
def model(request, device):
    torch.manual_seed(0)
    return with_statistics(MODELS[request.param]()).to(device)


@pytest.fixture
def batch(device):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 3, 12, 12, generator=generator).to(device), torch.tensor([0, 1, 2, 3, 0]).to(device)


def gradient_of(model, images, labels, dtype=torch.float64):
    """Plainly, in float64."""
    model, images = copy.deepcopy(model).to(dtype).eval(), images.to(dtype).requires_grad_()
    logits = model(images)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    return images.grad, logits.detach()


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_the_twin_is_the_same_function(model, batch):
    engine = InputGradient(model)
    result = engine(*batch)
    grad, logits = gradient_of(model, *batch)
    assert relative(result.grad, grad) < 1e-5 and relative(result.logits, logits) < 1e-5
    assert engine.twin is not None, engine.explain()


def test_the_twin_in_float64(model, batch):
    model.double()
    result = InputGradient(model)(batch[0].double(), batch[1])
    grad, logits = gradient_of(model, *batch)
    assert relative(result.grad, grad) < 1e-12 and relative(result.logits, logits) < 1e-12


@pytest.mark.parametrize(
    "name, folded, affine",
    [("post-activation", 3, 2), ("pre-activation", 1, 1), ("shared", 0, 0), ("wrn-10-2", 4, 4),
     ("wrn-10-2 of others", 4, 4), ("small-cnn", 0, 1), ("preactresnet-18", 8, 9)],
)  # fmt: skip
def test_what_is_folded(name, folded, affine, batch):
    twin = AttackTwin(MODELS[name]().to(batch[0].device), None, compile=False, winograd=True, probe=batch[0])
    assert (twin.folded, twin.affine, twin.unfused_because) == (folded, affine, "")


def test_a_graph_that_cannot_be_read(batch):
    engine = InputGradient(DataDependent().to(batch[0].device))
    engine(*batch)
    assert engine.twin is not None and "not fused: its graph cannot be read" in engine.explain()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_those_of_now(model, batch, precision):
    """Whatever changes them: an optimizer, an assignment to .data, running statistics of a pass in train mode."""
    engine = InputGradient(model, options=EngineOptions(precision=precision, min_cosine=-1, min_sign_agreement=0))
    engine(*batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, device=parameter.device)
        model.train()(batch[0])
    grad, _ = gradient_of(model, *batch)
    assert relative(engine(*batch).grad, grad) < (1e-5 if precision == "fp32" else 0.5)


def test_a_change_of_structure_is_seen(batch):
    model = with_statistics(PostActivation()).to(batch[0].device)
    engine = InputGradient(model)
    engine(*batch)
    model.conv2 = nn.Conv2d(8, 8, 1).to(batch[0].device)
    assert relative(engine(*batch).grad, gradient_of(model, *batch)[0]) < 1e-5
    model.norm1.eps = 0.7
    assert relative(engine(*batch).grad, gradient_of(model, *batch)[0]) < 1e-5


def test_a_model_that_changes_all_the_time_is_run_itself(batch):
    model = PostActivation().to(batch[0].device)
    model.passes = 0
    engine = InputGradient(model)
    for _ in range(8):
        model.passes += 1
        engine(*batch)
    assert engine.twin is None and "change from one minibatch to the next" in engine.explain()
    assert relative(engine(*batch).grad, gradient_of(model, *batch)[0]) < 1e-5


class WithConstants(nn.Module):
    """Makes a tensor in forward, and holds one that is neither a parameter nor a buffer."""

    def __init__(self):
        super().__init__()
        self.shift = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images * torch.full((3, 1, 1), 1.5) - self.shift).mean((2, 3))


def test_constants_of_a_model(batch):
    images, labels = (part.cpu() for part in batch)
    model = WithConstants()
    engine = InputGradient(model)
    for change in (lambda: None, lambda: model.shift.add_(0.7), lambda: setattr(model, "shift", torch.zeros(3, 1, 1))):
        change()
        x = images.clone().requires_grad_()
        expected = nn.functional.cross_entropy(model(x), labels, reduction="none")
        torch.testing.assert_close(engine(images, labels).losses, expected.detach())
        assert engine.features()["twin"].startswith("on, fused")


class KeepsTuples(WithConstants):
    """Its constants are in a tuple, beside what is no tensor; and it keeps what it has computed last."""

    def __init__(self):
        super().__init__()
        self.constants = (2.0, (self.shift, "shift"), object())

    def forward(self, images):
        out = self.conv(images * self.constants[0] - self.constants[1][0])
        self.last = (out.detach().mean(0), out.detach().amax(0))
        return out.mean((2, 3))


def test_tensors_in_tuples(batch):
    images, labels = (part.cpu() for part in batch)
    model = KeepsTuples()
    engine = InputGradient(model)
    model(images)
    for change in (lambda: None, lambda: None, lambda: model.shift.add_(0.7), lambda: model(images)):
        change()
        expected = nn.functional.cross_entropy(copy.deepcopy(model)(images), labels, reduction="none")
        torch.testing.assert_close(engine(images, labels).losses, expected.detach())
        assert engine.features()["twin"].startswith("on")
    assert engine.state_dict()["twins_discarded"] == 2, "of the shift as it was, and of other outputs"


class Volumes(nn.Module):
    """Takes images for volumes of one layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3))
        self.norm = nn.BatchNorm3d(4)

    def forward(self, images):
        return torch.relu(self.norm(self.conv(images.unsqueeze(2)))).mean((2, 3, 4))


class Rescaled(nn.Module):
    """Adds what has one pixel to an image of features, and one row, one way round and the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.of_mean, self.of_rows = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images):
        h = torch.tanh(self.conv(images))
        h = torch.tanh(h + self.of_mean(h.mean((2, 3), keepdim=True)))
        return (self.of_rows(h.mean(2, keepdim=True)) + h).mean((2, 3))


@pytest.mark.parametrize("build", [Volumes, Rescaled])
def test_shapes_that_are_not_those_of_residual_networks(batch, capfd, build):
    images, labels = (part.cpu() for part in batch)
    torch.manual_seed(0)
    model = build().eval()
    engine = InputGradient(model, options=EngineOptions(precision="fp32"))
    found = engine(images, labels)
    assert engine.features()["twin"].startswith("on, fused") and capfd.readouterr().err == ""
    expected, _ = gradient_of(model, images, labels)
    assert relative(found.grad, expected) < 1e-5


def test_a_model_without_parameters(batch):
    class Pixels(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4] + torch.zeros(1, 4)

    images, labels = (part.cpu() for part in batch)
    engine = InputGradient(Pixels())
    engine(images, labels)
    assert engine.features()["twin"].startswith("on") and "not on CUDA" in engine.features()["graph"]


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_a_model_with_hooks_is_run_itself(batch, kind):
    model = PostActivation().to(batch[0].device)
    seen = []
    getattr(model.conv1, kind)(lambda *_: seen.append(1))
    engine = InputGradient(model, options=EngineOptions(precision="bf16"))
    engine(*batch)
    assert seen and engine.twin is None and "the model has hooks (on conv1)" in engine.explain()
    with pytest.raises(TwinUnavailable, match="hooks"):
        AttackTwin(model, None, compile=False, winograd=True, probe=batch[0])


class ReadByHook(nn.Module):
    """What a layer that tracing would not enter is given, read by a hook that the pass itself sets."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        seen = []
        hook = self.inner.norm2.register_forward_hook(lambda layer, inputs, out: seen.extend((*inputs, out)))
        self.inner(x)
        hook.remove()
        return torch.cat(seen, 1).mean((2, 3))


def test_hooks_of_the_pass_itself_are_run_in_tracing(batch):
    model = with_statistics(ReadByHook(PostActivation())).to(batch[0].device)
    engine = InputGradient(model)
    for _ in range(2):
        result = engine(*batch)
        grad, values = gradient_of(model, *batch)
        assert relative(result.grad, grad) < 1e-5 and relative(result.logits, values) < 1e-5
        assert engine.twin.unfused_because == "" and engine.twin.folded == 2
        model.inner.norm2.running_mean.add_(0.3)


def test_a_model_that_cannot_be_copied_is_run_itself(batch):
    model = PostActivation().to(batch[0].device)
    grad, _ = gradient_of(model, *batch)
    model.stream = (part for part in ())  # a generator, which nobody can copy
    engine = InputGradient(model)
    assert relative(engine(*batch).grad, grad) < 1e-5
    assert engine.twin is None and "cannot be copied" in engine.explain()


def test_nothing_is_shared_with_the_classifier(model, batch):
    twin = AttackTwin(model, None, compile=False, winograd=True, probe=batch[0])
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not own & {tensor.data_ptr() for tensor in (*twin.module.parameters(), *twin.module.buffers())}
    before = copy.deepcopy(model.state_dict())
    for tensor in (*twin.module.parameters(), *twin.module.buffers()):
        tensor.zero_()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_wrong_rewriting_is_noticed(batch, monkeypatch):
    """Or else the comparison with the plain copy would mean nothing."""
    load = FoldedConvolution.load
    monkeypatch.setattr(FoldedConvolution, "load", lambda self, original, scale, shift: load(
        self, original, scale, None if shift is None else shift * 1.1))  # fmt: skip
    model = with_statistics(PostActivation()).to(batch[0].device)
    engine = InputGradient(model)
    assert relative(engine(*batch).grad, gradient_of(model, *batch)[0]) < 1e-5
    assert "not fused: the rewritten graph gave logits that differ" in engine.explain()


def test_rounding_is_not_taken_for_a_wrong_rewriting():
    """A network so deep and so badly scaled that float32 gradients are rounding: it is rewritten all the same."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(30) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 16, 1), *blocks, nn.Flatten(), nn.Linear(16 * 64, 4)))
    engine = InputGradient(model)
    engine(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert engine.twin.folded == 30 and engine.twin.winograd == 30, engine.explain()


class OnlyFloat32(nn.Module):
    """Makes float32 numbers of its own, so that it does not run in float64."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3)).to(torch.float32))


def test_a_model_that_does_not_run_in_float64_is_rewritten(batch):
    model = with_statistics(OnlyFloat32()).to(batch[0].device)
    engine = InputGradient(model)
    engine(*batch)
    assert engine.twin.folded == 1, engine.explain()


def test_in_16_bits_logits_and_batch_norms_stay_precise(batch):
    model = with_statistics(create_model("wrn-10-2")).to(batch[0].device)
    twin = AttackTwin(model, torch.bfloat16, compile=False, winograd=True, probe=batch[0])
    assert twin.module.fc.weight.dtype == torch.float32
    assert twin.module.block1.layer.get_submodule("0").convShortcut.convolution.weight.dtype == torch.bfloat16
    assert twin.module(batch[0].to(torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 0.15)])
def test_winograd_convolutions(precision, tolerance):
    """With and without a batch norm and a ReLU after them, on images whose size is no multiple of 4."""
    torch.manual_seed(0)
    model = with_statistics(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),  # three channels: not worth it
            nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.Conv2d(16, 16, 3, padding=1, groups=2),
            nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(16 * 36, 4),
        )
    )  # fmt: skip
    images, labels = torch.rand(5, 3, 11, 12), torch.tensor([0, 1, 2, 3, 0])
    options = EngineOptions(precision=precision)
    engine = InputGradient(model, options=options)
    result = engine(images, labels)
    assert engine.twin.winograd == 3 and "3 convolutions by Winograd" in engine.explain()
    assert sum(isinstance(module, WinogradConvolution) for module in engine.twin.module.modules()) == 3
    expected, _ = gradient_of(model, images, labels)
    assert relative(result.grad, expected) < tolerance
    direct = InputGradient(model, options=EngineOptions(precision=precision, winograd=False))
    assert relative(direct(images, labels).grad, expected) < tolerance and direct.twin.winograd == 0


def test_compiled(batch):
    model = with_statistics(PostActivation()).to(batch[0].device)
    engine = InputGradient(model, options=EngineOptions(precision="fp32", compile=True, chunk=None))
    result = engine(*batch)
    assert relative(result.grad, gradient_of(model, *batch)[0]) < 1e-5
    assert engine.features()["compile"] == "on"


def test_a_compiler_that_fails_is_done_without(batch, monkeypatch):
    def broken(module, **options):
        def run(*_):
            raise RuntimeError("no compiler here")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model = PostActivation().to(batch[0].device)
    engine = InputGradient(model, options=EngineOptions(precision="fp32", compile=True))
    assert relative(engine(*batch).grad, gradient_of(model, *batch)[0]) < 1e-5
    assert "RuntimeError: no compiler here" in engine.features()["compile"]
