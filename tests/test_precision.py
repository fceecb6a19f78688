"""16-bit gradients: close to float32, watched, and given up where they are not; chunks, options and explanations."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream
from adt_fast.attacks import EXP, PGD
from adt_fast.input_gradient import EngineOptions, InputGradient, PrecisionWarning
from adt_fast.input_gradient import engine as engine_module
from adt_fast.input_gradient.chunking import activation_bytes, automatic_chunk
from adt_fast.input_gradient.guard import PrecisionGuard
from adt_fast.models import create_model

HALVES = ["bf16", "fp16"]


@pytest.fixture
def problem(device):
    images, labels = tiny_batch(6)
    return TinyClassifier().to(device), images.to(device), labels.to(device)


def cosine(a, b):
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))


@pytest.mark.parametrize("precision", HALVES)
def test_a_16_bit_gradient_is_close_and_in_the_dtype_of_x(problem, precision):
    model, images, labels = problem
    exact = InputGradient(model)(images, labels)
    engine = InputGradient(model, options=EngineOptions(precision=precision))
    result = engine(images, labels)
    assert result.grad.dtype == result.losses.dtype == result.logits.dtype == torch.float32
    assert result.loss_scale == 1.0
    assert cosine(result.grad, exact.grad) > 0.99
    assert float(result.grad.norm() / exact.grad.norm()) == pytest.approx(1, abs=0.05), "the loss scale is undone"
    torch.testing.assert_close(result.losses, exact.losses, rtol=0.05, atol=0.05)
    (agreement,) = engine.guard.history
    assert agreement.passed and agreement.cosine == pytest.approx(cosine(result.grad, exact.grad), abs=1e-2)


def test_the_loss_scale_saves_small_gradients(problem):
    """Without one, gradients of 1e-9 vanish in fp16."""
    model, images, labels = problem

    def tiny_loss(logits, labels):
        return 1e-9 * F.cross_entropy(logits, labels, reduction="none")

    def gradient(loss_scale):
        options = EngineOptions(precision="fp16", loss_scale=loss_scale, min_cosine=-1, min_sign_agreement=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrecisionWarning)
            engine = InputGradient(model, loss=tiny_loss, options=options)
            engine.guard = PrecisionGuard(options, torch.float16)
            engine.guard.minibatches = 1  # no comparison is due
            return engine(images, labels).grad

    exact = InputGradient(model, loss=tiny_loss)(images, labels).grad
    assert gradient(1.0).count_nonzero() < images.numel() // 10
    assert cosine(gradient(2.0**20), exact) > 0.99


class Insensitive(nn.Module):
    """Logits in which the image is lost to rounding in 16 bits, and not in 32."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(90, 90)
        self.out = nn.Linear(90, 4)

    def forward(self, images):
        # 1000 + (a number below 1): 32 bits tell it from 1000, 16 bits do not.
        hidden = self.fc(images.flatten(1) + 1000) - self.fc.weight.sum(1) * 1000
        return self.out(torch.sin(hidden * 3))


@pytest.mark.parametrize("precision", HALVES)
def test_a_bad_16_bit_gradient_is_given_up_with_one_warning(problem, precision):
    _, images, labels = problem
    torch.manual_seed(0)
    model = Insensitive().to(images.device)
    exact = InputGradient(model)(images, labels).grad
    engine = InputGradient(model, options=EngineOptions(precision=precision, check_every=2))
    with pytest.warns(PrecisionWarning, match="until a check, every 2 minibatches, passes") as caught:
        for _ in range(5):
            torch.testing.assert_close(engine(images, labels).grad, exact)
    assert len([w for w in caught if w.category is PrecisionWarning]) == 1
    assert [agreement.minibatch for agreement in engine.guard.history] == [0, 2, 4]
    assert not any(agreement.passed for agreement in engine.guard.history)
    assert "is off, their cosine with float32" in engine.explain()


def test_16_bits_come_back_when_a_check_passes(problem):
    model, images, labels = problem
    guard = PrecisionGuard(EngineOptions(check_every=3), torch.bfloat16)
    good, bad = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([-1.0, 2.0, 3.0])
    with pytest.warns(PrecisionWarning):
        assert not guard.compare(bad, good).passed
    assert not guard.allowed
    assert guard.compare(good, good).passed and guard.allowed and guard.off_because == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not guard.compare(torch.full_like(good, math.nan), good).passed, "NaN never passes, nor warns again"
    restored = PrecisionGuard(EngineOptions(check_every=3), torch.bfloat16)
    guard.minibatches = 7
    restored.load_state_dict(guard.state_dict())
    assert (restored.minibatches, restored.allowed, restored.due) == (7, False, False)


