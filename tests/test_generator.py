"""The networks of amortised ADT against plain convolutions in float64: sizes, modes, parameters and initial weights."""

import math

import pytest
import torch
from plain_methods import encoder_output, generator_output, lively, trainable
from torch import nn

from adt_fast.models import PerturbationGenerator, VariationalEncoder

SIZES = [(8, 8), (28, 28), (40, 24), (64, 64)]
SMALL = {"width": 3, "latent_dim": 5}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def normals(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(in_channels, out_channels, width, last):
    """Parameters of a generator without z whose third block gives `last` channels."""
    twice = 2 * width
    stem = 9 * in_channels * width + 2 * width
    first = 9 * width * twice + 9 * twice * twice + width * twice + 3 * 2 * twice  # a shortcut of 1x1, three norms
    second = 2 * (9 * twice * twice + 2 * twice)
    third = second if last == twice else 9 * twice * last + 9 * last * last + twice * last + 3 * 2 * last
    return stem + first + second + third + 9 * last * out_channels


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, 10_330_880),
        ({}, by_hand(9, 6, 256, 256)),
        ({"out_channels": 3, "latent_dim": 64}, 10_606_080),
        ({"narrow_third_block": False}, 13_163_264),
        ({"narrow_third_block": False}, by_hand(9, 6, 256, 512)),
        ({"in_channels": 3, "out_channels": 2, "width": 64, "image_size": (8, 8)}, by_hand(3, 2, 64, 64)),
    ],
)
def test_the_generators_parameters(options, expected):
    """10,330,880 are the published code's; Table 5 alone would have the third block as wide as the others."""
    with torch.device("meta"):
        assert parameters(PerturbationGenerator(**options)) == expected


@pytest.mark.parametrize("arguments, expected", [((), 724_384), ((1, 10), 724_384 - 2 * 25 * 32 - 257 * 108)])
def test_the_encoders_parameters(arguments, expected):
    with torch.device("meta"):
        assert parameters(VariationalEncoder(*arguments)) == expected


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels, latent_dim, narrow", [(9, 0, True), (3, 5, True), (9, 5, False)])
def test_the_generator_against_plain_convolutions(size, training, channels, latent_dim, narrow):
    network = lively(
        PerturbationGenerator(channels, 4, width=3, narrow_third_block=narrow, latent_dim=latent_dim, image_size=size)
    ).train(training)
    inputs = normals(2, channels, *size)
    z = normals(2, latent_dim, seed=2) if latent_dim else None
    state = trainable(network.state_dict())
    expected = generator_output(state, inputs.double(), None if z is None else z.double(), training=training)
    output = network.double()(inputs.double(), *(() if z is None else (z.double(),)))
    assert output.shape == (2, 4, *size)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    assert_same_state(network, state)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", [(6, 5), (24, 24), (12, 32), *SIZES], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_against_plain_convolutions(size, training, channels):
    """Below 24 x 24 the images are padded, with zeros: of each side, only as much as is missing."""
    network = lively(VariationalEncoder(channels, 7)).double().train(training)
    perturbations = normals(3, channels, *size).double().tanh()
    state = trainable(network.state_dict())
    expected = encoder_output(state, perturbations, training=training)
    mean, spread = network(perturbations)
    assert mean.shape == spread.shape == (3, 7)
    torch.testing.assert_close((mean, spread), expected, rtol=1e-9, atol=1e-9)
    assert_same_state(network, state)


def assert_same_state(network, state):
    """Running statistics have moved alike, or not at all."""
    ours = {name: value.to(state[name].dtype) for name, value in network.state_dict().items()}
    torch.testing.assert_close(ours, {name: value.detach() for name, value in state.items()}, rtol=1e-9, atol=1e-9)


