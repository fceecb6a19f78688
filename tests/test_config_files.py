"""Settings in files: those of the package say what the paper says, and a bad file gets a message that names it."""

import pytest
import yaml

from adt_fast import cli
from adt_fast.config import TrainConfig
from adt_fast.config_files import config_names, config_summary, load_config_file
from adt_fast.methods import method_names

PAPER = {"model": "wrn-28-10", "epochs": 76, "batch_size": 64, "learning_rate": 0.1, "momentum": 0.9,
         "weight_decay": 2e-4, "schedule": "step"}  # fmt: skip

# The rows of the paper's tables: Table 1 (without the model that others trained), 7 and 8; Table 2, twice.
ROWS = {
    ("cifar10", 8 / 255): set(method_names()),
    ("cifar100", 8 / 255): {"standard", "at-pgd", "adt-exp", "adt-exp-am", "adt-imp-am"},
    ("svhn", 4 / 255): {"standard", "at-pgd", "adt-exp", "adt-exp-am", "adt-imp-am"},
}


def resolved(name, **changes):
    return load_config_file(name).config(device="cpu", **changes).resolved()


@pytest.mark.parametrize("dataset, epsilon", ROWS)
def test_every_row_of_the_papers_tables(dataset, epsilon):
    names = [name for name in config_names() if name.startswith(f"{dataset}-wrn28-10-")]
    assert {name.removeprefix(f"{dataset}-wrn28-10-") for name in names} == ROWS[dataset, epsilon]
    for name in names:
        config = resolved(name)
        assert {field: getattr(config, field) for field in PAPER} == PAPER
        assert (config.dataset, config.epsilon) == (dataset, epsilon)
        assert name.endswith(config.method) and config_summary(name).startswith("Table ")


def test_the_papers_options():
    exp = resolved("cifar10-wrn28-10-adt-exp").method_options()
    assert (exp["steps"], exp["samples"], exp["step_size"], exp["entropy_weight"]) == (7, 5, 0.3, 0.01)
    am = resolved("cifar10-wrn28-10-adt-exp-am").method_options()
    assert (am["generator_width"], am["generator_learning_rate"], am["entropy_weight"]) == (256, 2e-4, 0.01)
    assert resolved("cifar10-wrn28-10-adt-imp-am").latent_dim == 64
    assert resolved("cifar10-wrn28-10-at-fgsm").target == "least-likely"
    assert resolved("cifar10-wrn28-10-at-pgd").steps == resolved("svhn-wrn28-10-at-pgd").steps == 7
    assert resolved("cifar10-wrn28-10-alp").logit_weight == 0.5
    assert resolved("cifar10-wrn28-10-feascatter").label_smoothing == 0.5
    assert resolved("cifar10-wrn28-10-l2l").gradient_scale == "max_abs"
    assert resolved("cifar10-wrn28-10-adt-exp-trades").trades_weight == 6


@pytest.mark.parametrize("name", ["digits", "cifar10-cpu", "paper"])
def test_files_without_a_method_do_for_every_one(name):
    for method in method_names():
        config = resolved(name, method=method)
        has_generator = method == "l2l" or "-am" in method
        assert (config.generator_width is not None) == has_generator


def test_digits_are_the_defaults():
    assert resolved("digits") == TrainConfig(device="cpu").resolved()


def test_a_file_of_the_users_own(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: cifar10-cpu\nepochs: 2\nepsilon: 4/255\nweight_decay: 1e-3\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nmethod: at-pgd\nsteps: 3\nrandom_start: gaussian\n")
    settings = load_config_file(str(tmp_path / "mine.yaml")).settings
    assert (settings["epochs"], settings["epsilon"], settings["steps"]) == (2, 4 / 255, 3)
    assert settings["weight_decay"] == 1e-3 and settings["random_start"] == "gaussian"
    assert settings["model"] == load_config_file("cifar10-cpu").settings["model"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("epoch: 3", "unknown setting 'epoch'; did you mean 'epochs'"),
        ("epochs: three", "epochs must be a whole number, got 'three'"),
        ("epochs: 3.0", "epochs must be a whole number, got 3.0"),
        ("epochs: true", "epochs must be a whole number, got True"),
        ("download: 1", "download must be true or false"),
        ("epsilon: 8/0", "epsilon must be a number, got '8/0'"),
        ("epsilon: [1]", "epsilon must be a number"),
        ("model: 3", "model must be a text"),
        ("data_dir: 3", "data_dir must be a path"),
        ("- epochs", "must map settings to values, got list"),
        ("", "must map settings to values, got NoneType"),
        ("a: [", "is no YAML file"),
        ("extends: nobody", "unknown config 'nobody'"),
        ("extends: file.yaml", "extends itself"),
        ("1: 2", "unknown setting '1'"),
    ],
)
def test_bad_files(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"file\.yaml|nobody") as error:
        load_config_file("file.yaml")
    assert message in str(error.value)
    assert cli.main(["train", "--config", "file.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"], "nothing is left behind"


def test_files_that_are_not_there(capsys):
    assert cli.main(["train", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    assert cli.main(["train", "--config", "digit"]) == 2
    assert "unknown config 'digit'; did you mean 'digits'" in capsys.readouterr().err


def printed(*flags, capsys):
    assert cli.main(["train", "--device", "cpu", "--print-config", *flags]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_change_what_a_file_says(capsys):
    config = printed("--config", "cifar10-wrn28-10-adt-exp", "--model", "wrn-10-2", "--epsilon=4/255", capsys=capsys)
    assert (config["model"], config["epsilon"], config["epochs"]) == ("wrn-10-2", 4 / 255, 76)
    assert "generator_width" not in config and "config" not in config
    config = printed("--config=cifar10-cpu", "--method", "l2l", "--generator-width", "8", capsys=capsys)
    assert (config["method"], config["generator_width"]) == ("l2l", 8)


def test_a_flag_is_not_dropped_for_being_what_the_file_says(capsys):
    flags = ["--config", "digits", "--method", "at-pgd", "--generator-width", "64", "--print-config"]
    assert cli.main(["train", *flags]) == 2
    assert "generator_width is no option of method 'at-pgd'" in capsys.readouterr().err


def test_a_foreign_option_is_an_error_where_it_is_meant(tmp_path, capsys):
    (tmp_path / "file.yaml").write_text("method: standard\nsamples: 3\n")
    assert cli.main(["train", "--config", str(tmp_path / "file.yaml"), "--print-config"]) == 2
    assert "samples is no option of method 'standard'" in capsys.readouterr().err
    assert cli.main(["train", "--config", "cifar10-cpu", "--method", "standard", "--samples", "3"]) == 2


def test_a_run_can_be_run_again_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--train-limit", "64", "--test-limit", "20", "--epochs", "1", "--device", "cpu", "--method", "at-fgsm"]
    assert cli.main(["train", *small, "--seed", "5", "--output", "first"]) == 0
    assert cli.main(["train", "--config", "first/config.yaml", "--output", "second"]) == 0
    first, second = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("first", "second"))
    assert first["config"] | {"output": "second"} == second["config"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes()[-4096:] for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_the_lists(capsys):
    assert cli.main(["methods"]) == 0
    listed = capsys.readouterr().out
    assert [line.split(":")[0] for line in listed.splitlines() if line and line[0] != " "] == list(method_names())
    assert "EXP(steps=7, samples=5, step_size=0.3, entropy_weight=0.01, recipe=published)" in listed
    assert cli.main(["configs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(config_names())
