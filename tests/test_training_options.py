"""The settings of data and loop: in files, as flags, impossible ones, and where they go."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from adt_fast import cli
from adt_fast.config import TrainConfig
from adt_fast.experiment import TrainingRun

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")

OPTIONS = {
    "crop_padding": 2, "flip": False, "cutout": 4, "extra_data": "more.npz", "extra_fraction": 0.5, "drop_last": True,
    "validation_images": 20, "validate_every": 3, "validation_attack": "pgd-5", "ema_decay": 0.995,
    "max_grad_norm": 2.5, "accumulation_steps": 4, "sync_batchnorm": True, "tensorboard": True, "wandb": "mine",
}  # fmt: skip
SWITCHES = ("drop_last", "sync_batchnorm", "tensorboard")
SMALL = {"method": "standard", "train_limit": 60, "test_limit": 8, "epochs": 1, "batch_size": 20, "device": "cpu"}


def flags(settings):
    for name, value in settings.items():
        yield f"--{name.replace('_', '-')}"
        if name not in SWITCHES:
            yield str(value).lower() if isinstance(value, bool) else str(value)


def printed(*words, capsys):
    assert cli.main(["train", "--device", "cpu", "--print-config", *words]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_options_in_a_file_and_on_the_command_line(capsys):
    before = printed("--dataset", "cifar10", capsys=capsys)
    assert before["crop_padding"] == 4 and before["flip"] is True and OPTIONS.keys() <= before.keys()
    assert all(before[name] != value for name, value in OPTIONS.items())
    by_flags = printed("--dataset", "cifar10", *flags(OPTIONS), capsys=capsys)
    Path("mine.yaml").write_text(yaml.safe_dump({"dataset": "cifar10"} | OPTIONS))
    by_file = printed("--config", "mine.yaml", capsys=capsys)
    assert by_flags == by_file == before | OPTIONS


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"crop_padding": -1}, "crop_padding must be in"),
        ({"crop_padding": 8}, "crop_padding must be in .0, 7."),
        ({"cutout": -1}, "cutout must be in"),
        ({"cutout": 9}, "cutout must be in .0, 8."),
        ({"flip": 1}, "flip must be a bool"),
        ({"drop_last": "yes"}, "drop_last must be a bool"),
        ({"extra_fraction": 0.5}, "extra_fraction must not be given without extra_data, got 0.5"),
        ({"extra_data": Path("more.npz"), "extra_fraction": 1.0}, "extra_fraction must be in .0, 1., got 1.0"),
        ({"extra_data": Path("more.npz"), "extra_fraction": 0.01}, "extra_fraction must give a minibatch"),
        ({"extra_data": Path("nowhere.npz")}, "nowhere.npz"),
        ({"extra_data": 3}, "extra_data must be a path or None, got int"),
        ({"validation_images": 9, "validation_attack": 5}, "validation_attack must be a str, got int"),
        ({"ema_decay": 1.0}, "ema_decay must be in .0, 1., got 1.0"),
        ({"ema_decay": 0.0}, "ema_decay must be in"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0"),
        ({"accumulation_steps": 0}, "accumulation_steps must be in"),
        ({"accumulation_steps": 21}, "accumulation_steps must be at most batch_size, 20, got 21"),
        ({"sync_batchnorm": "no"}, "sync_batchnorm must be a bool"),
        ({"tensorboard": 1}, "tensorboard must be a bool"),
        ({"wandb": ""}, "wandb must be the name of a project, got ''"),
        ({"wandb": True}, "wandb must be the name of a project, got True"),
        ({"validate_every": 2}, "validate_every must not be given without validation_images, got 2"),
    ],
)
def test_impossible_options_are_found_before_there_is_a_folder(settings, message):
    write_extra()
    with pytest.raises((TypeError, ValueError, OSError), match=message):
        TrainingRun(TrainConfig(**SMALL | settings, output=Path("run")))
    assert not Path("run").exists()


def write_extra():
    np.savez("more.npz", image=np.full((30, 8, 8, 1), 7, dtype=np.uint8), label=np.zeros(30, dtype=np.int64))


def test_options_reach_their_place():
    write_extra()
    mine = OPTIONS | {"extra_data": Path("more.npz"), "tensorboard": False, "wandb": None}
    run = TrainingRun(TrainConfig(**SMALL | mine))
    loader, options = run.train_loader, run.trainer.options
    assert (loader.crop_padding, loader.flip, loader.cutout, loader.drop_last) == (2, False, 4, True)
    assert len(loader.data) == 40 + 30 and len(loader) == 40 // 10, "half of 20 are the data set's own"
    assert all((labels == 0).sum() >= 10 for _, labels in loader)
    assert (options.accumulation_steps, options.max_grad_norm) == (4, 2.5)
    assert run.trainer.average.decay == 0.995
    assert (run.validation.every, run.validation.attack, len(run.validation.data)) == (3, "pgd-5", 20)


class Writer:
    """A writer for TensorBoard and a run of W&B at once, which only keeps what it gets."""

    def __init__(self, *arguments, **options):
        self.names, self.closed, self.step, self.summary = [], False, 0, {}
        made.append(self)

    def add_scalar(self, name, value, step):
        self.names.append(name)

    def log(self, metrics, step):
        self.names += metrics

    def flush(self):
        pass

    def close(self):
        self.closed = True

    finish = close


made = []
LOGGERS = [(["--tensorboard"], "torch.utils.tensorboard"), (["--wandb", "mine"], "wandb")]


@pytest.mark.parametrize("flag, module", LOGGERS)
def test_loggers_get_the_metrics_and_are_closed(flag, module, monkeypatch, capsys):
    made.clear()
    fake = ModuleType(module)
    fake.SummaryWriter, fake.init, fake.Settings = Writer, Writer, dict
    monkeypatch.setitem(sys.modules, module, fake)
    assert cli.main(["train", *flags(SMALL), "--validation-images", "20", "--output", "run", *flag]) == 0
    (writer,) = made
    assert {"epoch/loss", "epoch/accuracy", "validation/robust"} <= set(writer.names) and writer.closed
    capsys.readouterr()


@pytest.mark.parametrize("flag, module", LOGGERS)
def test_a_logger_that_is_not_installed_leaves_nothing_behind(flag, module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["train", *flags(SMALL), "--output", "run", *flag]) == 2
    assert f'pip install "adt_fast[{module.split(".")[-1]}]"' in capsys.readouterr().err
    assert not Path("run").exists()


def test_the_papers_setting_and_a_small_one(capsys):
    """Table 1's ADT-EXP (Sections 5.1 and C.3), and the same on a tenth of a network."""
    flag = ["--config", "cifar10-wrn28-10-adt-exp", "--data-dir", "DIR"]
    paper = printed(*flag, capsys=capsys)
    wanted = {
        "method": "adt-exp", "dataset": "cifar10", "data_dir": "DIR", "model": "wrn-28-10", "epochs": 76,
        "batch_size": 64, "epsilon": 8 / 255, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 2e-4,
        "schedule": "step", "steps": 7, "samples": 5, "step_size": 0.3, "entropy_weight": 0.01, "recipe": "published",
        "crop_padding": 4, "flip": True, "cutout": 0, "ema_decay": None, "max_grad_norm": None, "accumulation_steps": 1,
        "validation_images": 0, "train_limit": None,
    }  # fmt: skip
    assert {name: paper[name] for name in wanted} == wanted
    small = printed(*flag, "--model", "wrn-10-2", "--train-limit", "2000", "--epochs", "2", capsys=capsys)
    assert small == paper | {"model": "wrn-10-2", "train_limit": 2000, "epochs": 2}
