"""Losses of single examples against their formulas, and their bad arguments."""

import pytest
import torch
from plain_methods import cross_entropy as plain_cross_entropy
from plain_methods import kl_divergence

from adt_fast.losses import KLFromNatural, Margin, cross_entropy


def logits_and_labels(batch=7, classes=5, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, generator=generator, dtype=torch.float64) * spread
    return logits, torch.randint(classes, (batch,), generator=generator)


def test_cross_entropy():
    logits, labels = logits_and_labels()
    losses = cross_entropy(logits, labels)
    assert losses.shape == (7,)
    torch.testing.assert_close(losses, plain_cross_entropy(logits, labels))


@pytest.mark.parametrize("sure_by", [-80.0, -5.0, 0.0, 5.0, 20.0, 60.0])
def test_the_gradient_of_cross_entropy_in_float32_is_that_of_float64(sure_by):
    """However sure the model is, right or wrong."""
    logits, labels = logits_and_labels()
    logits[torch.arange(7), labels] = logits.amax(1) + sure_by
    grads = []
    for given in (logits, logits.float()):
        given = given.clone().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(given, labels).sum(), given)
        grads.append(grad.double())
    # p_y - 1 is minus the sum of the other probabilities, which float64 has to 1e-16 of itself when summed like that.
    others = logits.softmax(1).scatter(1, labels[:, None], 0.0)
    expected = others.scatter(1, labels[:, None], -others.sum(1, keepdim=True))
    torch.testing.assert_close(grads[0], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grads[1], expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("confidence", [50.0, 1.5, 0.0, -1.0])
def test_margin_one_example_at_a_time(confidence):
    logits, labels = logits_and_labels()
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        right = row.pop(label)
        expected.append(min(max(row) - right, confidence))
    losses = Margin(confidence)(logits, labels)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    assert Margin() == Margin(50.0)


def test_the_margins_gradient_is_that_of_two_logits():
    """+1 for the best wrong class, -1 for the right one, and nothing beyond the confidence."""
    logits = torch.tensor([[1.0, 5.0, 3.0], [9.0, 2.0, 3.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(Margin(4.0)(logits, torch.tensor([0, 2])).sum(), logits)
    assert grad.tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("weight", [6.0, 0.25])
def test_kl_from_natural(weight):
    natural, adversarial = logits_and_labels()[0], logits_and_labels(seed=1)[0].requires_grad_()
    loss = KLFromNatural(weight)
    losses = loss(adversarial, loss.targets(natural))
    torch.testing.assert_close(losses, weight * kl_divergence(natural, adversarial))
    (grad,) = torch.autograd.grad(losses.sum(), adversarial)
    torch.testing.assert_close(grad, weight * (adversarial.softmax(1) - natural.softmax(1)))


def test_kl_is_flat_at_the_natural_image():
    """So a gradient there says nothing: its attacks have to start elsewhere."""
    natural = logits_and_labels()[0].requires_grad_()
    loss = KLFromNatural()
    losses = loss(natural, loss.targets(natural.detach()))
    (grad,) = torch.autograd.grad(losses.sum(), natural)
    torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-13)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-13)


def test_kl_of_logits_that_are_far_apart():
    natural, adversarial = torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([[0.0, 1e4, 0.0]], requires_grad=True)
    loss = KLFromNatural(1.0)
    losses = loss(adversarial, loss.targets(natural))
    assert losses.item() == pytest.approx(1e4)
    (grad,) = torch.autograd.grad(losses.sum(), adversarial)
    assert grad.tolist() == [[-1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "kind, value, error",
    [
        (Margin, float("nan"), ValueError),
        (Margin, "50", TypeError),
        (KLFromNatural, 0.0, ValueError),
        (KLFromNatural, -6.0, ValueError),
        (KLFromNatural, float("inf"), ValueError),
        (KLFromNatural, None, TypeError),
        (KLFromNatural, True, TypeError),
    ],
)
def test_bad_arguments(kind, value, error):
    with pytest.raises(error, match="confidence" if kind is Margin else "trades_weight"):
        kind(value)