def test_in_float32_and_channels_last_as_in_float64():
    network = lively(PerturbationGenerator(9, 3, latent_dim=5, width=4, image_size=(8, 8)))
    inputs, z = normals(4, 9, 8, 8), normals(4, 5)
    expected = generator_output(trainable(network.state_dict()), inputs.double(), z.double(), training=True)
    network = network.to(memory_format=torch.channels_last)
    for images in (inputs, inputs.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(network(images, z).double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_weight():
    network = lively(PerturbationGenerator(9, 3, latent_dim=5, width=4, image_size=(8, 8)))
    network(normals(4, 9, 8, 8), normals(4, 5)).square().sum().backward()
    encoder = lively(VariationalEncoder(3, 5))
    sum(part.square().sum() for part in encoder(normals(4, 3, 8, 8))).backward()
    for name, parameter in [*network.named_parameters(), *encoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_initial_weights_of_the_generator():
    """As published: N(0, 0.02^2), batch norm scales N(1, 0.02^2), every bias zero."""
    torch.manual_seed(0)
    network = PerturbationGenerator(latent_dim=64, width=48)
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert_normal(name, module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            assert_normal(name, module.weight, 1.0, 0.02)
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any(), name


def test_initial_weights_of_the_encoder():
    """As published: He's, by fan-out, for convolutions; PyTorch's own for the linear layer, but no bias."""
    torch.manual_seed(0)
    network = VariationalEncoder()
    for module in network.convolutions:
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel()
            assert_normal("convolution", module.weight, 0.0, math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)) and not module.bias.any()
    assert not network.fc.bias.any()
    assert network.fc.weight.abs().max() <= 1 / 16
    assert network.fc.weight.std().item() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.02)


def assert_normal(name, values, mean, std):
    """Mean, spread and tails are within five standard errors of a normal distribution's."""
    values = (values.detach().double().flatten() - mean) / std
    error = 5 / math.sqrt(len(values))
    assert abs(values.mean()) < error, name
    assert abs(values.square().mean() - 1) < error * math.sqrt(2), name
    assert abs(values.pow(4).mean() - 3) < error * math.sqrt(96), name


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"out_channels": 6.0}, TypeError, "out_channels"),
        ({"width": 0}, ValueError, "width"),
        ({"width": "256"}, TypeError, "width"),
        ({"latent_dim": -1}, ValueError, "latent_dim"),
        ({"latent_dim": 64.0}, TypeError, "latent_dim"),
        ({"latent_dim": 0.0}, TypeError, "latent_dim"),
        ({"latent_dim": None}, TypeError, "latent_dim"),
        ({"narrow_third_block": "no"}, TypeError, "narrow_third_block"),
        ({"image_size": (0, 8)}, ValueError, "image_size"),
        ({"image_size": (8, 8.0)}, TypeError, "image_size"),
        ({"image_size": (3, 8, 8)}, ValueError, "image_size"),
        ({"image_size": 8}, TypeError, "image_size"),
    ],
)
def test_bad_sizes_of_the_generator(options, error, message):
    with pytest.raises(error, match=message):
        PerturbationGenerator(**options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"in_channels": None}, TypeError, "in_channels"),
        ({"latent_dim": 0}, ValueError, "latent_dim"),
        ({"latent_dim": True}, TypeError, "latent_dim"),
    ],
)
def test_bad_sizes_of_the_encoder(options, error, message):
    with pytest.raises(error, match=message):
        VariationalEncoder(**options)


def test_z_is_given_if_and_only_if_it_is_wanted():
    inputs, z = normals(2, 9, 8, 8), normals(2, 5)
    with pytest.raises(ValueError, match="z must be given if, and only if"):
        PerturbationGenerator(width=2)(inputs, z)
    network = PerturbationGenerator(**SMALL, image_size=(8, 8))
    with pytest.raises(ValueError, match="z must be given if, and only if"):
        network(inputs)
    with pytest.raises(ValueError, match=r"z must be \[2, 5\], got \[2, 6\]"):
        network(inputs, normals(2, 6))
    with pytest.raises(ValueError, match=r"inputs must be \[B, 9, H, W\], got \[2, 3, 8, 8\]"):
        network(normals(2, 3, 8, 8), z)
    with pytest.raises(ValueError, match=r"images must be \(8, 8\)"):
        network(normals(2, 9, 8, 6), z)
    # Without z, size is nothing that was built in.
    assert PerturbationGenerator(width=2, image_size=(8, 8))(normals(2, 9, 5, 7)).shape == (2, 6, 5, 7)