def test_a_guard_of_another_16_bit_type_is_not_gone_on_with(problem):
    model, images, labels = problem
    engines = [InputGradient(model, options=EngineOptions(precision=precision)) for precision in HALVES]
    engines[0](images, labels)
    for engine in engines:
        engine.load_state_dict(engines[0].state_dict())
        engine(images, labels)
    assert [engine.guard.name for engine in engines] == ["bfloat16", "float16"]
    assert [engine.guard.minibatches for engine in engines] == [2, 1]


def test_an_overflow_during_the_loop_starts_it_again_in_float32(problem):
    """No comparison is due, and the loop meets an infinity: the minibatch is done in float32, from its start."""
    model, images, labels = problem
    steps = dict(steps=3, samples=2, noise=NoiseStream(5, images.device))
    expected = EXP(model, 0.1, **steps).maximize(images, labels)
    steps["noise"] = NoiseStream(5, images.device)
    attack = EXP(model, 0.1, engine=EngineOptions(precision="fp16", loss_scale=2.0**30, min_cosine=-1), **steps)
    attack.input_gradient.guard = PrecisionGuard(attack.input_gradient.options, torch.float16)
    attack.input_gradient.guard.minibatches = 1
    with pytest.warns(PrecisionWarning, match="NaN or infinite"):
        found = attack.maximize(images, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert steps["noise"].offset == 4


@pytest.mark.parametrize("precision", HALVES)
def test_exp_in_16_bits_finds_nearly_the_same_distribution(problem, precision):
    model, images, labels = problem
    found = {}
    for name in ("fp32", precision):
        engine = EngineOptions(precision=name)
        attack = EXP(model, 0.1, steps=5, samples=3, noise=NoiseStream(2, images.device), engine=engine)
        found[name] = attack.maximize(images, labels)
    assert found[precision].x_adv.dtype == torch.float32
    near = (found[precision].mu - found["fp32"].mu).abs() < 0.05
    assert near.double().mean() > 0.97, "but where the sign of a gradient near zero flips"


def test_images_of_64_bits_are_computed_in_64_bits(problem):
    model, images, labels = problem
    engine = InputGradient(model.double(), options=EngineOptions(precision="bf16"))
    assert engine(images.double(), labels).grad.dtype == torch.float64 and engine.guard is None


@pytest.mark.parametrize("attack_class", [EXP, PGD])
def test_chunks_do_not_change_an_attack(problem, attack_class):
    model, images, labels = problem
    results = []
    for chunk in (None, "auto", 4, 1):
        engine = EngineOptions(precision="fp32", chunk=chunk)
        attack = attack_class(model, 0.1, steps=3, noise=NoiseStream(0, images.device), engine=engine)
        results.append(attack.perturb(images, labels))
    for result in results[1:]:
        assert (result - results[0]).abs().quantile(0.99) < 1e-6


def test_activation_bytes_do_not_count_weights():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000, 100))

        def forward(self, x):
            x = x.flatten(1).square()  # keeps its input: 100 floats
            return (x @ self.weight.t()).exp()  # keeps its output, 1000 floats, and the weight

    x = torch.rand(1, 1, 10, 10)
    model = Squares().requires_grad_(False)
    assert activation_bytes(model, x) == 4 * (100 + 1000)


def test_the_chunk_of_a_cpu_is_bounded():
    cpu = torch.device("cpu")
    assert automatic_chunk(2**30, cpu) == 8
    assert 8 < automatic_chunk(2**20, cpu) < automatic_chunk(2**10, cpu)


@pytest.mark.parametrize("listed, examples", [(True, 70), (False, 90)])
def test_the_chunk_of_a_gpu_leaves_the_memory_of_graphs_alone(monkeypatch, listed, examples):
    """Half of what is free, as far as that is known: 100 bytes, and in PyTorch's default pool 40."""
    def snapshot():
        if not listed:
            raise RuntimeError("not with this allocator")
        sizes = [(0, (0, 0), 50, 10), (0, (0, 7), 60, 20), (1, (0, 0), 500, 0)]
        names = ("device", "segment_pool_id", "total_size", "active_size")
        return [dict(zip(names, values, strict=True)) for values in sizes]

    for name, value in {"mem_get_info": (100, 1000), "memory_reserved": 110, "memory_allocated": 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", snapshot)
    assert automatic_chunk(1, torch.device("cuda", 0)) == examples


@pytest.mark.parametrize("twin", [False, True])
def test_a_model_with_batch_statistics_is_not_cut_up(problem, monkeypatch, twin):
    model, images, labels = problem
    model.norm = torch.nn.BatchNorm2d(6, track_running_stats=False).to(images.device)
    with pytest.raises(ValueError, match=r"chunk must be None or 'auto' .*\(norm has no running ones\)"):
        InputGradient(model, options=EngineOptions(chunk=4, twin=twin))
    monkeypatch.setattr(engine_module, "automatic_chunk", lambda *_: 2)
    engine = InputGradient(model, options=EngineOptions(precision="fp32", twin=twin))
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(model.eval()(x), labels, reduction="sum"), x)
    torch.testing.assert_close(engine(images, labels).grad, expected)
    assert engine.features()["chunk"].startswith("off")


