"""Checkpoints of others: the same numbers and the same logits, whatever the names; and nothing lost without a word."""

import io
import os
import pickle
import random
from argparse import Namespace
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from plain_networks import (
    DmWideResNet,
    Normalizer,
    PublishedPreActResNet18,
    PublishedWideResNet,
    images,
    randomize,
)
from torch import nn

from adt_fast.checkpoint import CheckpointError, load_checkpoint, load_model, save_checkpoint, save_model
from adt_fast.checkpoint_conversion import convert_checkpoint
from adt_fast.models import create_model

DM_NUMBERS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}


def published(network, seed=0):
    torch.manual_seed(seed)
    return randomize(network())


@pytest.fixture(scope="module")
def wrn():
    return published(lambda: PublishedWideResNet(16, 2, classes=7))


@pytest.fixture(scope="module")
def small():
    return published(lambda: PublishedWideResNet(10, 1))


@pytest.fixture(scope="module")
def dm():
    return published(lambda: DmWideResNet(16, 2))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "theirs.pt"


def assert_same_function(model, network, x=None):
    x = images() if x is None else x
    expected = network.double()(x)
    torch.testing.assert_close(model.double()(x), expected, rtol=1e-10, atol=1e-10)
    network.float()


def assert_same_bits(loaded, saved):
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def with_prefix(state, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


# --- the function ---


@pytest.mark.parametrize(("depth", "width", "classes", "channels"), [(10, 1, 10, 3), (16, 2, 7, 1), (22, 3, 100, 4)])
def test_wide_resnet(path, depth, width, classes, channels):
    network = published(lambda: PublishedWideResNet(depth, width, classes, channels))
    torch.save(network.state_dict(), path)
    model, metadata = load_model(path)
    assert metadata["model_name"] == f"wrn-{depth}-{width}" and not model.training
    assert metadata["model_kwargs"] == {"num_classes": classes, "in_channels": channels}
    assert metadata["extra"]["source"] == {
        "file": "theirs.pt", "layout": "wrn", "entry": "", "prefix": "", "dropped": {}, "added": [], "converted": [],
    }  # fmt: skip
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_same_bits(model.state_dict(), network.state_dict())
    assert_same_function(model, network, images(channels))


@pytest.mark.parametrize("swish", [True, False], ids=["silu", "relu"])
@pytest.mark.parametrize("persistent", [True, False])
def test_the_family_of_gowal(path, swish, persistent):
    network = published(lambda: DmWideResNet(16, 2, swish, persistent))
    torch.save({"model_state_dict": network.state_dict(), "unaveraged_model_state_dict": {}}, path)
    options = {} if persistent else DM_NUMBERS
    model, metadata = load_model(path, activation="silu" if swish else "relu", **options)
    assert metadata["model_name"] == "wrn-16-2"
    assert metadata["model_kwargs"]["padding"] == "same"
    assert metadata["model_kwargs"].get("activation", "relu") == ("silu" if swish else "relu")
    assert metadata["model_kwargs"]["mean"] == network.mean.flatten().tolist()
    assert_same_function(model, network)
    with pytest.raises(CheckpointError, match="do not tell the activation: give activation='relu' or 'silu'"):
        load_model(path, **options)
    if not persistent:
        with pytest.raises(CheckpointError, match=r"always normalises.*give mean and std.*0\.4914"):
            load_model(path, activation="silu")


@pytest.mark.parametrize("shortcut", ["activated", "input"])
def test_preactresnet(path, shortcut):
    network = published(lambda: PublishedPreActResNet18(shortcut, classes=4))
    torch.save({"net": network.state_dict(), "acc": 91.5, "epoch": 3}, path)
    model, metadata = load_model(path, shortcut=shortcut)
    assert metadata["model_name"] == "preactresnet-18" and metadata["model_kwargs"]["num_classes"] == 4
    assert metadata["extra"]["source"]["dropped"] == {"beside the model in the file": ["acc", "epoch"]}
    assert_same_function(model, network)
    with pytest.raises(CheckpointError, match="give shortcut='activated' or 'input'"):
        load_model(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_is_kept(path, small, dtype):
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
             for name, tensor in small.state_dict().items()}
    torch.save(state, path)
    model, _ = load_model(path, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype, torch.int64}


# --- where the network is ---


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    lambda state: {"model": state},
    lambda state: {"model_state_dict": state, "best": None},
    lambda state: {"net": {"state_dict": state}},
    lambda state: {"state_dict": {"model": state, "note": "x"}},
    lambda state: {**state, "epoch": 3},
], ids=["state_dict", "model", "model_state_dict", "nested", "nested again", "mixed"])  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.0.", "module.basic_net.", "module.1.model.",
                                    "_orig_mod.module.net."])  # fmt: skip
