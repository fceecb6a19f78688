"""Entropy against quadrature in float64; the sweep of lambda on the digits."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream
from adt_fast.analysis import distribution_entropy, entropy_sweep, sweep_methods
from adt_fast.analysis.entropy import sampled_neg_log_density
from adt_fast.attacks import EXP, EXPAM, PGD
from adt_fast.checkpoint import load_model
from adt_fast.config import TrainConfig
from adt_fast.evaluation import evaluate_accuracy
from adt_fast.experiment import TrainingRun
from adt_fast.trainer import Trainer

EPSILON = 8 / 255


def quadrature(mu, rho, epsilon):
    """Entropy of epsilon tanh(u), u ~ N(mu, sigma^2), of each element, by Gauss-Hermite: E of minus the log density.

    H = log(sigma sqrt(2 pi e)) + log epsilon + E[log(1 - tanh(u)^2)]; the first is the normal's own.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(200)
    mu, sigma = mu.double().numpy()[..., None], np.log1p(np.exp(rho.double().numpy()))[..., None]
    u = mu + math.sqrt(2) * sigma * nodes
    log_slope = 2 * (math.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u))))
    expected = (weights * log_slope).sum(-1) / math.sqrt(math.pi)
    return np.log(sigma[..., 0] * math.sqrt(2 * math.pi * math.e)) + math.log(epsilon) + expected


def integral(mu, sigma, epsilon):
    """The same for one element by the definition: the integral of -p log p over delta."""
    integrate = pytest.importorskip("scipy.integrate")

    def integrand(t):  # delta = epsilon t
        p = math.exp(-((math.atanh(t) - mu) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi) * (1 - t**2))
        return 0.0 if p == 0 else -p * (math.log(p) - math.log(epsilon))

    return integrate.quad(integrand, -1, 1, limit=500, epsabs=1e-10)[0]


def test_the_quadrature_is_the_definition():
    for mu, rho in ((0.0, 0.0), (0.8, -1.0), (-1.5, 0.3)):
        by_nodes = quadrature(torch.tensor([mu]), torch.tensor([rho]), EPSILON)[0]
        assert by_nodes == pytest.approx(integral(mu, math.log1p(math.exp(rho)), EPSILON), abs=1e-7)


def test_sampled_density(device):
    generator = torch.Generator().manual_seed(3)
    mu = torch.randn(4, 3, 6, 5, generator=generator) * 1.5
    rho = torch.randn(4, 3, 6, 5, generator=generator)
    noise = NoiseStream(2, device)
    values = sampled_neg_log_density(mu.to(device), rho.to(device), noise, samples=400, epsilon=EPSILON)
    assert values.shape == (400, 4) and values.dtype == torch.float64 and noise.offset == 400
    exact = quadrature(mu, rho, EPSILON).reshape(4, -1).sum(1)
    error = values.std(0).numpy() / math.sqrt(400)
    assert (np.abs(values.mean(0).numpy() - exact) < 4 * error).all()
    assert (error < 1e-2 * np.abs(exact)).all(), "an estimate that can tell something"


@pytest.mark.parametrize("recipe", ["published", "paper"])
def test_entropy_of_exp(device, recipe):
    model = TinyClassifier().to(device)
    batches = [tiny_batch(5), tiny_batch(3, seed=2)]
    found = distribution_entropy(
        EXP(model, 0.1, steps=3, recipe=recipe, noise=NoiseStream(1)), batches, samples=200, seed=9
    )
    attack = EXP(model, 0.1, steps=3, recipe=recipe, noise=NoiseStream(1))  # again, from the same noise
    exact = []
    for images, labels in batches:
        result = attack.maximize(images.to(device), labels.to(device))
        exact.append(quadrature(result.mu.cpu(), result.rho.cpu(), 0.1).reshape(len(images), -1).sum(1))
    exact = np.concatenate(exact)
    errors = found.standard_errors.numpy()
    assert (np.abs(found.per_image.numpy() - exact) < 4 * errors).all()
    assert (errors > 0).all() and (errors < 0.1 * np.abs(exact)).all()
    assert found.elements == 90 and found.samples == 200
    assert found.mean_per_image == pytest.approx(exact.mean(), abs=4 * 90 * found.standard_error_per_element)
    assert found.mean_per_element == pytest.approx(found.mean_per_image / 90)
    assert found.mean_per_element < found.highest_per_element == pytest.approx(math.log(0.2))
    assert found.standard_error_per_element == pytest.approx(math.sqrt((errors**2).sum()) / 8 / 90)


