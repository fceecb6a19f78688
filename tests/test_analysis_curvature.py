"""Dominant eigenvalues against dense Hessians and dense spectra, in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast.analysis import hessian_curvature
from adt_fast.analysis._eigenvalues import lanczos, power_iteration


def dense_dominant(model, images, labels):
    """[N]: from the whole Hessian of each image's loss, by NumPy."""
    model.eval()
    found = []
    for x, y in zip(images, labels):
        hessian = torch.autograd.functional.hessian(lambda one, y=y: F.cross_entropy(model(one[None])[0], y), x)
        spectrum = np.linalg.eigvalsh(hessian.reshape(x.numel(), x.numel()).cpu().numpy())
        found.append(spectrum[np.abs(spectrum).argmax()])
    return torch.tensor(found)


class Bowl(nn.Module):
    """Two classes, whose logits are 0 and -z(x): cross entropy of class 0 is softplus(-z), with z a quadratic form."""

    def __init__(self, spectrum, offset=0.0):
        super().__init__()
        size = 2 * 3 * 3
        generator = torch.Generator().manual_seed(5)
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        values = torch.cat([spectrum, torch.zeros(size - len(spectrum), dtype=torch.float64)])
        self.form = nn.Parameter(basis @ torch.diag(values) @ basis.T)
        self.offset = offset

    def forward(self, images):
        flat = images.flatten(1)
        z = (flat @ self.form * flat).sum(1) / 2 + self.offset
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def model(device):
    return TinyClassifier().to(device).double().train()


@pytest.mark.parametrize("batch_size", [2, 100])
def test_against_the_dense_hessian(model, device, batch_size):
    images, labels = tiny_batch(5)
    images, labels = images.double().to(device), labels.to(device)
    found = hessian_curvature(model, images, labels, tolerance=1e-9, batch_size=batch_size)
    torch.testing.assert_close(found.eigenvalues, dense_dominant(model, images, labels), rtol=1e-8, atol=0)
    assert found.converged.all() and (found.residuals <= 1e-9 * found.eigenvalues.abs()).all()
    assert (found.iterations < 90).all(), "fewer than the dimensions"
    assert found.mean == pytest.approx(np.mean(found.eigenvalues.numpy()))
    assert found.std == pytest.approx(np.std(found.eigenvalues.numpy(), ddof=1))


def test_float32_and_the_default_tolerance(device):
    images, labels = tiny_batch(5)
    model = TinyClassifier().to(device)
    found = hessian_curvature(model, images.to(device), labels.to(device))
    exact = dense_dominant(model.double(), images.double().to(device), labels.to(device))
    torch.testing.assert_close(found.eigenvalues, exact, rtol=1e-3, atol=0)
    assert found.converged.all()


@pytest.mark.parametrize(
    "spectrum, label",
    [
        ([1.0, 1.0 - 1e-7, 1.0 - 2e-7, -0.5], 1),  # nearly degenerate
        ([1.0, 1.0, 1.0], 1),
        ([-2.0, 1.9, 0.5], 1),
        ([-2.0, 1.9, 0.5], 0),
        ([1.0, -0.999999], 0),
        ([3.0], 1),
    ],
)
def test_hard_spectra(spectrum, label):
    # At the image 0 the Hessian is the form itself, times the derivative of the loss in z: 1/2 or -1/2.
    model = Bowl(torch.tensor(spectrum, dtype=torch.float64))
    images, labels = torch.zeros(1, 2, 3, 3, dtype=torch.float64), torch.tensor([label])
    found = hessian_curvature(model, images, labels, tolerance=1e-10)
    torch.testing.assert_close(found.eigenvalues, dense_dominant(model, images, labels), rtol=1e-8, atol=0)
    sign = 0.5 if label == 0 else -0.5
    assert found.eigenvalues.item() == pytest.approx(sign * max(spectrum, key=abs), rel=1e-8)