def test_wrappers_and_prefixes(path, small, wrap, prefix):
    torch.save(wrap(with_prefix(small.state_dict(), prefix)), path)
    model, metadata = load_model(path)
    assert_same_bits(model.state_dict(), small.state_dict())
    assert metadata["extra"]["source"]["prefix"] == prefix


@pytest.mark.parametrize("save", [
    lambda state, path: torch.save(state, path),
    lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    lambda state, path: safetensors.torch.save_file(dict(state), path),
    lambda state, path: safetensors.torch.save_file(dict(state), path, {"format": "pt"}),
], ids=["zip", "legacy", "safetensors", "safetensors with metadata"])  # fmt: skip
def test_kinds_of_file(path, small, save):
    save(with_prefix(small.state_dict(), "module."), path)
    model, _ = load_model(path)
    assert_same_bits(model.state_dict(), small.state_dict())


def test_safetensors_whose_first_bytes_are_those_of_another_kind(path, small):
    """The length that the file begins with is padded with spaces here until it is 0x..80."""
    content = safetensors.torch.save(dict(small.state_dict()))
    length = int.from_bytes(content[:8], "little")
    padded = length + (0x80 - length) % 0x100
    path.write_bytes(padded.to_bytes(8, "little") + content[8 : 8 + length] + b" " * (padded - length)
                     + content[8 + length :])
    assert path.read_bytes()[:1] == b"\x80"
    assert_same_bits(load_model(path)[0].state_dict(), small.state_dict())


@pytest.mark.parametrize(("mean", "std", "shape", "prefix"), [
    ("0.mean", "0.std", (3,), "1."),
    ("module.0.mean", "module.0.std", (1, 3, 1, 1), "module.1."),
    ("normalize.mean", "normalize.std", (1, 3, 1, 1), "model."),
    ("mu", "sigma", (1, 3, 1, 1), ""),
    ("module.normalizer.new_mean", "module.normalizer.new_std", (3, 1, 1), "module.model."),
    ("normalize.mean", "normalize.std", (3, 1, 1), ""),
])  # fmt: skip
def test_a_normalisation_in_the_file(path, small, mean, std, shape, prefix):
    normalizer = Normalizer(shape=shape)
    torch.save({mean: normalizer.mean, std: normalizer.std, **with_prefix(small.state_dict(), prefix)}, path)
    model, metadata = load_model(path)
    assert_same_function(model, nn.Sequential(normalizer, small))
    assert metadata["extra"]["source"]["dropped"] == {}
    with pytest.raises(CheckpointError, match="a mean and std of its own"):
        load_model(path, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_normalisation_in_another_dtype_is_converted_and_said(path, small):
    state = {"0.mean": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), "0.std": torch.ones(3)}
    torch.save(state | with_prefix(small.state_dict(), "1."), path)
    model, metadata = load_model(path)
    assert model.normalize.mean.dtype == torch.float32
    assert metadata["extra"]["source"]["converted"] == ["mean"]
    assert metadata["model_kwargs"]["mean"] == model.normalize.mean.flatten().tolist()


