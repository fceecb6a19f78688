"""The loss landscape, point by point, against plain PyTorch in float64."""

import csv
import math

import independent_noise
import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch

from adt_fast.analysis import loss_landscape

EPSILON = 0.1


@pytest.fixture
def model(device):
    return TinyClassifier().to(device).double().train()


@pytest.fixture
def batch(device):
    images, labels = tiny_batch(3)
    return images.double().to(device), labels.to(device)


def plain_landscape(model, images, labels, offsets, *, direction, seed, bounds=None):
    """Every point by itself: images [N, C, H, W] -> losses [N, S, S], cosines [N]."""
    model.eval()
    x = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    normals = torch.from_numpy(independent_noise.normals(tuple(images.shape), seed=seed)[0].astype("float64"))
    losses, cosines = torch.empty(len(images), len(offsets), len(offsets), dtype=torch.float64), []
    for i, image in enumerate(images):
        d_g = grad[i].sign() if direction == "sign" else grad[i] / grad[i].abs().max()
        d_r = torch.ones_like(image)
        d_r[normals[i].to(image.device) < 0] = -1
        cosines.append(float((d_g * d_r).sum() / d_g.norm() / d_r.norm()))
        for j, a in enumerate(offsets):
            for k, b in enumerate(offsets):
                point = image + a * d_g + b * d_r
                point = point if bounds is None else point.clamp(*bounds)
                losses[i, j, k] = F.cross_entropy(model(point[None]), labels[i : i + 1])
    return losses.detach(), cosines


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("direction", ["sign", "gradient"])
def test_every_point(model, batch, direction, bounds):
    found = loss_landscape(
        model, *batch, epsilon=EPSILON, radius=0.7, steps=5, direction=direction, bounds=bounds, batch_size=4, seed=3
    )
    offsets = [-0.7, -0.35, 0.0, 0.35, 0.7]
    assert found.offsets.tolist() == pytest.approx(offsets) and found.offsets[2] == 0
    losses, cosines = plain_landscape(model, *batch, offsets, direction=direction, seed=3, bounds=bounds)
    torch.testing.assert_close(found.losses, losses, rtol=1e-9, atol=1e-12)
    assert found.cosines.tolist() == pytest.approx(cosines, abs=1e-12)
    natural = F.cross_entropy(model.eval()(batch[0]), batch[1], reduction="none")
    torch.testing.assert_close(found.at_image, natural.detach().cpu(), rtol=1e-9, atol=1e-12)


def test_clamping_matters_here(model, batch):
    free, clamped = (loss_landscape(model, *batch, radius=0.7, steps=3, bounds=bounds) for bounds in (None, (0.0, 1.0)))
    assert not torch.allclose(free.losses, clamped.losses)


def test_highest_in_ball(model, batch):
    found = loss_landscape(model, *batch, epsilon=EPSILON, radius=0.3, steps=13)  # spacing: epsilon / 2
    for image in range(3):
        inside = [
            found.losses[image, j, k].item()
            for j, a in enumerate(found.offsets.tolist())
            for k, b in enumerate(found.offsets.tolist())
            if abs(a) + abs(b) < EPSILON + 1e-6
        ]
        assert len(inside) == 13
        assert found.highest_in_ball[image].item() == max(inside) > found.at_image[image].item()


def test_defaults_and_float32(device):
    model, (images, labels) = TinyClassifier().to(device), tiny_batch(2)
    found = loss_landscape(model, images.to(device), labels.to(device), epsilon=EPSILON)
    assert found.losses.shape == (2, 41, 41) and found.offsets[-1].item() == pytest.approx(10 * EPSILON)
    assert found.direction == "sign" and found.bounds is None
    exact = loss_landscape(model.double(), images.double().to(device), labels.to(device), epsilon=EPSILON)
    torch.testing.assert_close(found.losses, exact.losses, rtol=1e-4, atol=1e-4)


def test_it_leaves_no_trace(model, batch):
    model.conv.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss_landscape(model, *batch, steps=3)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_files(model, batch, tmp_path):
    pytest.importorskip("matplotlib")
    found = loss_landscape(model, *batch, radius=0.2, steps=3)
    saved = found.save(tmp_path / "new" / "folder")
    assert [path.name for path in saved.files] == ["data.json", "data.csv", "figure.png", "figure.pdf"]
    assert not saved.note and all(path.stat().st_size > 100 for path in saved.files)
    with open(saved.files[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 9
    assert float(rows[9 + 3 * 2 + 1]["loss"]) == found.losses[1, 2, 1].item()
    assert (float(rows[9 + 3 * 2 + 1]["a"]), float(rows[9 + 3 * 2 + 1]["b"])) == (pytest.approx(0.2), 0.0)


class Flat(torch.nn.Module):
    """Logits that depend on the image, by nothing: the gradient is 0."""

    def forward(self, images):
        return (images * 0).sum((1, 2, 3))[:, None].expand(-1, 4)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"epsilon": 0}, ValueError, "epsilon must be > 0"),
        ({"radius": 0.0}, ValueError, "radius must be > 0"),
        ({"radius": math.nan}, ValueError, "radius must be finite"),
        ({"steps": 4}, ValueError, "steps must be odd"),
        ({"steps": 1}, ValueError, "steps must be in"),
        ({"steps": 5.0}, TypeError, "steps must be an int"),
        ({"direction": "up"}, ValueError, "direction must be one of 'sign', 'gradient'"),
        ({"bounds": (1.0, 0.0)}, ValueError, "lower must be < upper"),
        ({"batch_size": 0}, ValueError, "batch_size must be in"),
        ({"seed": -1}, ValueError, "seed must be in"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        loss_landscape(TinyClassifier(), *tiny_batch(2), **options)


def test_bad_images_and_models():
    images, labels = tiny_batch(2)
    with pytest.raises(ValueError, match=r"images must be finite, in \[0, 1\]"):
        loss_landscape(TinyClassifier(), images * 255, labels)
    with pytest.raises(ValueError, match="labels must be in"):
        loss_landscape(TinyClassifier(), images, labels + 4)
    with pytest.raises(TypeError, match="model must be"):
        loss_landscape(torch.relu, images, labels)
    with pytest.raises(ValueError, match="image 0 is 0 everywhere"):
        loss_landscape(Flat(), images, labels)
