"""The commands of the analyses on the digits, with small limits: what they print and leave, and what bad flags get."""

import json
import shutil

import pytest
import torch.nn.functional as F
from folders import contents

from adt_fast import cli
from adt_fast.checkpoint import load_model
from adt_fast.data import load_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = ["data.csv", "data.json"]
FILES = [*DATA, "figure.pdf", "figure.png"]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs: at-pgd and standard."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("standard", "at-pgd"):
        flags = ["--train-limit", "900", "--test-limit", "20", "--epochs", "4", *CPU]
        assert cli.main(["train", "--method", method, "--output", str(folder / method), *flags]) == 0
    return folder


@pytest.fixture
def in_its_folder(tmp_path, trained, monkeypatch):
    for run in trained.iterdir():
        shutil.copytree(run, tmp_path / run.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "distribution": ["distribution", "at-pgd", "--image", "3", "5", "--steps", "2", "--tried", "10", *CPU],
    "landscape": ["landscape", "at-pgd", "--image", "3", "5", "--steps", "5", "--clamp", *CPU],
    "curvature": ["curvature", "at-pgd", "--test-limit", "20", "--batch-size", "8", *CPU],
    "convergence": ["convergence", "standard", "at-pgd", "--steps", "3", "--samples", "2", "--test-limit", "20", *CPU],
    "transfer": ["transfer", "standard", "at-pgd", "--names", "S", "P", "--test-limit", "20", *CPU],
    "entropy-sweep": ["entropy-sweep", "--entropy-weights", "0", "1/10", "--generator-width", "8", "--epochs", "1",
                      "--train-limit", "64", "--test-limit", "10", "--entropy-samples", "5", *CPU],
    "epoch-time": ["epoch-time", "--methods", "at-pgd", "standard", "--minibatches", "2", "--warmup", "1",
                   "--train-limit", "40", "--batch-size", "16", "--steps", "2", *CPU],
}  # fmt: skip

PRINTED = {
    "distribution": ["at-pgd on 360 test images", "by EXP: 2 steps of 0.3, 5 samples", "samples wrong"],
    "landscape": ["at-pgd on 360 test images of digits, epsilon 0.15", "image  class  loss there"],
    "curvature": ["at-pgd on 20 test images", "dominant eigenvalue  "],
    "convergence": ["standard, at-pgd on 20 test images of digits", "steps", "at-pgd, accuracy"],
    "transfer": ["S, P on 20 test images", "examples of    on S", "P, MIM-20"],
    "entropy-sweep": ["adt-exp-am on digits", "lambda  natural", "\n     0.1  "],
    "epoch-time": ["small-cnn on digits, 40 images an epoch", "method", "at-pgd    "],
}