def test_a_normalisation_from_outside(path, small):
    torch.save(small.state_dict(), path)
    normalizer = Normalizer()
    model, metadata = load_model(path, mean=normalizer.mean.flatten().tolist(), std=normalizer.std.flatten().tolist())
    assert_same_function(model, nn.Sequential(normalizer, small))
    for mean, std, message in [((0.5,) * 3, None, "together"), ((0.5,), (0.5,), "in_channels=3"),
                               ((0.5,) * 3, (0.0,) * 3, "std must be")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_model(path, mean=mean, std=std)


def test_the_attackers_copy_of_the_network_is_dropped(path, small):
    """As MadryLab's AttackerModel saves itself."""
    normalizer = Normalizer(("new_mean", "new_std"), (3, 1, 1))
    own = nn.ModuleDict({"normalizer": normalizer, "model": small,
                         "attacker": nn.ModuleDict({"normalize": normalizer, "model": small})})  # fmt: skip
    torch.save({"model": with_prefix(own.state_dict(), "module."), "epoch": 1}, path)
    model, metadata = load_model(path)
    assert_same_function(model, nn.Sequential(normalizer, small))
    dropped = metadata["extra"]["source"]["dropped"]
    assert len(dropped["of another network, or of a copy of this one"]) == len(small.state_dict()) + 2


def test_unused_blocks_are_dropped(path):
    network = published(lambda: PublishedWideResNet(28, 2, sub_block1=True))
    assert len(network.state_dict()) == 204  # as for the published WRN-28-10
    torch.save(with_prefix(network.state_dict(), "module."), path)
    model, metadata = load_model(path)
    (names,) = metadata["extra"]["source"]["dropped"].values()
    assert len(names) == 49 and all(name.startswith("module.sub_block1.layer.") for name in names)
    assert_same_function(model, network)


def test_absent_counters_are_added_and_said(path, small):
    state = {name: t for name, t in small.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(with_prefix(state, "module."), path)
    model, metadata = load_model(path)
    assert_same_function(model, small)
    added = metadata["extra"]["source"]["added"]
    assert len(added) == 7 and added[0] == "module.block1.layer.0.bn1.num_batches_tracked"
    assert not any(t.any() for name, t in model.state_dict().items() if name.endswith("num_batches_tracked"))


def test_one_of_several_entries(path, small, wrn):
    torch.save({"last": small.state_dict(), "best": {"state_dict": wrn.state_dict()}}, path)
    with pytest.raises(CheckpointError, match=r"which of its entries is the model: 'last', 'best'\. Give entry"):
        load_model(path)
    assert load_model(path, entry="last")[1]["model_name"] == "wrn-10-1"
    model, metadata = load_model(path, entry="best")
    assert metadata["model_name"] == "wrn-16-2" and metadata["extra"]["source"]["entry"] == "best/state_dict"
    assert metadata["extra"]["source"]["dropped"] == {"beside the model in the file": ["last"]}
    with pytest.raises(CheckpointError, match="no entry 'ema' that is a dict; those that are: 'last', 'best'"):
        load_model(path, entry="ema")
    torch.save({"state_dict": small.state_dict(), "model": wrn.state_dict()}, path)
    with pytest.raises(CheckpointError, match="Give entry"):
        load_model(path)


def test_loading_leaves_the_random_state_alone_and_gives_memory_of_its_own(path, small):
    state = small.state_dict()
    state["block1.layer.0.conv2.weight"] = state["block1.layer.0.conv1.weight"]  # one tensor under two names
    torch.save(state, path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model, _ = load_model(path)
    assert torch.equal(torch.rand(3), expected)
    tensors = model.state_dict().values()
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


# --- what is no model ---


def changed(state, **tensors):
    return {**state, **{name.replace("_dot_", "."): tensor for name, tensor in tensors.items()}}


def without(state, *parts):
    return {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: without(s, "block3.layer.0.conv2"),
     "lacks 1 tensor of wrn-10-1, the first is 'module.block3.layer.0.conv2.weight'"),
    (lambda s: without(s, "bn2"), "lacks 12 tensors of wrn-10-1, the first is 'module.block1.layer.0.bn2.weight'"),
    (lambda s: without(s, "fc.bias"), "lacks 1 tensor of wrn-10-1, the first is 'module.fc.bias'"),
    (lambda s: without(s, "fc"), "lacks the tensor 'module.fc.weight'"),
    (lambda s: changed(s, module_dot_fc_dot_weight=torch.zeros(10, 65)),
     r"1 tensor of another shape, the first is 'module.fc.weight': \[10, 65\], and wrn-10-1 wants \[10, 64\]"),
    (lambda s: changed(s, module_dot_fc_dot_weight=torch.zeros(10)), r"of shape \[10\], where 2 sizes"),
    (lambda s: changed(s, module_dot_fc_dot_weight=torch.zeros(0, 64)), "sizes >= 1"),
    (lambda s: changed(s, module_dot_aux=torch.zeros(1)), "1 tensor that wrn-10-1 has not, the first is 'module.aux'"),
    (lambda s: changed(s, aux=torch.zeros(1)), "1 tensor that wrn-10-1 has not, the first is 'aux'"),
    (lambda s: changed(s, module_dot_mean=torch.zeros(3)), "has not, the first is 'module.mean'"),
    (lambda s: changed(s, module_dot_mean=torch.zeros(3), module_dot_std=torch.zeros(3)), "std must be finite"),
    (lambda s: changed(s, module_dot_mean=torch.zeros(4), module_dot_std=torch.ones(4)), "a mean of shape"),
    (lambda s: changed(s, mean=torch.zeros(3), std=torch.ones(3), mu=torch.zeros(3), sigma=torch.ones(3)),
     "several normalisations: 'mean', 'mu'"),
    (lambda s: changed(s, module_dot_bn1_dot_bias=torch.zeros(64).double()), "'module.bn1.bias' of torch.float64"),
    (lambda s: changed(s, module_dot_conv1_dot_weight=torch.zeros(16, 3, 3, 3).long()), "float"),
    (lambda s: changed(s, module_dot_conv1_dot_weight=torch.zeros(1).expand(16, 3, 3, 3)), "more elements than"),
    (lambda s: changed(s, module_dot_conv1_dot_weight=torch.zeros(16, 3, 3, 3).to_sparse()), "dense"),
    (lambda s: changed(s, module_dot_block1_dot_layer_dot_0_dot_conv1_dot_weight=torch.zeros(20, 16, 3, 3)),
     "20 channels"),
    (lambda s: {**s, **with_prefix(s, "net.")}, "several networks, under the prefixes 'module.', 'net.module.'"),
    (lambda s: with_prefix(s, "teacher."), "under the prefix 'teacher.module.', which is not of the usual ones"),
    (lambda s: {"conv1.weight": s["module.conv1.weight"]}, "no model of a known layout .*'conv1.weight'"),
    (lambda s: {}, "no model of a known layout"),
    (lambda s: list(s.values()), "holds a list"),
    (lambda s: s["module.fc.bias"], "holds a Tensor"),
    (lambda s: {"block1.layer.0.conv1.weight": 3}, "something else than tensors"),
], ids=range(25))  # fmt: skip
def test_what_is_no_model(path, small, change, message):
    torch.save(change(with_prefix(small.state_dict(), "module.")), path)
    with pytest.raises(CheckpointError, match=rf"theirs\.pt .*{message}"):
        load_model(path)


def test_errors_of_the_other_family_are_in_its_names(path, dm):
    torch.save(without(dm.state_dict(), "logits"), path)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'logits\.weight'"):
        load_model(path, activation="silu", **DM_NUMBERS)
    torch.save(without(dm.state_dict(), "layer.2.block.1.batchnorm_1.bias"), path)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor .* 'layer\.2\.block\.1\.batchnorm_1\.bias'"):
        load_model(path, activation="silu", **DM_NUMBERS)
    torch.save({**dm.state_dict(), "conv1.weight": torch.zeros(16, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"1 tensor that wrn-16-2 has not, the first is 'conv1\.weight'"):
        load_model(path, activation="silu", **DM_NUMBERS)


@pytest.mark.parametrize(
    ("more", "message"), [("bn", "batch norm after its last block"), ("bn1", "which adt_fast lacks")]
)
def test_other_residual_networks_are_named(path, more, message):
    state = published(lambda: PublishedPreActResNet18("input")).state_dict()
    torch.save({**state, f"{more}.weight": torch.ones(512)}, path)
    with pytest.raises(CheckpointError, match=message):
        load_model(path, shortcut="input")


def test_a_model_that_is_insisted_on(path, small, tmp_path):
    torch.save(small.state_dict(), path)
    assert load_model(path, model_name="wrn-10-1")
    convert_checkpoint(path, tmp_path / "ours.safetensors")
    assert load_model(tmp_path / "ours.safetensors", model_name="wrn-10-1")
    for file in (path, tmp_path / "ours.safetensors"):
        with pytest.raises(CheckpointError, match="holds a wrn-10-1, and model_name='wrn-28-10' is wanted"):
            load_model(file, model_name="wrn-28-10")


@pytest.mark.parametrize(("options", "message"), [
    ({"activation": "silu"}, "activation is 'relu' in the layout 'wrn', got 'silu'"),
    ({"shortcut": "input"}, "shortcut is no option in the layout 'wrn'"),
])  # fmt: skip
def test_options_that_do_not_fit_the_layout(path, small, options, message):
    torch.save(small.state_dict(), path)
    with pytest.raises(ValueError, match=message):
        load_model(path, **options)


def test_options_that_our_own_files_tell_themselves(tmp_path):
    model = create_model("wrn-10-1")
    save_model(tmp_path / "ours", model, model_name="wrn-10-1")
    for option in ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, {"activation": "relu"}, {"entry": "net"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is for the files of others"):
            load_model(tmp_path / "ours", **option)


# --- hostile and damaged files ---


class Executes:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("save", [
    lambda value, path: torch.save(value, path),
    lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    lambda value, path: path.write_bytes(pickle.dumps(value)),
    lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)),
], ids=["zip", "legacy", "pickle", "pickle 2"])  # fmt: skip
def test_hostile_pickles_are_not_executed(path, tmp_path, small, save, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "executed"
    for value in (Executes(marker), {"state_dict": small.state_dict(), "x": Executes(marker)}):
        save(value, path)
        with pytest.raises(CheckpointError, match=r"theirs\.pt"):
            load_model(path)
    assert not marker.exists()


def test_objects_in_a_file_are_named(path, small):
    for value, name in ((Namespace(lr=0.1), "argparse.Namespace"), (small, "PublishedWideResNet")):
        torch.save({"state_dict": small.state_dict(), "args": value}, path)
        with pytest.raises(CheckpointError, match=rf"an object of \S*{name}.*save the model's state dict alone"):
            load_model(path)


def nested_tuple(levels):
    """A dict whose key is a tuple of a tuple of ..., which no honest pickler could write."""
    return b"\x80\x02}K\x01" + b"\x85" * levels + b"K\x02s."


def archive_with(program, template):
    """A file of torch.save with this program in place of its own."""
    import zipfile

    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(template)) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    return target.getvalue()


def test_deep_tuples_do_not_overflow_the_stack(path, small):
    torch.save(small.state_dict(), path)
    template = path.read_bytes()
    memoized = b"\x80\x02}K\x01" + b"q\x00\x85" * 10**6 + b"K\x02s."
    for program in (nested_tuple(10**6), memoized, nested_tuple(101)):
        path.write_bytes(archive_with(program, template))
        with pytest.raises(CheckpointError, match="tuples more than 100 deep"):
            load_model(path)
        legacy = io.BytesIO()
        torch.save(1, legacy, _use_new_zipfile_serialization=False)
        start = legacy.getvalue().index(b"\x80\x02K\x01.")
        path.write_bytes(legacy.getvalue()[:start] + program)
        with pytest.raises(CheckpointError, match="tuples more than 100 deep"):
            load_model(path)
    path.write_bytes(archive_with(nested_tuple(50), template))
    with pytest.raises(CheckpointError, match="no model of a known layout"):
        load_model(path)


def test_archives_that_unpack_to_more_than_they_are(path, small):
    import zipfile

    torch.save(small.state_dict(), path)
    target = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, bytes(10**7) if "/data/0" in name else source.read(name))
    path.write_bytes(target.getvalue())
    with pytest.raises(CheckpointError, match="unpacks to more than its own size"):
        load_model(path)


def test_a_dict_that_holds_itself(path):
    content = {}
    content["model"] = content
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="wraps its state dict more than"):
        load_model(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_is_an_error_and_never_a_crash(path, small, kind):
    """Truncated, bits flipped, bytes changed, cut out and put in: a model of the same shapes, or CheckpointError."""
    state = dict(small.state_dict())
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    # Most of a file is numbers, where damage cannot be seen: half of the cases are among the rest.
    program = whole.find(b"block1") if kind == "zip" else 0
    structure = range(max(program - 200, 0), program + 6000)
    generator = random.Random(0)
    refused = 0
    for case in range(200):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            at = generator.choice(structure) if case % 2 else generator.randrange(len(whole))
            at = min(at, len(damaged) - 1)
            match generator.randrange(5):
                case 0:
                    del damaged[max(at, 1) :]
                case 1:
                    damaged[at] ^= 1 << generator.randrange(8)
                case 2:
                    damaged[at] = generator.randrange(256)
                case 3:
                    del damaged[at : at + generator.randint(1, 50)]
                case 4:
                    damaged[at:at] = generator.randbytes(generator.randint(1, 50))
        path.write_bytes(damaged)
        try:
            model, _ = load_model(path)
            assert {name: t.shape for name, t in model.state_dict().items()} == {n: t.shape for n, t in state.items()}
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 120


# --- conversion ---


def test_robustbench_round_trip_of_wrn_28_10(tmp_path):
    network = published(lambda: PublishedWideResNet(28, 10))
    state = network.state_dict()
    torch.save(state, tmp_path / "theirs.pt")
    convert_checkpoint(tmp_path / "theirs.pt", tmp_path / "ours.safetensors")
    found = load_model(tmp_path / "theirs.pt")[1]["extra"]["source"]
    assert load_model(tmp_path / "ours.safetensors")[1]["extra"] == {"converted_from": found}
    conversion = convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / "again.pt", layout="wrn")
    assert conversion.tensors == len(state) == 155 and conversion.model_name == "wrn-28-10"
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert_same_bits(again, state)
    x = images(size=16, dtype=torch.float32)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(load_model(tmp_path / "ours.safetensors")[0](x), expected)
        network.load_state_dict(again, strict=True)
        assert torch.equal(network(x), expected)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", [False, True])