def test_a_model_for_one_batch_size_is_not_cut_up(problem):
    _, images, labels = problem

    class FixedBatch(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6, 4))

        def forward(self, x):
            return x.flatten(1)[:, :4] * self.scale

    engine = InputGradient(FixedBatch().to(images.device))
    assert engine(images, labels).grad.shape == images.shape
    assert "all examples go through at once" in engine.explain()


def test_explanations(problem):
    model, images, labels = problem
    engine = InputGradient(model, options=EngineOptions(twin=False))
    assert engine.features() == {"engine": "has not run yet"}
    engine(images, labels)
    assert "float32" in engine.features()["precision"] and engine.features()["twin"] == "off: twin=False"
    engine = InputGradient(model, model_mode="train", options=EngineOptions(precision="bf16", chunk=None))
    engine(images, labels)
    assert engine.features()["twin"] == "off: model_mode='train'" and engine.guard is None
    engine = InputGradient(create_model("wrn-10-2").to(images.device), options=EngineOptions(graph=False))
    engine(images, labels)
    assert engine.features()["graph"] == "off: graph=False"
    assert engine.features()["compile"] == "off: compile=False"
    assert len(engine.explain().splitlines()) == 5


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"precision": "float32"}, ValueError, "precision must be one of 'auto', 'fp32'"),
        ({"compile": "yes"}, TypeError, "compile"),
        ({"twin": 1}, TypeError, "twin"),
        ({"graph": "on"}, ValueError, "graph"),
        ({"chunk": 0}, ValueError, "chunk"),
        ({"chunk": 2.5}, TypeError, "chunk"),
        ({"chunk": True}, TypeError, "chunk"),
        ({"check_every": 0}, ValueError, "check_every"),
        ({"min_cosine": 1.5}, ValueError, "min_cosine"),
        ({"min_sign_agreement": math.nan}, ValueError, "min_sign_agreement"),
        ({"loss_scale": 0.0}, ValueError, "loss_scale"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        EngineOptions(**options)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("attack_class", [EXP, PGD])
def test_a_captured_loop_equals_an_ordinary_one(precision, attack_class):
    """Replay after replay, with the noise and the weights of each minibatch."""
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    images, labels = (tensor.to(device) for tensor in tiny_batch(6))
    results, offsets = {}, {}
    for graph in (False, True):
        model, noise = TinyClassifier().to(device), NoiseStream(3, device)
        engine = EngineOptions(precision=precision, graph=graph)
        attack = attack_class(model, 0.1, steps=3, noise=noise, engine=engine)
        results[graph] = []
        for minibatch in range(4):
            results[graph].append(attack.perturb(images, labels))
            with torch.no_grad():
                model.fc.weight.add_(0.01 * (minibatch + 1))
        offsets[graph] = noise.offset
        if graph:
            assert attack.input_gradient.features()["graph"] == "on, 1 captured", attack.input_gradient.explain()
    assert offsets[False] == offsets[True]
    for ordinary, captured in zip(results[False], results[True], strict=True):
        torch.testing.assert_close(captured, ordinary, rtol=0, atol=1e-6 if precision == "fp32" else 1e-2)
    assert not torch.equal(results[True][2], results[True][3]), "a replay draws new noise"


@pytest.mark.cuda
def test_a_loop_that_cannot_be_captured_runs_all_the_same():
    class Waits(TinyClassifier):
        def forward(self, images):
            float(images.sum())  # waits for the device, which no capture allows
            return super().forward(images)

    device = torch.device("cuda", torch.cuda.current_device())
    images, labels = (tensor.to(device) for tensor in tiny_batch(6))
    attack = PGD(Waits().to(device), 0.1, steps=2, engine=EngineOptions(precision="fp32", graph=True))
    for _ in range(3):
        assert attack.perturb(images, labels).shape == (1, *images.shape)
    assert "cannot be captured" in attack.input_gradient.features()["graph"]
