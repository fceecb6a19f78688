"""compat.adt_loss against the published script's algorithm, written plainly, in float64 and with the same noise."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, published_inner, tiny_batch

from adt_fast import NoiseStream, ops
from adt_fast.compat import adt_loss

STEPS, SAMPLES, EPSILON, LEARNING_RATE, LAMBDA = 4, 3, 0.08, 0.3, 0.01


@pytest.fixture
def problem(device):
    images, labels = tiny_batch()
    model = TinyClassifier().double().to(device)
    return model, images.double().to(device), labels.to(device)


def published_loss(model, x, y, optimizer, noise):
    normals = torch.stack([ops.normal(x, noise.state, samples=SAMPLES, draw=t) for t in range(STEPS)])
    mean, var = published_inner(model, x, y, normals, epsilon=EPSILON, step_size=LEARNING_RATE, entropy_weight=LAMBDA)
    r = ops.normal(x, noise.state, samples=1, draw=STEPS)[0]
    x_adv = torch.clamp(x + EPSILON * torch.tanh(mean + F.softplus(var) * r), 0.0, 1.0)
    model.train()
    optimizer.zero_grad()
    return F.cross_entropy(model(x_adv), y)


def test_equals_the_published_script(problem):
    model, x, y = problem
    plain = copy.deepcopy(model)
    for step in range(2):
        losses = []
        for mine, function in ((model, adt_loss), (plain, published_loss)):
            optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
            noise = NoiseStream(step, x.device)
            if function is adt_loss:
                loss = adt_loss(mine, x, y, optimizer, LEARNING_RATE, EPSILON, STEPS, SAMPLES, LAMBDA, noise=noise)
            else:
                loss = published_loss(mine, x, y, optimizer, noise)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=1e-9)
    for ours, expected in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_signature_is_the_scripts():
    parameters = inspect.signature(adt_loss).parameters
    assert {name: p.default for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD} == {
        "model": inspect.Parameter.empty,
        "x_natural": inspect.Parameter.empty,
        "y": inspect.Parameter.empty,
        "optimizer": inspect.Parameter.empty,
        "learning_rate": 1.0,
        "epsilon": 8.0 / 255.0,
        "perturb_steps": 10,
        "num_samples": 10,
        "lbd": 0.0,
    }


def test_modes_and_gradients_afterwards(problem):
    """As in the script: eval inside, train after, gradients zeroed before the outer forward."""
    model, x, y = problem
    model.eval()
    seen = []
    model.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    loss = adt_loss(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), perturb_steps=2, num_samples=2)
    assert seen == [False, False, False, True], "the first is that of the check of the labels"
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert loss.requires_grad and loss.dim() == 0


def test_torch_seed_governs(problem):
    _, x, y = problem
    losses = []
    for seed in (1, 1, 2):
        model = copy.deepcopy(problem[0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(seed)
        losses.append([adt_loss(model, x, y, optimizer).item() for _ in range(2)])
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][0] != losses[0][1]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"optimizer": None}, TypeError, r"optimizer must be a torch\.optim\.Optimizer, got NoneType"),
        ({"model": torch.relu}, TypeError, "model must be"),
        ({"noise": 7}, TypeError, "noise must be a NoiseStream or None, got int"),
        ({"x_natural": lambda x: x * 255}, ValueError, "images must be finite, in"),
        ({"x_natural": lambda x: x[:, 0]}, ValueError, "images must be a batch"),
        ({"y": lambda y: y + 4}, ValueError, r"labels must be in \[0, 3\]"),
        ({"y": lambda y: y.float()}, TypeError, r"labels must be an int64 tensor, got torch\.float32"),
        ({"perturb_steps": 1.5}, TypeError, "steps must be an int"),
    ],
)
def test_bad_arguments_change_nothing(problem, change, error, message):
    model, x, y = problem
    model.eval()
    optimizer, noise = torch.optim.SGD(model.parameters(), lr=0.1), NoiseStream(0, x.device)
    good = {"model": model, "x_natural": x, "y": y, "optimizer": optimizer, "noise": noise, "perturb_steps": 1}
    for times in range(2):  # the second knows the optimizer
        bad = {name: value(good[name]) if name in ("x_natural", "y") else value for name, value in change.items()}
        random = torch.random.get_rng_state()
        with pytest.raises(error, match=message):
            adt_loss(**(good | bad))
        assert torch.equal(torch.random.get_rng_state(), random) and noise.offset == 2 * times
        assert not any(module.training for module in model.modules())
        adt_loss(**good)
        model.eval()


def test_a_given_stream_is_advanced(problem):
    model, x, y = problem
    noise = NoiseStream(0)
    adt_loss(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), perturb_steps=3, num_samples=1, noise=noise)
    assert noise.offset == 4
