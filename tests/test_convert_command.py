"""``adt-fast convert``: what it says, and what it writes."""

import pytest
import torch
from plain_networks import DmWideResNet, PublishedWideResNet, images, randomize

from adt_fast import cli
from adt_fast.checkpoint import load_model, save_model
from adt_fast.models import create_model

NUMBERS = ("--mean", "0.4914,0.4822,0.4465", "--std", "0.2471,0.2435,0.2616")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(*arguments):
    return cli.main(["convert", *arguments])


def save_theirs(network, path="theirs.pt", prefix="module.", **beside):
    state = {prefix + name: tensor for name, tensor in randomize(network).state_dict().items()}
    torch.save({"state_dict": state, **beside}, path)


def test_theirs_to_ours_and_back(capsys):
    network = PublishedWideResNet(16, 2, sub_block1=True)
    save_theirs(network, epoch=76, optimizer={"state": {}})
    assert convert("theirs.pt", "ours.safetensors", "--model", "wrn-16-2") == 0
    lines = capsys.readouterr().out.splitlines()
    parameters = sum(parameter.numel() for parameter in PublishedWideResNet(16, 2).parameters())
    assert [line.split()[0] for line in lines] == ["read", "model", "dropped", "dropped", "wrote", "check"]
    for line, part in zip(lines, (
        "theirs.pt, layout wrn, entry 'state_dict', prefix 'module.'",
        f"wrn-16-2(num_classes=10, in_channels=3), {parameters:,} parameters",
        "epoch, optimizer: beside the model in the file",
        "module.sub_block1.layer.0.bn1.bias and 23 more: made by the published code, and never used there",
        f"ours.safetensors, layout adt_fast, {len(PublishedWideResNet(16, 2).state_dict())} tensors",
        "the target gives the logits of the source for 2 random images, from ",
    )):  # fmt: skip
        assert part in line

    assert convert("ours.safetensors", "again.pt", "--layout", "wrn", "--sub-block1", "--module-prefix") == 0
    assert "read       ours.safetensors, layout adt_fast\n" in capsys.readouterr().out
    again = torch.load("again.pt", weights_only=True)
    expected = torch.load("theirs.pt", weights_only=True)["state_dict"]
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in again if "sub_block1" not in name)


def test_a_file_that_does_not_tell_all(capsys):
    network = DmWideResNet(10, 1)
    save_theirs(network, prefix="")
    assert convert("theirs.pt", "ours.safetensors", *NUMBERS) == 2
    assert "give activation='relu' or 'silu'" in capsys.readouterr().err
    assert convert("theirs.pt", "ours.safetensors", "--activation", "silu") == 2
    assert "give mean and std" in capsys.readouterr().err
    assert convert("theirs.pt", "ours.safetensors", "--activation", "silu", *NUMBERS) == 0
    model, _ = load_model("ours.safetensors")
    torch.testing.assert_close(model.double()(images()), network.double()(images()))

    capsys.readouterr()
    assert convert("ours.safetensors", "again.pt", "--layout", "dm") == 2
    assert "normalization must be 'keep' or 'drop'" in capsys.readouterr().err
    assert convert("ours.safetensors", "again.pt", "--layout", "dm", "--normalization", "drop") == 0
    out = capsys.readouterr().out
    assert "left out   normalize.mean, normalize.std: the normalisation of the model, as asked for" in out
    assert "not told   by the file, so to be told where it is loaded: activation=silu, mean=[0.491" in out
    assert "check      the target gives the logits" in out


def test_absent_counters_and_converted_numbers_are_told(capsys):
    state = randomize(PublishedWideResNet(10, 1)).state_dict()
    state = {f"1.{name}": tensor for name, tensor in state.items() if "num_batches" not in name}
    numbers = {"0.mean": torch.zeros(3, dtype=torch.float64), "0.std": torch.ones(3, dtype=torch.float64)}
    torch.save({**state, **numbers}, "theirs.pt")
    assert convert("theirs.pt", "ours.safetensors") == 0
    out = capsys.readouterr().out
    assert "1.block1.layer.0.bn2.num_batches_tracked and 5 more: as zeros" in out
    assert "converted  mean, std: to the dtype of the weights" in out


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype, capsys):
    save_model("ours", create_model("wrn-10-1").to(dtype), model_name="wrn-10-1")
    assert convert("ours", "theirs.safetensors", "--layout", "wrn") == 0
    assert load_model("theirs.safetensors")[0].fc.weight.dtype == dtype


def test_a_broken_model_fails_the_check(capsys):
    model = create_model("wrn-10-1")
    model.fc.bias.data.fill_(float("nan"))
    save_model("ours", model, model_name="wrn-10-1")
    assert convert("ours", "theirs.pt", "--layout", "wrn") == 1
    assert "the logits of the model in the source are not finite" in capsys.readouterr().err


def test_a_target_of_another_function_fails_the_check(monkeypatch, capsys):
    save_model("ours", create_model("wrn-10-1"), model_name="wrn-10-1")
    other = create_model("wrn-10-1")
    original = torch.save
    monkeypatch.setattr(torch, "save", lambda tensors, file: original(other.state_dict(), file))
    assert convert("ours", "theirs.pt", "--layout", "wrn") == 1
    assert "gives other logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pt", "ours.safetensors"], "nothing.pt"),
        (["junk", "ours.safetensors"], "junk is no safetensors file"),
        (["theirs.pt", "ours.pt"], "suffix of torch.save"),
        (["theirs.pt", "again.pt", "--layout", "wnr"], "unknown layout 'wnr'; did you mean 'wrn'?"),
        (["theirs.pt", "ours.safetensors", "--model", "wrn-28-10"], "holds a wrn-10-1, and model_name='wrn-28-10'"),
        (["theirs.pt", "ours.safetensors", "--entry", "ema"], "no entry 'ema'"),
        (["theirs.pt", "ours.safetensors", "--mean", "0.5,0.5,0.5"], "std=None"),
        (["theirs.pt", "ours.safetensors", "--mean", "0.5,x,0.5", "--std", "1,1,1"], "expected a number"),
        (["theirs.pt", "ours.safetensors", "--activation", "silu"], "activation is 'relu' in the layout 'wrn'"),
        (["theirs.pt"], "TARGET"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(arguments, message, folder, capsys):
    save_theirs(PublishedWideResNet(10, 1))
    (folder / "junk").write_bytes(b"junk")
    assert convert(*arguments) == 2
    output = capsys.readouterr()
    assert message in output.out + output.err and "Traceback" not in output.err
    assert sorted(path.name for path in folder.iterdir()) == ["junk", "theirs.pt"]
