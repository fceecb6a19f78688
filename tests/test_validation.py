"""Validation and the best model: what is held out, when, which model is kept, and what is found out before training."""

import copy
import json
from pathlib import Path

import pytest
import torch
from folders import contents
from safetensors.torch import load_file

from adt_fast import cli, validation
from adt_fast.checkpoint import load_model
from adt_fast.config import TrainConfig
from adt_fast.data import load_dataset
from adt_fast.evaluation import Accuracy
from adt_fast.experiment import TrainingRun
from adt_fast.models import create_model
from adt_fast.processes import Processes
from adt_fast.trainer import Trainer
from adt_fast.validation import Validation

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")

SETTINGS = {
    "method": "standard", "train_limit": 60, "test_limit": 20, "batch_size": 20, "epochs": 4, "device": "cpu",
    "validation_images": 20, "validation_attack": "fgsm", "learning_rate": 0.05, "schedule": "constant",
}  # fmt: skip
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]


def run_of(output="run", resume=False, save_every=1e9, **changes):
    return TrainingRun(TrainConfig(output=Path(output), **SETTINGS | changes), resume=resume, save_every=save_every)


def logged(event):
    with open("run/metrics.jsonl") as file:
        return [line for line in map(json.loads, file) if line["event"] == event]


def as_bytes(images):
    return {bytes(image.flatten().tolist()) for image in images}


def test_held_out_images_are_not_trained_on(monkeypatch):
    """And all others are, in every epoch."""
    seen, step = [], Trainer.step

    def noted(self, images, labels, **options):
        seen.append((images * 255).round().byte())
        return step(self, images, labels, **options)

    monkeypatch.setattr(Trainer, "step", noted)
    run = run_of()
    run.train()
    everything, held_out = as_bytes(load_dataset("digits", "train", limit=60).images), run.validation.data.images
    assert len(everything) == 60 and len(held_out) == 20
    for epoch in range(4):
        trained_on = as_bytes(torch.cat(seen[2 * epoch : 2 * epoch + 2]))
        assert trained_on == everything - as_bytes(held_out) and len(trained_on) == 40


class Scripted:
    """Validations that find what a script says of each epoch, as (natural, robust) correct images of 20."""

    def __init__(self, script, monkeypatch):
        self.script, self.models, call = script, {}, Validation.__call__

        def noted(validation, model, epoch):
            self.epoch = epoch
            self.models[epoch] = copy.deepcopy(model.state_dict())
            return call(validation, model, epoch)

        monkeypatch.setattr(Validation, "__call__", noted)
        monkeypatch.setattr(validation, "evaluate", lambda *arguments, **options: self)

    def accuracies(self):
        return {name: Accuracy(count, 20) for name, count in zip(("natural", "fgsm"), self.script[self.epoch])}


# Robust accuracy falls at the end; the third is as robust as the second, and better on natural images; the last is no
# better than the third.
FALLING = {1: (15, 4), 2: (9, 8), 3: (10, 8), 4: (10, 8)}


