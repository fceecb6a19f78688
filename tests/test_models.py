"""Models: the published layout, and outputs equal to plain float64 computations written here."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from adt_fast.models import Normalize, PreActResNet18, SmallCNN, WideResNet, create_model, model_names

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def randomized(model, seed=0):
    """The model in float64 and eval mode, with batch norm statistics and affine parameters that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + 0.5)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.double().eval()


def images(batch=2, channels=3, size=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=torch.float64)


class PlainNetwork:
    """Layers applied by name from a state dict, with nothing of adt_fast in them."""

    def __init__(self, model, activation="relu", padding="symmetric", shortcut="activated"):
        self.state = model.state_dict()
        self.training = model.training
        self.activation, self.padding, self.shortcut = activation, padding, shortcut

    def conv(self, x, name, stride=1, padding=1):
        return F.conv2d(x, self.state[name + ".weight"], self.state.get(name + ".bias"), stride=stride, padding=padding)

    def bn_relu(self, x, name):
        weight, bias = self.state[name + ".weight"], self.state[name + ".bias"]
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = self.state[name + ".running_mean"], self.state[name + ".running_var"]
        scale = weight / torch.sqrt(var + 1e-5)
        out = (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
        return out.clamp(min=0) if self.activation == "relu" else out / (1 + torch.exp(-out))

    def conv_same(self, x, name):
        """Stride 2 by TensorFlow's rule: ceil(n / 2) outputs, and what that needs of zeros, the odd one at the end."""
        padding = []
        for n in reversed(x.shape[2:]):
            total = max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0)
            padding += [total // 2, total - total // 2]
        return self.conv(F.pad(x, padding), name, 2, padding=0)

    def block(self, x, name, stride, shortcut):
        activated = self.bn_relu(x, name + ".bn1")
        if self.padding == "same" and stride == 2:
            out = self.conv_same(activated, name + ".conv1")
        else:
            out = self.conv(activated, name + ".conv1", stride)
        out = self.conv(self.bn_relu(out, name + ".bn2"), name + ".conv2")
        if f"{name}.{shortcut}.weight" in self.state:
            taken = activated if self.shortcut == "activated" else x
            x = self.conv(taken, f"{name}.{shortcut}", stride, padding=0)
        return x + out

    def linear(self, x, name):
        return x @ self.state[name + ".weight"].T + self.state[name + ".bias"]

    def wide_resnet(self, x, blocks):
        x = self.conv(x, "conv1")
        for group, stride in (("block1", 1), ("block2", 2), ("block3", 2)):
            for index in range(blocks):
                x = self.block(x, f"{group}.layer.{index}", stride if index == 0 else 1, "convShortcut")
        return self.linear(self.bn_relu(x, "bn1").mean((2, 3)), "fc")

    def preactresnet18(self, x):
        x = self.conv(x, "conv1")
        for group, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
            for index in range(2):
                x = self.block(x, f"{group}.{index}", stride if index == 0 else 1, "shortcut.0")
        return self.linear(F.avg_pool2d(x, 4).flatten(1), "linear")

    def small_cnn(self, x):
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 1), ("conv4", 2)):
            x = self.conv(x, name, stride).clamp(min=0)
        return self.linear(x.sum((2, 3)) / (x.shape[2] * x.shape[3]), "fc")


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("wrn-28-10", 10, 36_479_194),
        ("wrn-28-10", 100, 36_536_884),
        ("wrn-34-10", 10, 46_160_474),
        ("wrn-16-4", 10, 2_748_890),
        ("preactresnet-18", 10, 11_171_146),
    ],
)
def test_parameter_counts_are_the_published_ones(name, num_classes, parameters):
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_wide_resnet_has_the_keys_and_shapes_of_published_checkpoints():
    def bn(name, channels):
        sizes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
        return {f"{name}.{key}": size for key, size in {**sizes, "num_batches_tracked": ()}.items()}

    expected = {"conv1.weight": (16, 3, 3, 3), **bn("bn1", 128), "fc.weight": (10, 128), "fc.bias": (10,)}
    for group, (before, after) in {"block1": (16, 32), "block2": (32, 64), "block3": (64, 128)}.items():
        for index in range(2):
            block, channels = f"{group}.layer.{index}", before if index == 0 else after
            expected |= bn(block + ".bn1", channels) | bn(block + ".bn2", after)
            expected[block + ".conv1.weight"] = (after, channels, 3, 3)
            expected[block + ".conv2.weight"] = (after, after, 3, 3)
        expected[f"{group}.layer.0.convShortcut.weight"] = (after, before, 1, 1)

    plain = WideResNet(16, 2).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in plain.items()} == expected
    normalized = WideResNet(16, 2, mean=MEAN, std=STD).state_dict()
    assert normalized.keys() - plain.keys() == {"normalize.mean", "normalize.std"}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_wide_resnet_matches_plain_float64(depth, width, training):
    model = randomized(WideResNet(depth, width)).train(training)
    expected = PlainNetwork(copy.deepcopy(model)).wide_resnet(images(), blocks=(depth - 4) // 6)
    torch.testing.assert_close(model(images()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [32, 30, (18, 31)], ids=str)
@pytest.mark.parametrize(
    "options", [{"activation": "silu"}, {"padding": "same"}, {"activation": "silu", "padding": "same"}], ids=str
)
def test_wide_resnet_options_match_plain_float64(options, size):
    model = randomized(create_model("wrn-10-2", **options))
    height, width = size if isinstance(size, tuple) else (size, size)
    x = images(size=33)[:, :, :height, :width]
    expected = PlainNetwork(model, **options).wide_resnet(x, blocks=1)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(PlainNetwork(model).wide_resnet(x, blocks=1), expected)


def test_options_do_not_change_the_state_dict():
    shapes = [
        {name: tensor.shape for name, tensor in create_model("wrn-10-2", **options).state_dict().items()}
        for options in ({}, {"activation": "silu", "padding": "same"})
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("shortcut", ["activated", "input"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_preactresnet_matches_plain_float64(training, shortcut):
    model = randomized(PreActResNet18(shortcut=shortcut)).train(training)
    expected = PlainNetwork(copy.deepcopy(model), shortcut=shortcut).preactresnet18(images())
    torch.testing.assert_close(model(images()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_small_cnn_matches_plain_float64_in_train_and_eval_mode(channels, size):
    model = randomized(SmallCNN(in_channels=channels))
    x = images(channels=channels, size=size)
    expected = PlainNetwork(model).small_cnn(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.train()(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1", "preactresnet-18"])
class TestEveryModel:
    @pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 33), (4, 48)])
    def test_any_image_size_and_channels(self, name, channels, size):
        model = create_model(name, num_classes=7, in_channels=channels).eval()
        x = images(channels=channels, size=size).float()
        features = model.features(x)
        stride = 8 if name == "preactresnet-18" else 4
        assert features.shape[0] == 2 and features.shape[2:] == (math.ceil(size / stride),) * 2
        head = model.linear if name == "preactresnet-18" else model.fc
        logits = model(x)
        assert logits.shape == (2, 7)
        torch.testing.assert_close(logits, head(features.mean((2, 3))))

    def test_normalisation_is_inside(self, name):
        model = randomized(create_model(name, mean=MEAN, std=STD))
        bare = randomized(create_model(name))
        bare.load_state_dict({key: value for key, value in model.state_dict().items() if "normalize" not in key})
        x = images(size=16)
        by_hand = torch.stack([(x[:, c] - model.normalize.mean[c]) / model.normalize.std[c] for c in range(3)], dim=1)
        torch.testing.assert_close(model(x), bare(by_hand))
        assert model.normalize.mean.flatten().tolist() == pytest.approx(MEAN)
        assert model.normalize.std.flatten().tolist() == pytest.approx(STD)

    def test_channels_last_gives_the_same_logits_and_input_gradient(self, name):
        model = randomized(create_model(name, mean=MEAN, std=STD))
        results = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = images(size=16).to(memory_format=memory_format).requires_grad_(True)
            model = model.to(memory_format=memory_format)
            assert model.features(x).is_contiguous(memory_format=memory_format)
            logits = model(x)
            (gradient,) = torch.autograd.grad(logits.square().sum(), x)
            results.append((logits, gradient))
        torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)

    def test_nothing_is_computed_in_place(self, name):
        model = create_model(name, mean=MEAN, std=STD).double()
        seen = []
        for module in model.modules():
            module.register_forward_hook(
                lambda module, inputs, output: seen.extend((t, t.clone()) for t in (*inputs, output))
            )
        x = images(size=16)
        model(x)
        assert len(seen) > 8
        assert all(torch.equal(tensor, before) for tensor, before in seen)
        assert torch.equal(x, images(size=16))

    def test_copies_and_traces(self, name):
        model = randomized(create_model(name, mean=MEAN, std=STD))
        x = images(size=16)
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)

    def test_initial_weights_are_he_by_fan_out(self, name):
        torch.manual_seed(0)
        model = create_model(name)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                out_channels, _, height, width = module.weight.shape
                expected = math.sqrt(2 / (out_channels * height * width))
                assert module.weight.std().item() == pytest.approx(expected, rel=0.2)
                assert module.bias is None or not module.bias.any()
        logits = model(images().float())
        assert torch.isfinite(logits).all() and logits.abs().max() < 100

    @pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
    @pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
    def test_bad_sizes(self, name, argument, value, error):
        with pytest.raises(error, match=argument):
            create_model(name, **{argument: value})

    def test_mean_must_have_one_number_per_channel(self, name):
        with pytest.raises(ValueError, match="in_channels=1"):
            create_model(name, in_channels=1, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, None, "std=None"),
        (None, STD, "mean=None"),
        (MEAN, (1.0, 1.0), "3 and 2"),
        (MEAN, (0.2, 0.0, 0.2), "std must be finite and positive"),
        (MEAN, (0.2, -0.1, 0.2), "std must be finite and positive"),
        ((0.5, math.nan, 0.5), STD, "mean must be finite"),
        (MEAN, (0.2, math.inf, 0.2), "std must be finite and positive"),
    ],
)
def test_bad_normalisation(mean, std, message):
    with pytest.raises(ValueError, match=message):
        create_model("small-cnn", mean=mean, std=std)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrn-10-1", {"activation": "swish"}, "activation must be one of 'relu', 'silu', got 'swish'"),
        ("wrn-10-1", {"padding": "SAME"}, "padding must be one of 'symmetric', 'same', got 'SAME'"),
        ("wrn-10-1", {"shortcut": "input"}, "shortcut is an option of preactresnet-18 alone, and wrn-10-1 has none"),
        ("preactresnet-18", {"shortcut": "x"}, "shortcut must be one of 'activated', 'input', got 'x'"),
        ("preactresnet-18", {"padding": "same"}, "padding is an option of wrn-DEPTH-WIDTH alone"),
        ("small-cnn", {"activation": "relu"}, "activation is an option of wrn-DEPTH-WIDTH alone, and small-cnn"),
    ],
)
def test_options_of_other_models_and_unknown_choices(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_normalize_needs_a_channel():
    with pytest.raises(ValueError, match="one number per channel"):
        Normalize((), ())


def test_names():
    assert model_names() == ("small-cnn", "preactresnet-18", "wrn-DEPTH-WIDTH")
    assert isinstance(create_model("wrn-10-2"), WideResNet)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("smallcnn", "small-cnn"),
        ("WRN-28-10", "wrn-28-10"),
        ("wrn-28-1O", "wrn-28-10"),
        ("resnet-18", "preactresnet-18"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(given, nearest):
    with pytest.raises(ValueError, match=f"unknown model '{given}'; did you mean '{nearest}'"):
        create_model(given)


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(ValueError, match=r"unknown model 'q'\. Known: small-cnn, preactresnet-18, wrn-10-2"):
        create_model("q")
    with pytest.raises(TypeError, match="name"):
        create_model(28)


@pytest.mark.parametrize("name", ["wrn-4-1", "wrn-12-2", "wrn-0-0"])
def test_a_depth_that_does_not_exist(name):
    with pytest.raises(ValueError, match="depth"):
        create_model(name)


def test_a_width_that_does_not_exist():
    with pytest.raises(ValueError, match="width"):
        create_model("wrn-10-0")
