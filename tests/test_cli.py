"""The command line, with small limits: what a run leaves and prints, and what a bad flag gets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from folders import contents

from adt_fast import cli
from adt_fast._runs.generator_attacks import fitted_attack
from adt_fast._runs.trained_model import TrainedModel
from adt_fast._settings.method_options import METHOD_OPTIONS
from adt_fast.attacks import PGD, exp_am_recipe, imp_am_recipe
from adt_fast.checkpoint import load_model
from adt_fast.commands import evaluate as evaluate_command
from adt_fast.config import TrainConfig, TrainedModelConfig
from adt_fast.experiment import TrainingRun
from adt_fast.methods import method_names, method_spec
from adt_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")

SMALL = ["--train-limit", "96", "--test-limit", "40", "--epochs", "2", "--device", "cpu"]


def train(*flags):
    return cli.main(["train", *SMALL, *flags])


def test_train_leaves_a_run_folder(tmp_path, capsys):
    assert train("--output", "run", "--epsilon", "8/255", "--seed", "3") == 0
    folder = tmp_path / "run"
    files = [".lock", "config.yaml", "metrics.jsonl", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == files

    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    config = recorded["config"]
    assert (config["method"], config["dataset"], config["model"]) == ("adt-exp", "digits", "small-cnn")
    assert (config["epsilon"], config["seed"], config["steps"], config["samples"]) == (8 / 255, 3, 7, 5)
    assert config["recipe"] == "published" and config["train_limit"] == 96
    assert recorded["versions"]["torch"] == torch.__version__

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    engine = [line for line in lines if line["event"] in ("engine", "precision")]
    lines = [line for line in lines if line not in engine]
    assert engine[0]["event"] == "engine" and engine[0]["twin"].startswith("on, fused")
    assert [line["event"] for line in lines] == ["epoch", "epoch", "test"]
    assert [line["epoch"] for line in lines[:2]] == [1, 2]
    assert all(line["time"].endswith("+00:00") and line["images"] == 96 for line in lines[:2])
    assert lines[2]["natural"]["total"] == lines[2]["pgd-20"]["total"] == 40

    output = capsys.readouterr()
    assert "adt-exp on digits: 96 training images, 2 epochs, epsilon 0.03137" in output.out
    assert f"natural  {lines[2]['natural']['correct'] / 40:.2%}".split() == row(output.out, "natural")[:2]
    assert row(output.out, "pgd-20")[2:] == [str(lines[2]["pgd-20"]["correct"]), "of", "40"]
    assert "epoch 2/2" in output.out and "it/s" not in output.err, "lines instead of a bar: this is no terminal"

    model, metadata = load_model(folder / "model.safetensors")
    assert metadata["extra"]["epsilon"] == 8 / 255 and not model.training


def row(output, name):
    return next(line for line in output.splitlines() if line.startswith(name)).split()


def test_evaluate_gives_the_closing_table_again(capsys):
    train("--output", "run", "--method", "standard")
    table = capsys.readouterr().out.split("\n\n")[1]
    for path in ("run", "run/model.safetensors"):
        assert cli.main(["evaluate", path, "--test-limit", "40", "--device", "cpu"]) == 0
        assert table in capsys.readouterr().out
    cli.main(["evaluate", "run", "--epsilon", "1/1000", "--device", "cpu"])
    output = capsys.readouterr().out
    assert row(output, "natural")[4] == "360" and row(output, "natural")[1:] == row(output, "pgd-20")[1:]


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train("--output", name, "--seed", seed, "--epochs", "1") == 0
    a, b, c = (load_model(tmp_path / name / "model.safetensors")[0].fc.weight for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("method", method_names())
def test_every_method_trains(method, tmp_path, capsys):
    joint = method_spec(method).joint is not None
    width = ["--generator-width", "8"] if joint else []
    assert train("--method", method, "--epochs", "1", "--output", "run", *width) == 0
    output = capsys.readouterr().out
    assert f"{method} on digits" in output and row(output, "pgd-20")
    epoch, *_ = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert epoch["event"] == "epoch" and epoch["loss"] > 0 and (epoch["penalty"] != 0) == ("-am" in method)
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["config"]
    assert set(method_spec(method).defaults()) == set(recorded) & set(METHOD_OPTIONS)
    assert load_model(tmp_path / "run" / "model.safetensors")[1]["extra"]["method"] == method
    assert (tmp_path / "run" / "maximizer.safetensors").exists() == joint
    assert cli.main(["evaluate", "run", "--test-limit", "8", "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "at-pgd", "--steps", "2", "--step-size", "1/50"],
        ["--method", "at-pgd", "--norm", "l2", "--epsilon", "0.5"],
        ["--recipe", "paper", "--samples", "2", "--steps", "1", "--entropy-weight", "0.1"],
        ["--method", "standard", "--model", "wrn-10-1", "--schedule", "step", "--batch-size", "50"],
    ],
)
def test_other_settings_train(flags, tmp_path):
    assert train(*flags) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "model.safetensors").exists()
    assert folder.name.startswith(f"digits-{flags[1] if flags[0] == '--method' else 'adt-exp'}-")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--method", "adt-expp"], "did you mean 'adt-exp'"),
        (["--dataset", "cifar11"], "did you mean 'cifar10'"),
        (["--model", "wrn-28-1O"], "did you mean 'wrn-28-10'"),
        (["--model", "wrn-11-2"], "6 n + 4"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], "nowhere"),
        (["--epochs", "0"], "epochs"),
        (["--epochs", "two"], "expected a whole number, got 'two'"),
        (["--batch-size", "0"], "batch_size"),
        (["--epsilon", "0"], "epsilon"),
        (["--epsilon", "8/0"], "expected a number such as 0.03 or 8/255"),
        (["--recipe", "other"], "recipe must be one of 'published', 'paper'"),
        (["--recipe", "published,accumulate=yes"], "accumulate must be a bool, got str"),
        (["--recipe", "published,rho_init=low"], "rho_init must be a number, got str"),
        (["--recipe", "published,acumulate=true"], "did you mean 'accumulate'"),
        (["--recipe", "published,accumulate"], "recipe options are written NAME=VALUE"),
        (["--method", "at-pgd", "--random-start", "maybe"], "expected true, false or gaussian, got 'maybe'"),
        (["--method", "trades", "--random-start", "false"], "loss must have a gradient at the image"),
        (["--samples", "0"], "samples"),
        (["--method", "standard", "--samples", "3"], "samples is no option of method 'standard'"),
        (["--device", "tpu9"], "device must be auto"),
        (["--seed", "-1"], "seed"),
        (["--epsilno", "0.1"], "--epsilon"),
        (["--schedule", "linear"], "one-cycle"),
    ],
)
def test_bad_flags_get_a_message_and_status_2(flags, message, tmp_path, capsys):
    assert train(*flags) == 2
    output = capsys.readouterr()
    flattened = " ".join((output.out + output.err).replace("│", " ").split())
    assert message in flattened and "Traceback" not in flattened
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


@pytest.mark.parametrize("precision, outer", [("fp32", "fp32"), ("tf32", "fp32"), ("bf16", "bf16"), ("auto", "auto")])
@pytest.mark.parametrize("method", ["standard", "adt-exp"])
def test_settings_reach_the_trainer(method, precision, outer):
    small = {"train_limit": 32, "test_limit": 8, "device": "cpu", "method": method, "precision": precision}
    trainer = TrainingRun(TrainConfig(model_mode="keep", outer_mode="eval", **small)).trainer
    assert (trainer.options.outer_precision, trainer.options.outer_mode) == (outer, "eval")
    if method != "standard":
        engine = trainer.method.maximizer.input_gradient
        assert (engine.options.precision, engine.model_mode) == (precision, "keep")


def test_an_output_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert train("--output", "run", "--method", "standard") == 0, "an empty folder will do"
    before = contents(tmp_path / "run")
    assert train("--output", "run") == 2
    assert "output must be a new or an empty folder, but run holds something" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before
    (tmp_path / "file").touch()
    assert train("--output", "file") == 2


@pytest.mark.parametrize(
    "error, status, message",
    [
        (KeyboardInterrupt(), 130, "interrupted; the metrics so far are in run"),
        (FloatingPointError("the training loss is nan"), 1, "the training loss is nan"),
    ],
)
def test_a_run_that_ends_early(error, status, message, monkeypatch, tmp_path, capsys):
    def step(self, images, labels, **options):
        raise error

    monkeypatch.setattr(Trainer, "step", step)
    assert train("--output", "run") == status
    assert message in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "nothing"], "nothing"),
        (["evaluate", "."], "model.safetensors"),
        (["evaluate", "junk"], "junk"),
        (["evaluate"], "RUN_OR_CHECKPOINT"),
        ([], "train"),
    ],
)
def test_evaluate_without_a_model(arguments, message, tmp_path, capsys):
    (tmp_path / "junk").write_bytes(b"junk")
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.out + output.err and "Traceback" not in output.err


def test_evaluate_with_a_report(tmp_path, capsys):
    train("--output", "run", "--method", "standard")
    capsys.readouterr()
    attacks = "fgsm,pgd-3,exp-am:epochs=1:train_limit=64:generator_width=8,transfer-mim-2"
    flags = ["run", "--attacks", attacks, "--output", "report", "--test-limit", "40", "--device", "cpu"]
    flags += ["--source", "run/model.safetensors"]
    assert cli.main(["evaluate", *flags]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for name in ("natural", *attacks.split(","), "A_rob"):
        correct = report["accuracy"][name]["correct"]
        assert row(output, name)[1:] == [f"{correct / 40:.2%}", str(correct), "of", "40"]
    assert "saved report.json, report.md, report.html to report" in output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        ".lock", "exp-am-epochs=1-train_limit=64-generator_width=8.safetensors", "report.html", "report.json",
        "report.md", "state.safetensors",
    ]  # fmt: skip
    assert cli.main(["evaluate", *flags]) == 2
    assert "is there already: resume it" in capsys.readouterr().err
    before = contents(tmp_path / "report")
    assert cli.main(["evaluate", *flags, "--resume"]) == 0
    assert contents(tmp_path / "report") == before, "bit for bit"
    assert cli.main(["evaluate", *flags, "--resume", "--seed", "1"]) == 2
    assert "another generator: seed differ" in capsys.readouterr().err
    (tmp_path / "report" / "state.safetensors").unlink()
    assert cli.main(["evaluate", *flags, "--epsilon", "1/255"]) == 2
    assert "another generator: epsilon differ" in capsys.readouterr().err
    train("--output", "run2", "--method", "standard", "--seed", "1")
    assert cli.main(["evaluate", "run2", *flags[1:]]) == 2
    assert "another generator: model differ" in capsys.readouterr().err


def test_evaluate_can_be_interrupted_and_resumed(tmp_path, capsys, monkeypatch):
    train("--output", "run", "--method", "standard")
    flags = ["evaluate", "run", "--attacks", "fgsm,pgd-3", "--batch-size", "16", "--test-limit", "40"]
    assert cli.main([*flags, "--output", "whole"]) == 0
    calls, perturb = [], PGD.perturb

    def interrupted(self, images, labels):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return perturb(self, images, labels)

    monkeypatch.setattr(PGD, "perturb", interrupted)
    assert cli.main([*flags, "--output", "stopped"]) == 130
    assert "the same command with --resume goes on from stopped" in capsys.readouterr().err
    assert cli.main([*flags, "--output", "stopped", "--resume"]) == 0
    assert len(calls) == 3, "what was done is not done again"
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--attacks", "pgd-20,"], "with commas between them"),
        (["--attacks", "pgd20"], "unknown attack 'pgd20'"),
        (["--attacks", "exp-am:epoch=3"], "did you mean 'epochs'"),
        (["--attacks", "l2l,exp-am:epoch=3"], "did you mean 'epochs'"),
        (["--attacks", "l2l,pgd20"], "unknown attack 'pgd20'"),
        (["--attacks", "l2l,exp-am:epochs=none"], "epochs must be an int"),
        (["--attacks", "l2l,exp-am:train_limit=0"], "train_limit must be in"),
        (["--attacks", "l2l,exp-am:generator_learning_rate=0"], "learning_rate"),
        (["--attacks", "l2l,exp-am:gradient_scale=maximum"], "gradient_scale must be one of"),
        (["--attacks", "l2l,imp-am:recipe=ours"], "recipe must be one of"),
        (["--attacks", "exp-am,l2l:recipe=paper"], "unknown option of the attack 'recipe'"),
        (["--attacks", "l2l,exp-am:restarts=0"], "restarts must be in"),
        (["--attacks", "l2l,exp-am:entropy_weight=much"], "entropy_weight must be"),
        (["--attacks", "exp-am", "--norm", "l2"], "of the L-infinity ball alone"),
        (["--attacks", "transfer-pgd-20"], "source must be given"),
        (["--attacks", "transfer-pgd-20", "--source", "nowhere"], "nowhere"),
        (["--resume"], "output must be given with --resume"),
        (["--norm", "l1"], "norm must be one of"),
    ],
)
def test_evaluate_refuses_impossible_attacks(flags, message, capsys, monkeypatch):
    train("--output", "run", "--method", "standard")
    monkeypatch.setattr(evaluate_command, "fitted_attack", None)  # no generator is trained before
    assert cli.main(["evaluate", "run", *flags, "--test-limit", "8", "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_options_of_attacks_with_a_generator():
    train("--output", "run", "--method", "standard")
    trained = TrainedModel(TrainedModelConfig(Path("run"), test_limit=8, device="cpu"))
    of_training = ":epochs=1:train_limit=8:generator_width=8"
    of_attack = ":recipe=paper:gradient_scale=max_abs:entropy_weight=0.5:restarts=2"
    imp_am = fitted_attack(f"imp-am{of_training}{of_attack}", trained, None, progress=False)
    assert imp_am.recipe == imp_am_recipe("paper", gradient_scale="max_abs")
    assert (imp_am.gradient_scale, imp_am.entropy_weight, imp_am.restarts) == ("max_abs", 0.5, 2)
    exp_am = fitted_attack(f"exp-am{of_training}", trained, None, progress=False)
    assert exp_am.recipe == exp_am_recipe("published") and exp_am.entropy_weight == 0.01
    l2l = fitted_attack(f"l2l{of_training}:gradient_scale=batch_mean", trained, None, progress=False)
    assert l2l.gradient_scale == "batch_mean"


def test_evaluate_refuses_impossible_settings(capsys):
    train("--output", "run", "--method", "standard")
    for flag, value, message in (
        ("--epsilon", "0", "epsilon"),
        ("--batch-size", "0", "batch_size"),
        ("--seed", "-1", "seed"),
        ("--test-limit", "0", "limit"),
        ("--dataset", "mnist", "unknown dataset"),
        ("--device", "cuda:77", "device"),
    ):
        assert cli.main(["evaluate", "run", flag, value]) == 2
        assert message in capsys.readouterr().err


def test_info(capsys):
    assert cli.main(["info"]) == 0
    output = capsys.readouterr().out
    assert "cpu instruction set" in output and torch.__version__ in output


def test_help_tells_the_defaults(capsys):
    assert cli.main(["train", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "0.15 for digits; 0.03137 for cifar10, cifar100; 0.01569 for svhn" in output
    assert "standard|at-fgsm|at-pgd|alp" in output
    assert "(default: 7 for at-pgd, alp, adt-exp, adt-exp-trades; 1 for feascatter; 10 for trades)" in output


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "adt_fast.cli", "train", *SMALL, "--method", "standard", "--output", "run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "pgd-20" in result.stdout and "Traceback" not in result.stderr
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert failed.returncode == 2 and "new or an empty folder" in failed.stderr