def test_a_negative_eigenvalue_keeps_its_sign():
    model = Bowl(torch.tensor([2.0, -0.3], dtype=torch.float64))
    images, labels = torch.zeros(1, 2, 3, 3, dtype=torch.float64), torch.tensor([1])
    assert hessian_curvature(model, images, labels).eigenvalues.item() == pytest.approx(-1.0)
    assert hessian_curvature(model, images, labels, solver="power").eigenvalues.item() == pytest.approx(-1.0)


class Saturated(nn.Module):
    """A linear model so sure that its loss is 0, with all derivatives."""

    def forward(self, images):
        z = images.flatten(1).sum(1) + 1e4
        return torch.stack([z, -z], 1)


@pytest.mark.parametrize("solver", ["lanczos", "power"])
def test_a_zero_hessian(solver):
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    found = hessian_curvature(Saturated(), images, torch.zeros(3, dtype=torch.int64), solver=solver)
    assert found.eigenvalues.tolist() == found.residuals.tolist() == [0.0] * 3
    assert found.converged.all() and found.iterations.tolist() == [1] * 3


def test_a_linear_model_has_the_gauss_newton_matrix(device):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(device).double()
    images, labels = torch.rand(4, 3, 2, 2, dtype=torch.float64, device=device), torch.tensor([0, 1, 2, 0])
    found = hessian_curvature(linear, images, labels.to(device), tolerance=1e-10)
    weight = linear[1].weight.detach()
    for one, value in zip(images, found.eigenvalues):
        p = linear(one[None])[0].softmax(0).detach()
        matrix = weight.T @ (torch.diag(p) - torch.outer(p, p)) @ weight
        assert value.item() == pytest.approx(torch.linalg.eigvalsh(matrix)[-1].item(), rel=1e-8)
    assert (found.iterations <= 4).all(), "its rank is 2"


def test_power_iteration_agrees(model, device):
    images, labels = tiny_batch(5)
    images, labels = images.double().to(device), labels.to(device)
    first, second = (
        hessian_curvature(model, images, labels, solver=solver, tolerance=1e-6, iterations=2000)
        for solver in ("lanczos", "power")
    )
    assert second.converged.all()
    torch.testing.assert_close(first.eigenvalues, second.eigenvalues, rtol=1e-5, atol=0)
    assert (second.iterations > first.iterations).all()


def test_what_has_not_converged_is_told(model, device):
    images, labels = tiny_batch(2)
    found = hessian_curvature(model, images.double().to(device), labels.to(device), iterations=2, tolerance=1e-9)
    assert not found.converged.any() and found.iterations.tolist() == [2, 2]
    exact = dense_dominant(model, images.double().to(device), labels.to(device))
    spread = (found.eigenvalues - exact).abs()
    assert (spread > 0).all()


def test_batch_mean_is_a_batch_size_th(model, device):
    images, labels = tiny_batch(5)
    images, labels = images.double().to(device), labels.to(device)
    own = hessian_curvature(model, images, labels, tolerance=1e-9, batch_size=5)
    mean = hessian_curvature(model, images, labels, tolerance=1e-9, batch_size=5, reduction="batch_mean")
    torch.testing.assert_close(mean.eigenvalues * 5, own.eigenvalues)
    # The dense Hessian of the batch's mean loss, in the first image.
    model.eval()

    def loss(first):
        return F.cross_entropy(model(torch.cat([first[None], images[1:]])), labels)

    hessian = torch.autograd.functional.hessian(loss, images[0]).reshape(90, 90)
    spectrum = torch.linalg.eigvalsh(hessian)
    assert mean.eigenvalues[0].item() == pytest.approx(spectrum[spectrum.abs().argmax()].item(), rel=1e-8)


def random_symmetric(spectra, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count, size = spectra.shape
    basis, _ = torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=torch.float64))
    return basis @ torch.diag_embed(spectra) @ basis.transpose(1, 2)