@pytest.mark.parametrize(
    "script, best",
    [
        (FALLING, 3),
        ({1: (10, 8), 2: (20, 7), 3: (10, 8), 4: (9, 8)}, 1),
        ({1: (1, 0), 2: (1, 0), 3: (0, 0), 4: (0, 1)}, 4),
    ],
)
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_model_is_that_of_the_best_epoch(script, best, ema_decay, monkeypatch):
    """Bit for bit; of the average where there is one."""
    scripted = Scripted(script, monkeypatch)
    run = run_of(ema_decay=ema_decay)
    assert not (run.path / "best.safetensors").exists()
    run.train()
    saved = load_file("run/best.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in scripted.models[best].items())
    others = [model["fc.weight"] for epoch, model in scripted.models.items() if epoch != best]
    assert not any(torch.equal(saved["fc.weight"], other) for other in others)
    last = load_file("run/model.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in scripted.models[4].items())
    assert torch.equal(last["fc.weight"], run.model.fc.weight) == (ema_decay is None)
    natural, robust = script[best]
    recorded = load_model("run/best.safetensors")[1]["extra"]["validation"]
    assert recorded == {"epoch": best, "natural": {"correct": natural, "total": 20},
                        "robust": {"correct": robust, "total": 20}}  # fmt: skip
    lines = logged("validation")
    assert [(line["epoch"], line["natural"], line["robust"]) for line in lines] == [
        (epoch, natural / 20, robust / 20) for epoch, (natural, robust) in script.items()
    ]
    assert [line["epoch"] for line in lines if line["is_best"]][-1] == best
    assert all(line["attack"] == "fgsm" and line["images"] == 20 for line in lines)


@pytest.mark.parametrize("every, epochs", [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3, 4]), (9, [4])])
def test_every_so_many_epochs_and_after_the_last(every, epochs, monkeypatch):
    Scripted(FALLING, monkeypatch)
    reported = []
    run_of(validate_every=every).train(lambda result, found: reported.append((result.epoch, found)))
    assert [line["epoch"] for line in logged("validation")] == epochs
    assert [epoch for epoch, _ in reported] == [1, 2, 3, 4]
    assert [found.epoch for _, found in reported if found is not None] == epochs


def test_a_validation_is_an_evaluation(monkeypatch):
    """Of the average, on the held-out images; what is found is what adt-fast evaluate's function finds."""
    run = run_of(epochs=1, ema_decay=0.5, validation_attack="pgd-3")
    run.train()
    report = validation.evaluate(run.trained_model, run.validation.data, "pgd-3", epsilon=0.15, seed=0)
    assert list(report.accuracies().values()) == [run.validation.best.natural, run.validation.best.robust]
    other = validation.evaluate(run.model, run.validation.data, "pgd-3", epsilon=0.15, seed=0)
    assert other.accuracies() != report.accuracies()


def table(output, number):
    return output.split("\n\n")[number]