def test_the_first_step_has_the_known_distribution(device):
    """No step: mu = 0 and sigma = log 2 everywhere."""
    model = TinyClassifier().to(device)
    found = distribution_entropy(EXP(model, EPSILON, steps=0), [tiny_batch(4)], samples=500)
    exact = quadrature(torch.zeros(1), torch.zeros(1), EPSILON)[0]
    assert abs(found.mean_per_element - exact) < 4 * found.standard_error_per_element
    assert found.standard_error_per_element < 0.002


class Generator(nn.Module):
    """A convolution and a dropout that must not be on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(9, 6, 3, padding=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs):
        return self.dropout(self.conv(inputs))


def test_entropy_of_exp_am(device):
    model, generator = TinyClassifier().to(device), Generator().to(device).train()
    attack = EXPAM(model, 0.1, generator=generator, noise=NoiseStream(1))
    images, labels = (tensor.to(device) for tensor in tiny_batch(5))
    found = distribution_entropy(attack, [(images, labels)], samples=200)
    assert generator.training and generator.dropout.training
    generator.eval()
    with torch.no_grad():
        mu, rho = generator(attack.generator_inputs(images, labels)).cpu().split(3, 1)
    exact = quadrature(mu, rho, 0.1).reshape(5, -1).sum(1)
    assert (np.abs(found.per_image.numpy() - exact) < 4 * found.standard_errors.numpy()).all()


def test_bad_arguments():
    model = TinyClassifier()
    attack, data = EXP(model, 0.1, steps=1), [tiny_batch(2)]
    with pytest.raises(TypeError, match="attack must be an EXP or an EXPAM, got PGD"):
        distribution_entropy(PGD(model, 0.1), data)
    with pytest.raises(ValueError, match="samples must be in"):
        distribution_entropy(attack, data, samples=1)
    with pytest.raises(ValueError, match="seed must be in"):
        distribution_entropy(attack, data, seed=-1)
    with pytest.raises(ValueError, match="data must have at least one image"):
        distribution_entropy(attack, [])


# ---- The sweep -------------------------------------------------------------------------------------------------------
def small(**settings):
    options = {"method": "adt-exp-am", "generator_width": 8, "train_limit": 64, "test_limit": 16, "epochs": 1}
    return TrainConfig(**(options | {"device": "cpu"} | settings))


@pytest.fixture
def steps(monkeypatch):
    """How many steps of training have been taken."""
    taken = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *batch, **options: taken.append(1) or step(*batch, **options))
    return taken


def test_sweep(tmp_path, steps):
    seen = []
    found = entropy_sweep(small(), tmp_path, entropy_weights=(1.0, 0.0), samples=20, report=seen.append)
    assert [point.entropy_weight for point in found.points] == [0.0, 1.0] and seen == list(found.points)
    assert len(steps) == 2, "a run of one minibatch for each lambda"
    assert all(0 <= point.robust <= 1 and 0 <= point.natural <= 1 for point in found.points)
    assert all(point.entropy_per_element < math.log(2 * 0.15) for point in found.points)
    assert found.points[0].entropy_per_element != found.points[1].entropy_per_element
    assert found.epsilon == 0.15 and found.method == "adt-exp-am"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["point-0.json", "point-1.json", "runs"]
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert len(found.table()) == 3

    again = entropy_sweep(small(), tmp_path, entropy_weights=(0.0, 0.1, 1.0), samples=20)
    assert len(steps) == 3, "only the new one was trained"
    assert (again.points[0], again.points[2]) == found.points

    with pytest.raises(ValueError, match="made with other settings: epochs=1"):
        entropy_sweep(small(epochs=2), tmp_path, entropy_weights=(0.0, -1.0), samples=20)
    assert len(steps) == 3, "nothing was begun"
    (tmp_path / "point-0.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(ValueError, match=r"point-0\.json is not a point of a sweep"):
        entropy_sweep(small(), tmp_path, entropy_weights=(0.0,), samples=20)


def test_each_run_of_a_sweep_is_closed_before_the_next_begins(tmp_path, monkeypatch):
    """Weights & Biases has one run at a time: a second one would go on in the first."""
    events = []
    make, close = TrainingRun.__init__, TrainingRun.close
    monkeypatch.setattr(TrainingRun, "__init__", lambda *a, **o: events.append("open") or make(*a, **o))
    monkeypatch.setattr(TrainingRun, "close", lambda self: events.append("close") or close(self))
    entropy_sweep(small(), tmp_path / "sweep", entropy_weights=(0.0, 1.0), samples=5)
    assert events == ["open", "close"] * 2
    monkeypatch.setattr(TrainingRun, "train", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        entropy_sweep(small(), tmp_path / "failing", entropy_weights=(0.0,), samples=5)
    assert events == ["open", "close"] * 3


def test_an_interrupted_sweep_continues(tmp_path, steps, monkeypatch):
    def interrupted(point):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entropy_sweep(small(), tmp_path, entropy_weights=(0.0, 1.0), samples=5, report=interrupted)
    assert len(steps) == 1
    monkeypatch.setattr("adt_fast.analysis.sweep.distribution_entropy", lambda *a, **o: interrupted(None))
    with pytest.raises(KeyboardInterrupt):
        entropy_sweep(small(), tmp_path, entropy_weights=(0.0, 1.0), samples=5)
    assert len(steps) == 2 and not (tmp_path / "point-1.json").exists()
    monkeypatch.undo()
    assert len(entropy_sweep(small(), tmp_path, entropy_weights=(0.0, 1.0), samples=5).points) == 2


def test_a_larger_lambda_learns_a_wider_distribution(tmp_path):
    config = small(method="adt-exp", generator_width=None, samples=2, recipe="published,entropy_reduction=sum")
    found = entropy_sweep(config, tmp_path, entropy_weights=(0.0, 1.0), samples=50)
    low, high = (point.entropy_per_element for point in found.points)
    assert low + 0.1 < high < math.log(0.3)


def test_a_sweep_measures_the_average_of_the_weights(tmp_path):
    config = small(
        method="adt-exp", generator_width=None, steps=1, samples=1, train_limit=512, test_limit=200, epochs=2,
        ema_decay=0.99,
    )  # fmt: skip
    (point,) = entropy_sweep(config, tmp_path, entropy_weights=(0.01,), samples=5).points
    (folder,) = (tmp_path / "runs").iterdir()
    run = TrainingRun(replace(config, entropy_weight=0.01, output=folder), resume=True)
    average, _ = load_model(folder / "model.safetensors")
    measured, others = (
        (float(evaluate_accuracy(model, run.test_data)),
         float(evaluate_accuracy(model, run.test_data, PGD(model, 0.15, steps=20, noise=NoiseStream(0)))),
         distribution_entropy(EXP(model, 0.15, steps=1, samples=1, noise=NoiseStream(0)), run.test_data,
                              samples=5, seed=0).mean_per_element)
        for model in (average, run.model)
    )  # fmt: skip
    run.close()
    assert (point.natural, point.robust, point.entropy_per_element) == measured
    assert all(one != other for one, other in zip(measured, others)), "or this test would not see the difference"


def test_sweep_of_what_has_no_explicit_distribution(tmp_path):
    assert sweep_methods() == ("adt-exp", "adt-exp-am", "adt-exp-trades", "adt-exp-am-trades")
    for method in ("at-pgd", "adt-imp-am"):
        with pytest.raises(ValueError, match="method must be one whose distributions are explicit"):
            entropy_sweep(TrainConfig(method=method), tmp_path)
    with pytest.raises(ValueError, match="entropy_weights must be one or more different numbers"):
        entropy_sweep(small(), tmp_path, entropy_weights=(1.0, 1))
    with pytest.raises(ValueError, match="entropy_weights must be one or more"):
        entropy_sweep(small(), tmp_path, entropy_weights=())
    with pytest.raises(ValueError, match="entropy_weights must be finite"):
        entropy_sweep(small(), tmp_path, entropy_weights=(math.nan,))
    assert not any(tmp_path.iterdir())