KEYS = {
    "distribution": ("misclassified", "entropies"),
    "landscape": ("losses", "offsets"),
    "curvature": ("eigenvalues", "mean"),
    "convergence": ("losses", "accuracies"),
    "transfer": ("accuracies", "natural"),
    "entropy-sweep": ("points", "method"),
    "epoch-time": ("epoch_seconds", "machine"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_it_prints_and_leaves(name, in_its_folder, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main([*COMMANDS[name], "--output", "out"]) == 0
    output = capsys.readouterr()
    assert all(text in output.out for text in PRINTED[name]), output.out
    assert "saved to out: data.json, data.csv, figure.png, figure.pdf" in output.out
    files = sorted(path.name for path in (in_its_folder / "out").iterdir() if path.name in FILES)
    assert files == FILES
    assert set(KEYS[name]) <= set(json.loads((in_its_folder / "out" / "data.json").read_text()))


def test_numbers_are_those_of_the_file(in_its_folder, capsys):
    cli.main([*COMMANDS["transfer"], "--output", "out"])
    printed = capsys.readouterr().out
    data = json.loads((in_its_folder / "out" / "data.json").read_text())
    row = next(line for line in printed.splitlines() if line.startswith("P, PGD-20")).split()
    assert row[2:] == [f"{accuracy:.2%}" for accuracy in data["accuracies"][0][1]]
    assert data["targets"] == ["S", "P"] and data["images"] == 20
    assert len({accuracy for rows in data["accuracies"] for row in rows for accuracy in row}) > 2, "trained models"


def test_settings_reach_the_analysis(in_its_folder):
    for name in ("landscape", "curvature"):
        assert cli.main([*COMMANDS[name], "--output", name]) == 0
    landscape, curvature = (
        json.loads((in_its_folder / name / "data.json").read_text()) for name in ("landscape", "curvature")
    )
    data = load_dataset("digits", "test")
    model, _ = load_model(in_its_folder / "at-pgd" / "model.safetensors")
    for place, index in enumerate((3, 5)):
        loss = F.cross_entropy(model(data.images[index : index + 1] / 255), data.labels[index : index + 1])
        assert landscape["losses"][place][2][2] == pytest.approx(loss.item(), rel=1e-3)
        assert landscape["labels"][place] == data.labels[index].item()
    assert landscape["bounds"] == [0, 1] and landscape["offsets"] == pytest.approx([-1.5, -0.75, 0, 0.75, 1.5])
    assert curvature["batch_size"] == 8 and len(curvature["eigenvalues"]) == 20
    assert any(value != 0 for value in curvature["eigenvalues"])


def test_a_folder_in_use_is_found_before_the_work(in_its_folder, monkeypatch):
    def begun(*arguments, **options):
        raise AssertionError("it has begun")

    names = {
        "distribution": "learned_distribution", "landscape": "loss_landscape", "curvature": "hessian_curvature",
        "convergence": "exp_convergence", "transfer": "transfer_accuracy", "epoch-time": "epoch_times",
    }  # fmt: skip
    for name, function in names.items():
        monkeypatch.setattr(f"adt_fast.commands.{name.replace('-', '_')}.{function}", begun)
        assert cli.main([*COMMANDS[name], "--output", "standard"]) == 2


@pytest.mark.parametrize("name", ["landscape", "epoch-time"])
def test_without_an_output_a_folder_is_named_by_time(name, in_its_folder, capsys):
    assert cli.main(COMMANDS[name]) == 0
    (folder,) = (in_its_folder / "runs").iterdir()
    assert folder.name.startswith(f"{name}-20") and f"saved to runs/{folder.name}" in capsys.readouterr().out


def test_without_matplotlib(in_its_folder, capsys, no_matplotlib):
    assert cli.main([*COMMANDS["curvature"], "--output", "out"]) == 0
    assert "saved to out: data.json, data.csv\nfigures need matplotlib" in capsys.readouterr().out
    assert sorted(contents(in_its_folder / "out")) == DATA


def test_a_sweep_continues(in_its_folder, capsys):
    assert cli.main([*COMMANDS["entropy-sweep"], "--output", "out"]) == 0
    first = capsys.readouterr().out
    assert cli.main([*COMMANDS["entropy-sweep"], "--output", "out"]) == 0
    assert capsys.readouterr().out == first
    assert len(list((in_its_folder / "out" / "runs").iterdir())) == 2


@pytest.mark.parametrize("name", ["entropy-sweep", "epoch-time"])
def test_settings_from_a_file(name, in_its_folder, capsys):
    # samples is an option of adt-exp, which the sweep's method does not have: a file may be for many.
    options = "samples: 3\n" if name == "entropy-sweep" else ""
    (in_its_folder / "mine.yaml").write_text(f"model: wrn-10-1\nbatch_size: 8\n{options}")
    flags = [flag for flag in COMMANDS[name] if flag not in ("--batch-size", "16")]
    assert cli.main([*flags, "--config", "mine.yaml", "--output", "out"]) == 0
    data = json.loads((in_its_folder / "out" / "data.json").read_text())
    if name == "epoch-time":
        assert data["settings"]["model"] == "wrn-10-1" and data["batches"] == 5
    else:
        settings = json.loads((in_its_folder / "out" / "point-0.json").read_text())["settings"]
        assert (settings["model"], settings["method"], settings["batch_size"]) == ("wrn-10-1", "adt-exp-am", 8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["landscape"], "RUN_OR_CHECKPOINT"),
        (["landscape", "nothing"], "nothing"),
        (["landscape", "at-pgd", "--image", "360"], "image must be in [0, 359], got 360"),
        (["landscape", "at-pgd", "--steps", "4"], "steps must be odd"),
        (["landscape", "at-pgd", "--radius", "0"], "radius must be > 0"),
        (["landscape", "at-pgd", "--norm", "l2"], "norm must be linf for this analysis"),
        (["landscape", "at-pgd", "--output", "standard"], "output must be a new or an empty folder"),
        (["curvature", "at-pgd", "--tolerance", "0"], "tolerance must be > 0"),
        (["curvature", "at-pgd", "--solver", "qr"], "lanczos"),
        (["curvature", "at-pgd", "--output", "standard"], "output must be a new or an empty folder"),
        (["convergence"], "runs must be one or more"),
        (["convergence", "at-pgd", "--recipe", "mine"], "recipe must be one of 'published', 'paper'"),
        (["convergence", "at-pgd", "--samples", "0"], "samples must be in"),
        (["transfer", "at-pgd", "at-pgd"], "names must be 2, all different, one for each run, got at-pgd, at-pgd"),
        (["transfer", "at-pgd", "standard", "--names", "a"], "names must be 2"),
        (["transfer", "at-pgd", "--epsilon", "0"], "epsilon must be > 0"),
        (["entropy-sweep", "--method", "at-pgd"], "method must be one whose distributions are explicit"),
        (["entropy-sweep", "--entropy-weights", "0", "0"], "entropy_weights must be one or more different numbers"),
        (["epoch-time", "--methods", "adt-expp"], "did you mean 'adt-exp'"),
        (["epoch-time", "--warmup", "0"], "warmup must be in"),
        (["epoch-time", "--output", "standard"], "output must be a new or an empty folder"),
    ],
)
def test_bad_flags_get_a_message_and_status_2(arguments, message, in_its_folder, capsys):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    flattened = " ".join((output.out + output.err).replace("│", " ").split())
    assert message in flattened and "Traceback" not in flattened
    assert sorted(path.name for path in in_its_folder.iterdir()) == ["at-pgd", "standard"], "nothing is left behind"


def test_models_of_different_balls(in_its_folder, capsys):
    flags = ["--train-limit", "64", "--test-limit", "10", "--epochs", "1", "--method", "standard", *CPU]
    assert cli.main(["train", "--epsilon", "0.1", "--output", "other", *flags]) == 0
    arguments = ["transfer", "at-pgd", "other", "--test-limit", "10", "--output", "out", *CPU]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "epsilon must be given, for the models were trained with different ones: 0.1, 0.15" in error
    assert cli.main([*arguments, "--epsilon", "0.2"]) == 0
    assert "epsilon 0.2" in capsys.readouterr().out


def test_a_failure_after_the_beginning(in_its_folder, capsys, monkeypatch):
    def fails(*arguments, **options):
        raise FloatingPointError("the loss is NaN")

    monkeypatch.setattr("adt_fast.commands.landscape.loss_landscape", fails)
    assert cli.main([*COMMANDS["landscape"], "--output", "out"]) == 1
    assert "the loss is NaN" in capsys.readouterr().err
    assert not (in_its_folder / "out").exists()