def test_the_command_tests_both_models(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        Scripted(FALLING, patched)
        assert cli.main(["train", *FLAGS, "--output", "run", "--ema-decay", "0.5"]) == 0
    output = capsys.readouterr().out
    assert "  validation 40.00%, clean 50.00%  " in next(line for line in output.splitlines() if "epoch 3/4" in line)
    assert "of the best model in validation, that after epoch 3\n" in output
    assert [line["checkpoint"] for line in logged("test")] == ["model.safetensors", "best.safetensors"]
    for name, number in (("model", 1), ("best", 3)):
        assert cli.main(["evaluate", f"run/{name}.safetensors", "--test-limit", "20", "--device", "cpu"]) == 0
        assert table(output, number) in capsys.readouterr().out
    before = contents(Path("run"))
    assert cli.main(["train", "--output", "run", "--resume"]) == 0
    assert capsys.readouterr().out.split("\n\n")[1:] == output.split("\n\n")[1:], "a finished run says it all again"
    assert before == contents(Path("run"))


class Stopped(Exception):
    pass


def stop(*arguments, **options):
    raise Stopped


@pytest.mark.parametrize("epoch", [2, 3])
@pytest.mark.parametrize("place", ["best.safetensors", "log", "state"])
def test_a_run_that_is_stopped_around_its_best_model(epoch, place, monkeypatch):
    """Before best.safetensors is there, before the log of it, and before the state that knows of it."""
    Scripted(FALLING, monkeypatch)
    run_of("whole").train()
    run = run_of()
    save_model, log, save = run._save_model, run._log, run._save
    ended = []

    def at(where):
        if len(ended) == epoch - 1 and place == where:
            raise Stopped

    def noted_save():
        at("state")
        save()
        ended.append(1)

    def noted_log(event, **metrics):
        if event == "validation":
            at("log")
        log(event, **metrics)

    def noted_save_model(path, **extra):
        at(path.name)
        save_model(path, **extra)

    run._save, run._log, run._save_model = noted_save, noted_log, noted_save_model
    with pytest.raises(Stopped):
        run.train()
    assert not run.is_trained
    resumed = run_of(resume=True)
    resumed.train()
    assert contents(Path("run")).keys() == contents(Path("whole")).keys()
    for name in ("best.safetensors", "model.safetensors"):
        expected = load_file(f"whole/{name}")
        assert all(torch.equal(tensor, expected[key]) for key, tensor in load_file(f"run/{name}").items())
    assert resumed.validation.best.epoch == 3
    assert [line["epoch"] for line in logged("validation")] == [1, 2, 3, 4]


def test_a_run_that_is_stopped_between_its_tests(monkeypatch):
    """What was tested is not tested again, nor logged twice."""
    run = run_of(epochs=1)
    run.train()
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(TrainingRun, "_best_model", stop)
        run.evaluate()
    resumed = run_of(epochs=1, resume=True)
    assert resumed.stands_at == "the test of the trained model" and resumed.best_results is None
    assert resumed.results == run.results is not None
    resumed.train()
    resumed.evaluate()
    assert [line["checkpoint"] for line in logged("test")] == ["model.safetensors", "best.safetensors"]
    ended = run_of(epochs=1, resume=True)
    assert ended.stands_at == "the end" and ended.best_results == resumed.best_results
    assert ended.validation.best == run.validation.best
    ended.evaluate()
    assert len(logged("test")) == 2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"validation_attack": "pgd10"}, "got 'pgd10': unknown attack 'pgd10'; did you mean 'pgd-N'"),
        ({"validation_attack": "fgms"}, "did you mean 'fgsm'"),
        ({"validation_attack": "paper"}, "must be one attack, got 'paper': these are 6"),
        ({"validation_attack": "fgsm,pgd-10"}, "these are 2"),
        ({"validation_attack": ""}, "validation_attack must be one attack, got ''"),
        ({"validation_attack": "pgd-10:stepsize=1"}, "did you mean 'step_size'"),
        ({"validation_attack": "pgd-10:restarts=0"}, "restarts must be in"),
        ({"validation_attack": "exp-am"}, "unknown attack 'exp-am'"),
        ({"validation_attack": "transfer-pgd-10"}, "source must be given"),
        ({"validation_attack": "exp", "method": "at-pgd", "norm": "l2", "epsilon": 0.5}, "the L-infinity ball alone"),
        ({"validation_images": 60}, "validation_images must be less than the 60 training images, got 60"),
        ({"validation_images": -1}, "validation_images must be in"),
        ({"validate_every": 0}, "validate_every must be in"),
        ({"validation_images": 0}, "validation_attack must not be given without validation_images, got fgsm"),
    ],
)
def test_impossible_validations_are_found_before_there_is_a_folder(settings, message, tmp_path):
    torch.manual_seed(7)
    with pytest.raises(ValueError, match=message):
        run_of(**settings)
    assert list(tmp_path.iterdir()) == []


def test_the_check_of_an_attack_draws_nothing():
    """For the weights of generators come from the same random numbers with and without validation."""
    model = create_model("small-cnn", in_channels=1)
    before = torch.get_rng_state()
    data = load_dataset("digits", "train", limit=4)
    common = {"every": 1, "epochs": 1, "epsilon": 0.1, "norm": "linf", "seed": 0, "processes": Processes.alone()}
    for attack in ("pgd-10", "exp", "feaattack", "spsa-8:restarts=2", "pgd-10,pgd-10"):
        Validation(data, attack, **common).check_attack(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "state, message",
    [
        ({}, "state of the validation must have the keys 'best'"),
        ({"best": {"epoch": 1}}, "best of the validation must have the keys"),
        ({"best": {"epoch": 0, "natural": {}, "robust": {}}}, "epoch of the best must be in"),
        ({"best": {"epoch": 1, "natural": {}, "robust": {}}}, "natural of the best must have the keys"),
    ],
)
def test_other_states_change_nothing(state, message):
    run = run_of(epochs=1)
    run.train()
    before = run.validation.best
    with pytest.raises(ValueError, match=message):
        run.validation.load_state_dict(state)
    assert run.validation.best is before