def test_export_with_the_published_codes_unused_block(path, small, tmp_path, suffix, prefix):
    torch.save(small.state_dict(), path)
    target = tmp_path / f"export{suffix}"
    convert_checkpoint(path, target, layout="wrn", sub_block1=True, module_prefix=prefix)
    state = torch.load(target, weights_only=True) if suffix == ".pt" else safetensors.torch.load_file(target)
    network = PublishedWideResNet(10, 1, sub_block1=True).eval()
    (nn.DataParallel(network) if prefix else network).load_state_dict(state, strict=True)
    assert_same_function(load_model(path)[0], network)
    assert_same_bits(network.sub_block1.state_dict(), small.block1.state_dict())
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


@pytest.mark.parametrize("module_prefix", [False, True])
def test_a_normalisation_is_kept_or_dropped_as_asked_for(tmp_path, module_prefix):
    """Kept, the file is of Sequential(normalize=..., model=...), as RobustBench's normalize_model makes it."""
    model = randomize(create_model("wrn-10-1", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)))
    ours = tmp_path / "ours.safetensors"
    save_model(ours, model, model_name="wrn-10-1",
               model_kwargs={"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)})  # fmt: skip
    with pytest.raises(ValueError, match="normalization must be 'keep' or 'drop', for the model normalises"):
        convert_checkpoint(ours, tmp_path / "theirs.pt", layout="wrn")
    assert not (tmp_path / "theirs.pt").exists()

    convert_checkpoint(ours, tmp_path / "kept.pt", layout="wrn", normalization="keep", module_prefix=module_prefix)
    network = nn.Sequential(OrderedDict(normalize=Normalizer(), model=PublishedWideResNet(10, 1))).eval()
    network.normalize.mean.zero_()
    state = torch.load(tmp_path / "kept.pt", weights_only=True)
    (nn.DataParallel(network) if module_prefix else network).load_state_dict(state, strict=True)
    assert_same_function(load_model(ours)[0], network)
    assert_same_bits(load_model(tmp_path / "kept.pt")[0].state_dict(), model.state_dict())

    dropped = convert_checkpoint(ours, tmp_path / "dropped.pt", layout="wrn", normalization="drop")
    assert dropped.dropped == {"the normalisation of the model, as asked for": ["normalize.mean", "normalize.std"]}
    network.model.load_state_dict(torch.load(tmp_path / "dropped.pt", weights_only=True), strict=True)


@pytest.mark.parametrize("persistent", [False, True])
def test_round_trip_of_the_family_of_gowal(tmp_path, persistent):
    network = published(lambda: DmWideResNet(10, 2, persistent=persistent))
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    numbers = {} if persistent else DM_NUMBERS
    convert_checkpoint(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", activation="silu", **numbers)
    assert_same_function(load_model(tmp_path / "ours.safetensors")[0], network)
    with pytest.raises(ValueError, match="normalization must be 'keep' or 'drop'"):
        convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / "again.pt", layout="dm")
    normalization = "keep" if persistent else "drop"
    convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / "again.pt", layout="dm", normalization=normalization)
    assert_same_bits(torch.load(tmp_path / "again.pt", weights_only=True), network.state_dict())


def test_a_model_that_does_not_normalise_in_the_layout_that_always_does(tmp_path):
    model = randomize(create_model("wrn-10-1", padding="same"))
    save_model(tmp_path / "ours", model, model_name="wrn-10-1", model_kwargs={"padding": "same"})
    with pytest.raises(ValueError, match="the code behind the layout 'dm' normalises"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "theirs.pt", layout="dm")
    convert_checkpoint(tmp_path / "ours", tmp_path / "theirs.pt", layout="dm", normalization="keep")
    network = DmWideResNet(10, 1, swish=False, persistent=True).eval()
    network.load_state_dict(torch.load(tmp_path / "theirs.pt", weights_only=True), strict=True)
    assert_same_function(model, network)


def test_preactresnet_round_trip(tmp_path):
    network = published(lambda: PublishedPreActResNet18("input"))
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    convert_checkpoint(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", shortcut="input")
    assert load_checkpoint(tmp_path / "ours.safetensors")[1]["model_kwargs"]["shortcut"] == "input"
    convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / "again.pt", layout="preactresnet-18")
    assert_same_bits(torch.load(tmp_path / "again.pt", weights_only=True), network.state_dict())


@pytest.mark.parametrize(("model", "options", "message"), [
    ("wrn-10-1", {"layout": "wnr"}, "unknown layout 'wnr'; did you mean 'wrn'"),
    ("wrn-10-1", {"layout": "dm"}, "padding='same', and the model has 'symmetric'"),
    ("wrn-10-1", {"layout": "preactresnet-18"}, "layout 'preactresnet-18' has no wrn-10-1"),
    ("small-cnn", {"layout": "wrn"}, "layout 'wrn' has no small-cnn"),
    ("wrn-10-1", {"sub_block1": True}, "sub_block1 is for the layouts of others"),
    ("wrn-10-1", {"module_prefix": True}, "module_prefix is for the layouts of others"),
    ("wrn-10-1", {"normalization": "drop"}, "normalization is for the layouts of others"),
    ("wrn-10-1", {"layout": "wrn", "normalization": "fold"}, "normalization must be one of 'keep', 'drop'"),
    ("wrn-10-1", {"model_name": "wrn-16-1"}, "model_name='wrn-16-1' is wanted"),
    ("wrn-10-1", {}, r"suffix of torch\.save"),
])  # fmt: skip
def test_conversions_that_cannot_be(tmp_path, model, options, message):
    save_model(tmp_path / "ours", create_model(model), model_name=model)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "ours", tmp_path / "target.pt", **options)
    assert not (tmp_path / "target.pt").exists()


