"""Shares of a minibatch: put together, they are what one process gets for the whole, in images and in gradients.

Everything is in float64 and in eval mode: batch statistics are those of the images at hand.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream
from adt_fast.attacks import CW, EXP, L2L, MIM, PGD, SPSA, FeatureAttack
from adt_fast.batch_share import BatchShare
from adt_fast.input_gradient import FLOAT32, InputGradient
from adt_fast.methods import create_method, method_names, method_spec
from adt_fast.models import PerturbationGenerator

EPSILON, SEED, BATCH = 0.1, 5, 7
SPLITS = [(3, 4), (1, 4, 2)]
NEARLY = {"rtol": 1e-12, "atol": 1e-14}

# The transport of feature scattering couples the images of a minibatch.
COUPLED = {"feascatter"}
METHODS = [name for name in method_names() if name not in COUPLED and method_spec(name).maximizer is not None]

# Values under which a method draws noise or divides in a way of its own. L2L's default, "max_abs", looks at all images.
OTHER_VALUES = {
    "recipe": ("paper",),
    "norm": ("l2",),
    "random_start": ("gaussian",),
    "gradient_scale": ("batch_mean", "per_example"),
}


def variants(name):
    """The method as it is, and with one option changed."""
    options = method_spec(name).defaults()
    changed = [{option: value} for option, values in OTHER_VALUES.items() if option in options for value in values]
    return [*([] if options.get("gradient_scale") == "max_abs" else [{}]), *changed]


VARIANTS = [pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
            for name in METHODS for options in variants(name)]


def classifier():
    return TinyClassifier().double().eval()


def batch(size=BATCH):
    images, labels = tiny_batch(size)
    return images.double(), labels


def method_of(name, model, options):
    """Its own networks, where it has any, are in eval mode, and lively enough for all of their layers to matter."""
    torch.manual_seed(0)
    if method_spec(name).joint is not None:
        options = {"generator_width": 3, "image_shape": (3, 6, 5)} | options
    method = create_method(name, model, epsilon=EPSILON, noise=NoiseStream(SEED, offset=3), engine=FLOAT32, **options)
    for network in networks_of(method):
        network.eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return method


def networks_of(method):
    return list(method.joint.networks.values()) if method.joint else []


def shared(attack, sizes, perturb, images, labels):
    """perturb(images, labels) of each share, from the same place of the noise; of the whole, without one."""
    start = attack.noise.state.clone()
    ends = list(itertools.accumulate(sizes))
    for first, end in zip([0, *ends], ends):
        attack.noise.state.copy_(start)
        attack.share = None if end - first == len(images) else BatchShare(first, len(images))
        yield perturb(images[first:end], labels[first:end])
    attack.share = None


def weighted_loss(method, model, images, labels, weight):
    perturbed = method.perturb(images, labels)
    loss = method.outer_loss(model, images, perturbed.images, labels).loss
    (weight * (loss if perturbed.penalty is None else loss + perturbed.penalty)).backward()
    return perturbed.images.detach()


def grads_of(network):
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("name, options", VARIANTS)
def test_shares_of_a_method_come_to_the_whole(name, options, sizes):
    """The images to train on; and the gradients of losses and penalties, of all networks, weighted by their images."""
    model, (images, labels) = classifier(), batch()
    found = {}
    for split in ((len(images),), sizes):
        method = method_of(name, model, options)
        networks = [model, *networks_of(method)]
        for network in networks:
            network.zero_grad()

        def step(images, labels, method=method):
            return weighted_loss(method, model, images, labels, len(images) / BATCH)

        x_adv = torch.cat(list(shared(method.maximizer, split, step, images, labels)), 1)
        found[split] = x_adv, [grads_of(network) for network in networks], method.maximizer.noise.offset
    (x_adv, grads, offset), parts = found.values()
    torch.testing.assert_close(parts[0], x_adv, **NEARLY)
    assert (x_adv[0] - images).abs().max() > EPSILON / 10
    for part, grad in zip(parts[1], grads, strict=True):
        assert grad.abs().max() > 1e-6
        torch.testing.assert_close(part, grad, rtol=1e-12, atol=1e-12 * float(grad.abs().max()))
    assert parts[2] == offset


def attack_of(name, model):
    options = {"epsilon": EPSILON, "noise": NoiseStream(SEED), "engine": FLOAT32}
    if name.startswith("exp "):
        return EXP(model, steps=3, samples=2, recipe=name.removeprefix("exp "), **options)
    if name == "feature-attack":
        return FeatureAttack(model, layer="norm", targets=3, steps=2, pool=batch(9), **options)
    if name == "spsa":
        return SPSA(model, samples=8, steps=3, **options)
    return {"cw": CW, "mim": MIM}[name](model, steps=3, **options)


@pytest.mark.parametrize(
    "name",
    [
        "exp published,objective=mean_per_example", "exp published,sigma=free", "exp published,entropy_reduction=sum",
        "exp published,outer_samples=3", "exp paper,entropy_reduction=mean", "exp paper,objective=sum_of_batch_means",
        "cw", "mim", "spsa", "feature-attack",
    ],
)  # fmt: skip
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_shares_of_an_attack_come_to_the_whole(name, sizes):
    model, (images, _) = classifier(), batch()
    labels = model(images).argmax(1)  # for some attacks leave alone what is misclassified
    attack = attack_of(name, model)
    start = attack.noise.state.clone()
    whole = attack.perturb(images, labels)
    attack.noise.state.copy_(start)
    parts = torch.cat(list(shared(attack, sizes, attack.perturb, images, labels)), 1)
    torch.testing.assert_close(parts, whole, **NEARLY)
    assert (whole[0] - images).flatten(1).abs().amax(1).min() > EPSILON / 10, "every image is attacked"


@pytest.mark.parametrize("name", [*METHODS, *COUPLED])
def test_equal_images_get_the_noise_of_their_places(name):
    model = classifier()
    attack = method_of(name, model, {}).maximizer
    images, labels = batch(2)
    one, other = shared(attack, (2, 2), attack.perturb, images.repeat(2, 1, 1, 1), labels.repeat(2))
    assert torch.equal(one, other) != attack.draws_noise


def test_the_largest_gradient_is_that_of_the_images_at_hand():
    """What L2L divides by, by default, is not shared."""
    model, (images, labels) = classifier(), batch()
    attack = L2L(model, EPSILON, generator=PerturbationGenerator(9, 3, width=3).double())
    parts = list(shared(attack, (3, 4), attack.generator_inputs, images, labels))
    assert all(part[:, 3:].abs().amax() == 1 for part in parts)


@pytest.mark.parametrize("name", [*METHODS, *COUPLED])
def test_a_captured_loop_is_of_one_share(name, monkeypatch):
    """What a CUDA graph is kept by tells first_example and batch_size, both of which it has baked in."""
    keys, run = [], InputGradient.run

    def noted(self, *arguments, key=None, **options):
        keys.append(key)
        return run(self, *arguments, key=key, **options)

    monkeypatch.setattr(InputGradient, "run", noted)
    attack = method_of(name, classifier(), {"tolerance": 0.0} if name in COUPLED else {}).maximizer
    shares = [None, BatchShare(0, 3), BatchShare(1, 3), BatchShare(1, 4)]
    for attack.share in [*shares, *shares]:
        attack.perturb(*batch(2))
    assert keys[: len(shares)] == keys[len(shares) :]
    assert None not in keys and len(set(keys)) == len(shares)


@pytest.mark.parametrize("name", [*METHODS, *COUPLED])
def test_images_beyond_the_whole_are_refused(name):
    method = method_of(name, classifier(), {})
    method.maximizer.share = BatchShare(3, 6)
    offset = method.maximizer.noise.offset
    with pytest.raises(ValueError, match=r"share must have room .* 4 from example 3 on .* whole minibatch of 6"):
        method.perturb(*batch(4))
    assert method.maximizer.noise.offset == offset
    method.perturb(*batch(3))


@pytest.mark.parametrize("name", ["cw", "mim", "spsa", "feature-attack"])
def test_images_beyond_the_whole_are_refused_by_attacks(name):
    attack = attack_of(name, classifier())
    attack.share = BatchShare(3, 6)
    with pytest.raises(ValueError, match="share"):
        attack(*batch(4))
    assert attack.noise.offset == 0


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((-1, 4), ValueError, r"first_example must be in \[0, 3\], got -1"),
        ((4, 4), ValueError, r"first_example must be in \[0, 3\], got 4"),
        ((0, 0), ValueError, "batch_size"),
        ((0, 2**32 + 1), ValueError, "batch_size"),
        ((0.0, 4), TypeError, "first_example must be an int, got float"),
        ((False, 4), TypeError, "first_example"),
        ((0, torch.tensor(4)), TypeError, "batch_size must be an int, got Tensor"),
    ],
)
def test_bad_shares(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchShare(*arguments)


def test_what_is_no_share_is_refused():
    attack = PGD(classifier(), EPSILON, restarts=2)
    with pytest.raises(TypeError, match="share must be a BatchShare or None, got tuple"):
        attack.share = (0, 4)
    assert attack.share is None
    attack.share = BatchShare(0, BATCH)
    with pytest.raises(ValueError, match="share must be None with restarts"):
        attack(*batch())
