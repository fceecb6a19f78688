"""Training generators against a classifier that stays: against a plain loop, and a classifier without a trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream
from adt_fast.attacks import PGD
from adt_fast.methods import exp_am, fit_generator, imp_am, l2l

EPSILON = 0.1
SHAPE = (3, 6, 5)


@pytest.fixture
def model(device):
    return TinyClassifier().to(device)


def made(factory, model, **options):
    torch.manual_seed(0)
    return factory(model, EPSILON, image_shape=SHAPE, generator_width=8, noise=NoiseStream(1), **options)


def batches(device="cpu"):
    return [tuple(part.to(device) for part in tiny_batch(16, seed)) for seed in range(4)]


@pytest.mark.parametrize("factory", [exp_am, imp_am, l2l])
def test_the_attack_grows_stronger_and_the_classifier_stays(model, device, factory):
    attack = made(factory, model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = (torch.cat(parts) for parts in zip(*batches(device)))

    def loss(x):
        with torch.no_grad():
            return float(F.cross_entropy(model.eval()(x), labels))

    untrained = loss(attack(images, labels))
    model.train().conv.eval()
    losses = fit_generator(attack, batches(), epochs=30, generator_learning_rate=5e-3)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(losses) == 30 and losses[-1] > losses[0]
    trained, strongest = loss(attack(images, labels)), loss(PGD(model, EPSILON)(images, labels))
    assert untrained + 0.15 * (strongest - untrained) < trained <= strongest * 1.02


def test_a_step_against_a_plain_one(model, device):
    """L2L has no noise and no penalty: one Adam step that raises the cross entropy."""
    model.double()
    (images, labels), *_ = ((x.double(), y) for x, y in batches(device))
    attack, twin = made(l2l, model), made(l2l, model)
    generator = twin.generator.train()
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    inputs = twin.generator_inputs(images, labels)
    x_adv = (images + EPSILON * generator(inputs).tanh()).clamp(0, 1)
    loss = F.cross_entropy(model.eval()(x_adv), labels)
    (-loss).backward()
    adam.step()
    (found,) = fit_generator(attack, [(images, labels)], generator_learning_rate=1e-3)
    assert found == pytest.approx(loss.item(), abs=1e-12)
    for mine, theirs in zip(attack.generator.parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_a_model_that_is_sure_still_teaches(model, device):
    """PyTorch's cross entropy is 0 in float32, and its gradient wrong, where the right logit leads by far."""
    images, _ = batches(device)[0]
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    with torch.no_grad():
        model.fc.bias.add_(torch.tensor([32.0, 0.0, 0.0, 0.0], device=device))
    attack, twin = made(l2l, model), made(l2l, model)
    x_adv = (images + EPSILON * twin.generator.train()(twin.generator_inputs(images, labels)).tanh()).clamp(0, 1)
    expected = F.cross_entropy(copy.deepcopy(model).double().eval()(x_adv.double()), labels).item()
    (found,) = fit_generator(attack, [(images, labels)])
    assert 0 < expected < 1e-7 and found == pytest.approx(expected, rel=1e-3)


def test_bad_arguments(model):
    attack = made(l2l, model)
    for arguments, error, message in (
        ({"epochs": 0}, ValueError, "epochs"),
        ({"generator_learning_rate": 0.0}, ValueError, "generator_learning_rate"),
        ({"batches": []}, ValueError, "batches must have at least one image"),
        ({"batches": [(tiny_batch()[0].numpy(), tiny_batch()[1])]}, TypeError,
         "batches must give pairs of tensors, .* got a tuple of ndarray and Tensor"),
        ({"batches": [{"images": 1}]}, TypeError, "got a dict"),
        ({"batches": [[*tiny_batch(), 3]]}, TypeError, "got a list of 3"),
        ({"batches": 3}, TypeError, "batches must give .*got int"),
        ({"batches": [(tiny_batch()[0] * 2, tiny_batch()[1])]}, ValueError, "images must be finite, in"),
        ({"attack": PGD(model)}, TypeError, "attack, the maximizer, must be an AmortizedAttack"),
    ):
        with pytest.raises(error, match=message):
            fit_generator(**{"attack": attack, "batches": batches()} | arguments)