def test_lanczos_on_matrices_of_different_kinds():
    size = 40
    even = torch.linspace(-1, 1.001, size, dtype=torch.float64)  # both ends nearly as large
    spectra = torch.stack([even, -even, even.square(), torch.eye(size)[0].double(), 1e-12 * even])
    matrices = random_symmetric(spectra)
    found = lanczos(
        lambda v: torch.einsum("nij,nj->ni", matrices, v), torch.rand(5, size, dtype=torch.float64) + 0.1,
        iterations=100, tolerance=1e-8,
    )  # fmt: skip
    exact = torch.tensor([1.001, -1.001, 1.001**2, 1.0, 1.001e-12], dtype=torch.float64)
    torch.testing.assert_close(found.eigenvalues, exact, rtol=1e-8, atol=0)
    assert found.converged.all() and found.iterations[3] == 2
    assert (found.iterations[:3] > 5).all() and (found.iterations <= size).all()


@pytest.mark.parametrize("size, rest", [(30, 1e-2), (2, 1e-4)])
def test_an_end_that_shows_late_is_waited_for(size, rest):
    """The start is nearly an eigenvector, and not the dominant one's."""
    spectrum = torch.cat([torch.tensor([-1.0]), torch.linspace(1.05, 0.1, size - 1)]).double()
    start = torch.full((1, size), rest, dtype=torch.float64)
    start[0, 0] = 1.0
    found = lanczos(lambda v: spectrum * v, start, iterations=100, tolerance=1e-3)
    assert found.eigenvalues.item() == pytest.approx(1.05, rel=1e-3)


def test_power_iteration_does_not_converge_between_equal_ends():
    matrices = random_symmetric(torch.tensor([[1.0, -1.0, 0.1]], dtype=torch.float64))
    start = torch.ones(1, 3, dtype=torch.float64)
    found = power_iteration(
        lambda v: torch.einsum("nij,nj->ni", matrices, v), start, iterations=50, tolerance=1e-6
    )
    assert not found.converged.any() and found.residuals.item() > 0.1


def test_it_leaves_no_trace(model, device):
    images, labels = tiny_batch(2)
    images, labels = images.double().to(device), labels.to(device)
    model.conv.eval()
    model.fc.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        hessian_curvature(model, images, labels)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["fc.bias"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_files(model, device, tmp_path):
    pytest.importorskip("matplotlib")
    images, labels = tiny_batch(3)
    found = hessian_curvature(model, images.double().to(device), labels.to(device))
    assert len(found.save(tmp_path).files) == 4
    assert found.to_dict()["mean"] == found.mean and len(found.table()) == 4
    zero = hessian_curvature(Saturated(), torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    assert zero.std == 0 and zero.plot() is not None, "an axis in logarithms has no zero"


class Detached(nn.Module):
    def forward(self, images):
        return images.detach().flatten(1)[:, :4]


class Infinite(nn.Module):
    """sqrt at 0 has an infinite derivative."""

    def forward(self, images):
        return (images.flatten(1)[:, :4] - images.flatten(1)[:, :4]).sqrt()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"solver": "qr"}, ValueError, "solver must be one of 'lanczos', 'power'"),
        ({"iterations": 0}, ValueError, "iterations must be in"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be > 0"),
        ({"tolerance": math.inf}, ValueError, "tolerance must be finite"),
        ({"reduction": "sum"}, ValueError, "reduction must be one of 'example', 'batch_mean'"),
        ({"batch_size": 0}, ValueError, "batch_size must be in"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        hessian_curvature(TinyClassifier(), *tiny_batch(2), **options)


def test_bad_models():
    images, labels = tiny_batch(2)
    with pytest.raises(RuntimeError, match="does not depend on the model's input"):
        hessian_curvature(Detached(), images, labels)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        hessian_curvature(Infinite(), images, labels)
    with pytest.raises(ValueError, match="images must be finite"):
        hessian_curvature(TinyClassifier(), images - 1, labels)