@pytest.mark.parametrize("kwargs", [{"activation": "silu"}, {"padding": "same"}])
def test_a_layout_whose_code_computes_something_else(tmp_path, kwargs):
    save_model(tmp_path / "ours", create_model("wrn-10-1", **kwargs), model_name="wrn-10-1", model_kwargs=kwargs)
    with pytest.raises(ValueError, match="would compute another function"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "theirs.pt", layout="wrn")


def test_sub_block1_is_of_one_layout(tmp_path):
    save_model(tmp_path / "ours", create_model("wrn-10-1", padding="same"), model_name="wrn-10-1",
               model_kwargs={"padding": "same"})  # fmt: skip
    with pytest.raises(ValueError, match="sub_block1 is of the layout 'wrn' alone"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "t.pt", layout="dm", normalization="keep", sub_block1=True)


def test_what_our_files_know_survives_a_conversion(tmp_path):
    save_model(tmp_path / "ours", create_model("small-cnn"), model_name="small-cnn", extra={"source": "digits"})
    conversion = convert_checkpoint(tmp_path / "ours", tmp_path / "copy.safetensors")
    assert conversion.source is None and conversion.layout == "adt_fast"
    assert load_model(tmp_path / "copy.safetensors")[1]["extra"] == {"source": "digits"}


def test_checkpoints_of_ours_that_are_no_model_stay_an_error(tmp_path):
    save_checkpoint(tmp_path / "state", {"block1.layer.0.conv1.weight": torch.zeros(16, 16, 3, 3)}, {})
    with pytest.raises(CheckpointError, match="not of a model alone"):
        load_model(tmp_path / "state")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nothing")
