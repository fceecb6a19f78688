"""Outer losses against their formulas: value, gradients of all weights, logits, and what batch norm sees."""

import copy

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from plain_methods import cross_entropy, kl_divergence, smoothed_cross_entropy, trades_loss

from adt_fast.methods import CrossEntropy, HalfClean, Trades

BATCH = 5


@pytest.fixture(params=[1, 3], ids=["1-sample", "3-samples"])
def problem(request):
    """A classifier in train mode, images, adversarial images [n, B, ...], and labels."""
    images, labels = tiny_batch(BATCH)
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(request.param, *images.shape, generator=generator, dtype=torch.float64) * 0.2 - 0.1
    return TinyClassifier().double().train(), images.double(), (images.double() + noise).clamp(0, 1), labels


def assert_loss_and_gradients(found, model, expected, plain):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(found, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(plain.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def samples_of(model, images, adversarial):
    """Logits of the adversarial images alone, all samples in one batch."""
    return model(torch.cat(list(adversarial)))


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.3, 0.95])
def test_cross_entropy(problem, smoothing):
    model, images, adversarial, labels = problem
    plain = copy.deepcopy(model)
    result = CrossEntropy(smoothing)(model, images, adversarial, labels)
    repeated = torch.cat([labels] * len(adversarial))
    logits = samples_of(plain, images, adversarial)
    assert_loss_and_gradients(result.loss, model, smoothed_cross_entropy(logits, repeated, smoothing).mean(), plain)
    torch.testing.assert_close(result.logits, logits)
    assert torch.equal(result.labels, repeated)


def test_label_smoothing_leaves_the_true_class_its_share():
    """Not what PyTorch calls label smoothing, whose true class also gets its part of what is spread."""
    weights = torch.zeros(4).double().requires_grad_()  # equal logits: -d loss / d logit = target - 1/4

    class Constant(torch.nn.Module):
        def forward(self, images):
            return weights.expand(len(images), 4)

    loss = CrossEntropy(0.6)(Constant(), torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.tensor([2])).loss
    (grad,) = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(0.25 - grad, torch.tensor([0.2, 0.2, 0.4, 0.2]).double())


def test_cross_entropy_of_a_single_class():
    model = torch.nn.Linear(3, 1)
    loss = CrossEntropy(0.5)(model, torch.rand(2, 3), torch.rand(1, 2, 3), torch.tensor([0, 0])).loss
    assert loss.item() == 0


@pytest.mark.parametrize("logit_weight", [0.0, 0.5, 2.0])
def test_half_clean(problem, logit_weight):
    """Clean and adversarial images share one batch, and so its statistics; logit pairing is the mean over n, B, K."""
    model, images, adversarial, labels = problem
    plain = copy.deepcopy(model)
    result = HalfClean(logit_weight)(model, images, adversarial, labels)
    clean, *perturbed = plain(torch.cat([images, *adversarial])).split(BATCH)
    adversarial_loss = sum(cross_entropy(logits, labels).mean() for logits in perturbed) / len(perturbed)
    pairing = sum((logits - clean).square().mean() for logits in perturbed) / len(perturbed)
    expected = 0.5 * cross_entropy(clean, labels).mean() + 0.5 * adversarial_loss + logit_weight * pairing
    assert_loss_and_gradients(result.loss, model, expected, plain)
    torch.testing.assert_close(result.logits, torch.cat(perturbed))
    assert torch.equal(result.labels, torch.cat([labels] * len(adversarial)))
    assert model.norm.num_batches_tracked == 1


@pytest.mark.parametrize("repeat_natural", [False, True])
@pytest.mark.parametrize("weight", [6.0, 0.5, 0.0])
def test_trades(problem, weight, repeat_natural):
    model, images, adversarial, labels = problem
    plain = copy.deepcopy(model)
    result = Trades(weight, repeat_natural)(model, images, adversarial, labels)
    natural = plain(images)
    perturbed = samples_of(plain, images, adversarial)
    reference = plain(images) if repeat_natural else natural
    divergences = [kl_divergence(reference, logits) for logits in perturbed.split(BATCH)]
    expected = cross_entropy(natural, labels).mean() + weight * torch.stack(divergences).mean()
    assert_loss_and_gradients(result.loss, model, expected, plain)
    torch.testing.assert_close(result.logits, perturbed)
    assert torch.equal(result.labels, torch.cat([labels] * len(adversarial)))
    if len(adversarial) == 1:
        torch.testing.assert_close(result.loss, trades_loss(natural, perturbed, labels, weight))


def test_repeating_the_natural_images_changes_batch_norm_alone(problem):
    model, images, adversarial, labels = problem
    gradients, losses, models = [], [], []
    for repeat in (False, True):
        mine = copy.deepcopy(model)
        loss = Trades(6.0, repeat)(mine, images, adversarial, labels).loss
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, list(mine.parameters())))
        models.append(mine)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    once, twice = (mine.norm for mine in models)
    assert (once.num_batches_tracked, twice.num_batches_tracked) == (2, 3)
    natural_mean = model.conv(images).mean((0, 2, 3))
    torch.testing.assert_close(twice.running_mean, 0.9 * once.running_mean + 0.1 * natural_mean)


def test_the_trades_gradient_flows_through_both_distributions(problem):
    """The reference is no constant, in training as in the published code of TRADES."""
    model, images, adversarial, labels = problem
    model.eval()
    images, adversarial = images.requires_grad_(), adversarial.requires_grad_()
    loss = Trades(6.0)(model, images, adversarial, labels).loss - Trades(0.0)(model, images, adversarial, labels).loss
    for grad in torch.autograd.grad(loss, (images, adversarial)):
        assert grad.abs().max() > 1e-6


@pytest.mark.parametrize(
    "loss, options, error, message",
    [
        (CrossEntropy, {"label_smoothing": -0.1}, ValueError, "label_smoothing"),
        (CrossEntropy, {"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        (CrossEntropy, {"label_smoothing": float("nan")}, ValueError, "label_smoothing"),
        (CrossEntropy, {"label_smoothing": "0.5"}, TypeError, "label_smoothing"),
        (HalfClean, {"logit_weight": -1.0}, ValueError, "logit_weight"),
        (HalfClean, {"logit_weight": None}, TypeError, "logit_weight"),
        (Trades, {"trades_weight": -6.0}, ValueError, "trades_weight"),
        (Trades, {"trades_weight": float("inf")}, ValueError, "trades_weight"),
        (Trades, {"repeat_natural": 1}, TypeError, "repeat_natural"),
    ],
)
def test_bad_options(loss, options, error, message):
    with pytest.raises(error, match=message):
        loss(**options)
