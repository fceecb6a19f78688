"""Training runs that are stopped and resumed: bit for bit the same as unbroken ones, wherever they were stopped."""

import atexit
import copy
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from folders import contents
from plain_adt import TinyClassifier, tiny_batch
from safetensors.torch import load_file
from tqdm import tqdm

from adt_fast import NoiseStream, cli
from adt_fast._runs.checkpoint import RunCheckpoint
from adt_fast.checkpoint import CheckpointError, load_checkpoint, pack_state, save_checkpoint, save_model, unpack_state
from adt_fast.checkpoint import file as checkpoint_file
from adt_fast.config import TrainConfig
from adt_fast.data import BatchLoader, ImageData
from adt_fast.experiment import TrainingRun
from adt_fast.input_gradient import EngineOptions, InputGradient, PrecisionWarning
from adt_fast.methods import create_method
from adt_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")

# 3 minibatches, the last one smaller, in each of 2 epochs; a network with batch norm, whose weights are channels_last.
SETTINGS = {
    "model": "wrn-10-1", "train_limit": 40, "batch_size": 16, "test_limit": 8, "epochs": 2, "device": "cpu", "seed": 4,
}  # fmt: skip
STEPS = 6
METHODS = {
    "standard": {},
    "at-pgd": {"steps": 2},
    "adt-exp": {"steps": 2, "samples": 2, "precision": "bf16"},
    "adt-imp-am": {"generator_width": 4},
    # Everything else that has a state, or an order: 30 images to train on, 12 of which come to 4 others in a minibatch.
    "all options": {
        "method": "at-pgd", "steps": 1, "crop_padding": 1, "flip": True, "cutout": 2, "extra_fraction": 0.25,
        "train_limit": 38, "validation_images": 8, "validation_attack": "fgsm", "ema_decay": 0.5, "max_grad_norm": 0.5,
        "accumulation_steps": 2,
    },
}  # fmt: skip


class Stopped(Exception):
    pass


def run_of(method, output, resume=False, save_every=0.0, **changes):
    settings = SETTINGS | {"method": method} | METHODS[method] | changes
    if "extra_fraction" in settings:
        settings["extra_data"] = extra_images()
    return TrainingRun(TrainConfig(output=output, **settings), resume=resume, save_every=save_every)


@cache
def extra_images():
    """A file of 9 images, which go into 8 a pass of the data set's own, so that passes over them cross epochs."""
    path = Path(tempfile.mkdtemp()) / "extra.npz"
    atexit.register(shutil.rmtree, path.parent)
    draw = np.random.RandomState(0)
    np.savez(path, image=draw.randint(0, 256, (9, 8, 8, 1), dtype=np.uint8), label=draw.randint(0, 10, 9))
    return path


@contextmanager
def stopping(at, error=Stopped):
    """Training stops in the step of this number, from 0: after its inner maximisation, when the noise has moved on."""
    step, steps = torch.optim.SGD.step, []

    def stop(self, *arguments, **options):
        steps.append(1)
        if len(steps) > at:
            raise error
        return step(self, *arguments, **options)

    torch.optim.SGD.step = stop
    try:
        yield
    finally:
        torch.optim.SGD.step = step


def finish(run):
    run.train(progress=False)
    return copy.deepcopy(run.trainer.state_dict())


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "seconds")} for line in lines]


def assert_same(found, expected):
    """Every bit, type and layout; tuples have become lists in a file."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other)
    else:
        assert found == expected and type(found) is type(expected)


def assert_same_results(folder, expected):
    assert logged(folder) == logged(expected)
    for name in ("model.safetensors", "best.safetensors", "maximizer.safetensors"):
        assert (folder / name).exists() == (expected / name).exists()
        if (expected / name).exists():
            assert_same(load_file(folder / name), load_file(expected / name))
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.fixture(scope="module", params=METHODS)
def unbroken(request, tmp_path_factory):
    """Method, folder and final state of a run that nobody stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken") / request.param
    return request.param, folder, finish(run_of(request.param, folder))


@pytest.mark.parametrize("at", range(STEPS))
def test_a_run_that_is_stopped_in_any_minibatch(unbroken, at, tmp_path):
    method, folder, expected = unbroken
    with stopping(at), pytest.raises(Stopped):
        run_of(method, tmp_path / "run").train(progress=False)
    resumed = run_of(method, tmp_path / "run", resume=True)
    wanted = "the beginning" if at == 0 else f"epoch {at // 3 + 1} of 2, minibatch {at % 3 + 1} of 3"
    assert resumed.stands_at == wanted and resumed.warnings == []
    assert_same(finish(resumed), expected)
    assert_same_results(tmp_path / "run", folder)


def test_a_run_that_is_stopped_in_every_minibatch(unbroken, tmp_path):
    """A resumed run of a resumed run, and so on: each does one minibatch."""
    method, folder, expected = unbroken
    for step in range(STEPS - 1):
        with stopping(1), pytest.raises(Stopped):
            run_of(method, tmp_path / "run", resume=step > 0).train(progress=False)
    with stopping(1):
        assert_same(finish(run_of(method, tmp_path / "run", resume=True)), expected)
    assert_same_results(tmp_path / "run", folder)


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("save_every", [0.0, 1e9])
def test_a_run_that_is_stopped_between_the_log_of_an_epoch_and_its_save(unbroken, epoch, save_every, tmp_path):
    """What was logged after the state that is gone back to is cut off: no epoch stands there twice."""
    method, folder, expected = unbroken

    def report(result, validated):
        if result.epoch == epoch:
            raise Stopped

    with pytest.raises(Stopped):
        run_of(method, tmp_path / "run", save_every=save_every).train(report, progress=False)
    assert [line["epoch"] for line in logged(tmp_path / "run") if line["event"] == "epoch"][-1] == epoch
    resumed = run_of(method, tmp_path / "run", resume=True)
    if save_every:
        assert resumed.stands_at == ("the beginning" if epoch == 1 else "epoch 2 of 2, minibatch 1 of 3")
    assert_same(finish(resumed), expected)
    assert_same_results(tmp_path / "run", folder)


def test_a_run_that_is_stopped_after_its_last_minibatch(unbroken, tmp_path, monkeypatch):
    """While it writes its results, or tests them; in the end it says that it is at its end, and what it found."""
    method, folder, expected = unbroken
    def save_all_but_the_last(path, *arguments, **options):
        return stop() if path.name == "model.safetensors" else save_model(path, *arguments, **options)

    for name, instead in (("save_model", save_all_but_the_last), ("evaluate", stop)):
        run = run_of(method, tmp_path / "run", resume=name == "evaluate")
        assert run.stands_at == ("the beginning" if name == "save_model" else "the end of the last epoch")
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(f"adt_fast.experiment.{name}", instead)
            assert_same(finish(run), expected)
            assert_same_results(tmp_path / "run", folder)
            run.evaluate()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"time": "2020-01-01T00:00:00.000+00:00", "event": "te')
    run = run_of(method, tmp_path / "run", resume=True)
    assert run.is_trained and run.results is None and run.stands_at == "the test of the trained model"
    assert_same(run.trained_model.state_dict(), (expected["average"] or expected)["model"])
    assert_same(run.trainer.state_dict()["joint"], expected["joint"])
    run.train()
    results = run.evaluate()
    tests = 1 if run.validation is None else 2
    assert logged(tmp_path / "run")[:-tests] == logged(folder)
    assert [line["event"] for line in logged(tmp_path / "run")[-tests:]] == ["test"] * tests
    ended = run_of(method, tmp_path / "run", resume=True)
    assert ended.stands_at == "the end" and ended.results == results and ended.best_results == run.best_results


def stop(*arguments, **options):
    raise Stopped


# Trainer


class WithDropout(TinyClassifier):
    """A model that draws from PyTorch's global generator."""

    def forward(self, images):
        return super().forward(torch.nn.functional.dropout(images, 0.3, self.training))


def data_loader():
    batches = [tiny_batch(5, seed) for seed in range(3)]
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 6, shuffle=True)


def batch_loader():
    images, labels = tiny_batch(15)
    data = ImageData((images * 255).byte(), labels, 4, "tiny", (0.5,) * 3, (0.2,) * 3)
    loader = BatchLoader(data, 6, shuffle=True, crop_padding=1, flip=True)
    loader.epoch = 5
    return loader


LOADERS = {
    "DataLoader": data_loader,
    "BatchLoader": batch_loader,
    "list": lambda: [tiny_batch(6, seed) for seed in range(3)],
}
SCHEDULERS = {
    "none": (lambda optimizer: None, "epoch"),
    "by epoch": (lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "epoch"),
    "by step": (lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=9), "step"),
}


def trainer_of(seed=0, name="adt-exp", ema_decay=0.9, **engine):
    torch.manual_seed(seed)
    model = WithDropout(seed=seed)
    options = {"steps": 2, "samples": 2} if name == "adt-exp" else {"image_shape": (3, 6, 5), "generator_width": 3}
    method = create_method(
        name, model, epsilon=0.1, noise=NoiseStream(seed), engine=EngineOptions(**engine), **options
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(model, optimizer, method, ema_decay=ema_decay, max_grad_norm=0.5, accumulation_steps=2)


def fit(trainer, loader, scheduler, **options):
    create, every = SCHEDULERS[scheduler]
    results = trainer.fit(
        LOADERS[loader](), epochs=3, scheduler=create(trainer.optimizer), schedule_every=every, **options
    )
    return [vars(result) | {"seconds": 0} for result in results]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_fit_goes_on_from_a_file(loader, scheduler, tmp_path):
    """With any loader and scheduler, from between any two minibatches or epochs, in a trainer that is another one."""
    files = []
    trainer = trainer_of()

    def save(*_):
        files.append(tmp_path / f"{len(files)}.safetensors")
        tensors, structure = pack_state(trainer.state_dict())
        save_checkpoint(files[-1], tensors, {"state": structure})

    expected = fit(trainer, loader, scheduler, between_steps=save, callbacks=[save])
    assert len(files) == 9
    for file in files:
        tensors, metadata = load_checkpoint(file)
        other = trainer_of(seed=1)
        other.load_state_dict(unpack_state(tensors, metadata["state"]))
        called = []
        assert fit(other, loader, scheduler, callbacks=[called.append]) == expected
        assert len(called) == 3 - files.index(file) // 3 - (files.index(file) % 3 == 2)
        assert_same(other.state_dict(), trainer.state_dict())


def test_a_state_that_was_loaded_is_given_again():
    trainer, states = trainer_of(), []
    fit(trainer, "BatchLoader", "by step", between_steps=lambda: states.append(copy.deepcopy(trainer.state_dict())))
    other = trainer_of(seed=1)
    other.load_state_dict(states[3])
    assert_same(other.state_dict(), states[3])


def test_the_seconds_of_an_epoch_add_up():
    trainer, states = trainer_of(), []
    fit(trainer, "list", "none", between_steps=lambda: states.append(copy.deepcopy(trainer.state_dict())))
    trainer.load_state_dict(changed(states[0], 1e6, "fit", "progress", "sums", "seconds"))
    results = trainer.fit(LOADERS["list"](), epochs=3)
    assert results[0].seconds > 1e6 > results[1].seconds > 0


def test_a_new_fit_from_a_state():
    """Without where the old one stood; and a fit that an error ended does not go on by itself."""
    trainer, states = trainer_of(), []
    with stopping(2), pytest.raises(Stopped):
        fit(trainer, "list", "none", between_steps=lambda: states.append(copy.deepcopy(trainer.state_dict())))
    assert trainer.state_dict()["fit"] is None
    assert len(fit(trainer, "list", "none")) == 3
    other = trainer_of(seed=1)
    other.load_state_dict(states[0] | {"fit": None})
    assert len(other.fit(LOADERS["DataLoader"](), epochs=1)) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 4}, "epochs must be 3, as in the fit that is to go on, got 4"),
        ({"schedule_every": "step"}, "schedule_every must be 'epoch'"),
        ({"scheduler": "by epoch"}, "scheduler must be None, .* got 'StepLR'"),
        ({"loader": data_loader()}, "loader must be 'list', .* got 'DataLoader'"),
        ({"loader": [tiny_batch(6)]}, "batches must be 3, .* got 1"),
    ],
)
def test_a_fit_with_other_arguments_is_refused(options, message):
    trainer, states = trainer_of(), []
    fit(trainer, "list", "none", between_steps=lambda: states.append(copy.deepcopy(trainer.state_dict())))
    other = trainer_of()
    other.load_state_dict(states[2])
    settings = {"loader": LOADERS["list"](), "epochs": 3} | options
    if "scheduler" in settings:
        settings["scheduler"] = SCHEDULERS[settings["scheduler"]][0](trainer_of().optimizer)
    with pytest.raises(ValueError, match=message):
        other.fit(**settings)
    assert_same(other.state_dict(), states[2])
    assert len(fit(other, "list", "none")) == 3, "called rightly, it goes on"


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_loader_that_has_become_shorter():
    trainer, states = trainer_of(), []
    trainer.fit(
        Unsized(LOADERS["list"]()), epochs=1, between_steps=lambda: states.append(copy.deepcopy(trainer.state_dict()))
    )
    other = trainer_of()
    other.load_state_dict(states[-1])
    with pytest.raises(ValueError, match="loader must give more than the 2 batches of this epoch that are done"):
        other.fit(Unsized(LOADERS["list"]()[:2]), epochs=1)


def changed(state, value, *path):
    """A copy with another value in one place; without the entry for `...`."""
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return state


@pytest.mark.parametrize(
    "value, path, message",
    [
        (..., ["model"], "state must have the keys 'model', 'average', 'optimizer'"),
        (..., ["model", "norm.running_mean"], "the first is 'norm.running_mean': float32 .6. here, nothing there"),
        (torch.zeros(7), ["model", "norm.running_mean"], "float32 .6. here, float32 .7. there"),
        (torch.zeros(6).double(), ["model", "norm.bias"], "float32 .6. here, float64 .6. there"),
        (torch.zeros(6), ["model", "more"], "1 of its tensors differ .* nothing here"),
        (3, ["model"], "state of the model must be a state dict, got int"),
        ("Adam", ["optimizer", "kind"], "state must be of a SGD as optimizer, got that of a Adam"),
        ({"state": {}, "param_groups": []}, ["optimizer", "state"], "as many parameters as this one has"),
        (torch.zeros(2), ["optimizer", "state", "state", 0, "momentum_buffer"], "3, 3, 3. in momentum_buffer of"),
        ({}, ["optimizer", "state", "state", 99], "a dict for each of 6 parameters, got dict for 99"),
        (None, ["joint"], "it has no joint part and this trainer has one"),
        (..., ["joint", "encoder"], r"networks \['encoder', 'generator'\], got \['generator'\]"),
        ("PGD", ["maximizer", "kind"], "state must be of a IMPAM as maximizer, got that of a PGD"),
        (None, ["maximizer"], "it has no maximizer part"),
        (2**41, ["maximizer", "noise", "offset"], "offset must be in"),
        (..., ["processes", 0, "engine", "guard"], "state of the engine must have the keys"),
        (-1, ["processes", 0, "engine", "twins_discarded"], "twins_discarded must be in"),
        ("int8", ["processes", 0, "engine", "guard", "dtype"], "must have one of bfloat16, float16 as its dtype"),
        (..., ["processes", 0, "engine", "guard", "history"], "state of the guard must have the keys"),
        (..., ["fit", "scheduler"], "state of the fit must have the keys 'progress' and 'scheduler'"),
        (None, ["average"], "it has no average part and this trainer has one"),
        (-1, ["average", "steps"], "steps of the average must be in"),
        (None, ["processes"], "state must be that which the first process saved, .* got NoneType"),
        (..., ["processes", 0, "random"], "state of a process must have the keys 'engine', 'random'"),
        (..., ["fit", "progress", "sums"], "state of the fit must have the keys 'settings'"),
        (-1, ["fit", "progress", "sums", "batches"], "batches of sums of the fit must be int"),
    ],
)
def test_states_that_do_not_fit_change_nothing(value, path, message):
    trainer, states = trainer_of(name="adt-imp-am", precision="bf16"), []
    trainer.fit(
        LOADERS["list"](), epochs=1, between_steps=lambda: states.append(copy.deepcopy(trainer.state_dict()))
    )
    other = trainer_of(seed=1, name="adt-imp-am", precision="bf16")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(changed(states[1], value, *path))
    assert_same(other.state_dict(), before)


def test_a_fused_step_after_loading_has_the_layout_of_the_weights():
    """Where a channels_last weight meets a contiguous momentum, a fused step of a CPU mixes up their elements."""
    def trainer(seed):
        torch.manual_seed(seed)
        model = TinyClassifier(seed=seed).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        return Trainer(model, optimizer, create_method("standard", model))

    one, other = trainer(0), trainer(1)
    one.step(*tiny_batch(6))
    tensors, structure = pack_state(one.state_dict())
    other.load_state_dict(unpack_state({name: tensor.contiguous() for name, tensor in tensors.items()}, structure))
    for both in (one, other):
        both.step(*tiny_batch(6, seed=2))
    assert_same(other.state_dict(), one.state_dict())


# The precision guard


def test_the_guard_takes_the_same_decisions():
    """16 bits given up, and taken again: in the same minibatches, with the same history, from wherever it goes on."""

    def engine(min_cosine):
        options = EngineOptions(precision="bf16", check_every=2, min_cosine=min_cosine, min_sign_agreement=0.0)
        return InputGradient(TinyClassifier(), options=options)

    def minibatches(engine, seeds):
        for seed in seeds:
            engine.model.load_state_dict(TinyClassifier(seed=seed).state_dict())
            yield engine(*tiny_batch(6, seed)).grad, json.loads(json.dumps(engine.state_dict()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        first = engine(-1.0)
        list(minibatches(first, range(12)))
        median = sorted(agreement.cosine for agreement in first.guard.history)[3]
        whole = engine(median)
        expected = list(minibatches(whole, range(12)))
        passed = [agreement.passed for agreement in whole.guard.history]
        assert len(passed) == 6 and passed.count(True) == 3
        for start in range(12):
            resumed = engine(median)
            resumed.load_state_dict(expected[start - 1][1] if start else engine(median).state_dict())
            assert_same(list(minibatches(resumed, range(start, 12))), expected[start:])
            assert resumed.guard.history == whole.guard.history


def test_twins_that_were_given_up_stay_so():
    """A model whose structure changes from one minibatch to the next: a resumed run does not try again."""
    def minibatches(engine, numbers):
        for number in numbers:
            engine.model.conv.padding_mode = ("zeros", "circular")[number % 2]
            engine(*tiny_batch(6))
            yield engine.twin is not None, json.loads(json.dumps(engine.state_dict()))

    whole = list(minibatches(InputGradient(TinyClassifier()), range(8)))
    assert [used for used, _ in whole] == [True] * 4 + [False] * 4
    for start in range(5, 8):
        resumed = InputGradient(TinyClassifier())
        resumed.load_state_dict(whole[start - 1][1])
        assert [used for used, _ in minibatches(resumed, range(start, 8))] == [used for used, _ in whole[start:]]


# BatchLoader


def test_an_epoch_from_any_batch_on():
    for first in range(4):
        whole, rest = batch_loader(), batch_loader()
        batches = list(rest.from_batch(first))
        assert_same(batches, list(whole)[first:])
        assert rest.epoch == 6
    for first, error in ((-1, ValueError), (4, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="first"):
            batch_loader().from_batch(first)


# The folder of a run


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    expected = finish(run_of("standard", folder / "whole"))
    with stopping(4), pytest.raises(Stopped):
        run_of("standard", folder / "run").train(progress=False)
    return folder, expected


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that was stopped in its fifth minibatch, and how one ends that was not."""
    folder, expected = stopped_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run", tmp_path / "whole", expected


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("place", [3, 100, 20000, -1, "short", "empty", "gone"])
def test_a_damaged_state_is_replaced_by_the_one_before(stopped, place):
    folder, whole, expected = stopped
    last = folder / "last.safetensors"
    if place == "gone":  # as between the two steps of a save; and the file of a killed writer
        last.unlink()
        (folder / ".model.safetensors.0.tmp").touch()
    elif isinstance(place, str):
        last.write_bytes(last.read_bytes()[:5000] if place == "short" else b"")
    else:
        damage(last, place)
    run = run_of("standard", folder, resume=True)
    assert run.stands_at == "epoch 2 of 2, minibatch 1 of 3"
    if place == "gone":
        assert run.warnings == []
    else:
        (warning,) = run.warnings
        assert str(last) in warning and "Going on from last.previous.safetensors, the state before" in warning
    assert_same(finish(run), expected)
    assert_same_results(folder, whole)


def test_a_damaged_state_never_takes_the_place_of_a_whole_one(stopped):
    """Killed in its first save, a run that fell back can fall back again."""
    folder, whole, expected = stopped
    damage(folder / "last.safetensors", 20000)
    previous = (folder / "last.previous.safetensors").read_bytes()
    with stopping(2), pytest.MonkeyPatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("adt_fast._runs.checkpoint.save_checkpoint", stop)
        finish(run_of("standard", folder, resume=True))
    assert (folder / "last.previous.safetensors").read_bytes() == previous
    assert_same(finish(run_of("standard", folder, resume=True)), expected)
    assert_same_results(folder, whole)


def test_only_damaged_states_are_an_error(stopped, capsys):
    folder, _, _ = stopped
    for name in ("last", "last.previous"):
        damage(folder / f"{name}.safetensors", 20000)
    before = contents(folder)
    assert cli.main(["train", "--output", "run", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "there is no whole state to go on from" in error
    assert "last.safetensors is damaged" in error and "last.previous.safetensors is damaged" in error
    assert before == contents(folder)


def test_a_file_of_something_else_is_an_error(stopped, capsys):
    folder, whole, _ = stopped
    (folder / "last.previous.safetensors").unlink()
    (folder / "last.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    assert cli.main(["train", "--output", "run", "--resume"]) == 2
    assert "but not of a training run under way" in capsys.readouterr().err


def test_a_state_that_is_gone_is_an_error(stopped, capsys):
    folder, _, _ = stopped
    for name in ("last", "last.previous"):
        (folder / f"{name}.safetensors").unlink()
    line = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(line * 2)
    assert cli.main(["train", "--output", "run", "--resume"]) == 2
    assert "has the metrics of a run, but neither its state" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_text() == line * 2


def test_metrics_that_are_gone_are_an_error(stopped, capsys):
    (stopped[0] / "metrics.jsonl").write_text("")
    assert cli.main(["train", "--output", "run", "--resume"]) == 2
    assert "metrics.jsonl must have at least the" in capsys.readouterr().err


def test_another_version_is_a_warning(stopped, capsys, monkeypatch):
    folder, whole, _ = stopped
    monkeypatch.setattr("adt_fast._runs.machine.__version__", "9.9")
    assert cli.main(["train", "--output", "run", "--resume"]) == 0
    assert "was saved with adt_fast 0.1.0, and this is 9.9: the run may differ" in capsys.readouterr().err
    assert logged(folder)[:-1] == logged(whole)


def test_a_state_under_other_settings_is_an_error(stopped, capsys):
    """config.yaml was changed by hand."""
    config = yaml.safe_load((stopped[0] / "config.yaml").read_text())
    config["config"]["momentum"] = 0.5
    (stopped[0] / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["train", "--output", "run", "--resume"]) == 2
    assert "momentum must be 0.9, as in run/last.safetensors" in capsys.readouterr().err


# The command

FLAGS = ["--model", "wrn-10-1", "--train-limit", "40", "--batch-size", "16", "--test-limit", "8", "--epochs", "2"]


def train(*flags):
    return cli.main(["train", *flags])


def test_resume_needs_no_other_flags(stopped, capsys):
    folder, whole, _ = stopped
    run_of("standard", whole, resume=True).evaluate()
    assert train("--output", "run", "--resume") == 0
    output = capsys.readouterr().out
    assert "going on at epoch 2 of 2, minibatch 2 of 3" in output and "epoch 2/2" in output
    assert_same_results(folder, whole)
    before = contents(folder)
    assert train("--output=run", "--resume") == 0
    again = capsys.readouterr().out
    assert "going on at the end" in again and again.split("\n\n")[1:] == output.split("\n\n")[1:]
    assert before == contents(folder), "a finished run is left alone"


def test_the_same_command_resumes(tmp_path):
    (tmp_path / "mine.yaml").write_text("method: at-pgd\nsteps: 2\nepsilon: 1/10\n")
    flags = [*FLAGS, "--config", "mine.yaml", "--device", "cpu", "--save-every", "0"]
    assert train(*flags, "--output", "whole") == 0
    with stopping(4), pytest.raises(Stopped):
        train(*flags, "--output", "run")
    assert train(*flags, "--output", "run", "--resume") == 0
    assert_same_results(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "3"], "epochs must be 2, as in run/config.yaml, for a resumed run keeps its settings; got 3"),
        (["--method", "adt-exp"], "method must be 'standard', as in run/config.yaml, .* got 'adt-exp'"),
        (["--dataset", "cifar10"], "dataset must be 'digits'"),
        (["--epsilon", "0.2"], "epsilon must be 0.15"),
        (["--test-limit", "9"], "test_limit must be 8"),
        (["--schedule", "step"], "schedule must be 'one-cycle'"),
        (["--label-smoothing", "0.1"], "label_smoothing must be 0.0"),
        (["--flip", "true"], "flip must be False"),
        (["--cutout", "2"], "cutout must be 0"),
        (["--extra-data", "more.npz"], "extra_data must be None"),
        (["--drop-last"], "drop_last must be False"),
        (["--validation-images", "8"], "validation_images must be 0"),
        (["--ema-decay", "0.5"], "ema_decay must be None"),
        (["--max-grad-norm", "1"], "max_grad_norm must be None"),
        (["--accumulation-steps", "2"], "accumulation_steps must be 1"),
        (["--tensorboard"], "tensorboard must be False"),
        (["--wandb", "mine"], "wandb must be None"),
        (["--samples", "3"], "samples is no option of method 'standard'"),
        (["--config", "cifar10-cpu"], "dataset must be 'digits'"),
        (["--save-every", "-1"], "save_every must be >= 0"),
    ],
)
def test_other_settings_are_refused(stopped, flags, message, capsys):
    before = contents(stopped[0])
    assert train("--output", "run", "--resume", *flags) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert before == contents(stopped[0])


def test_other_images_in_the_extra_file_are_refused(tmp_path):
    with stopping(4), pytest.raises(Stopped):
        run_of("all options", tmp_path / "run").train(progress=False)
    with np.load(extra_images()) as file:
        image, label = file["image"], file["label"]
    image[0, 0, 0] ^= 1
    np.savez(tmp_path / "extra.npz", image=image, label=label)
    shutil.copy(extra_images(), tmp_path / "kept.npz")
    before = contents(tmp_path / "run")
    shutil.copy(tmp_path / "extra.npz", extra_images())
    try:
        with pytest.raises(CheckpointError, match=r"last.safetensors .* extra_data must have the images that it had"):
            run_of("all options", tmp_path / "run", resume=True)
    finally:
        shutil.copy(tmp_path / "kept.npz", extra_images())
    assert before == contents(tmp_path / "run")
    run_of("all options", tmp_path / "run", resume=True)


def test_where_the_data_are_may_change(stopped):
    """It says nothing of what they are."""
    assert run_of("standard", stopped[0], resume=True, data_dir=stopped[0]).config.data_dir == stopped[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--resume"], "output must be given to resume a run"),
        (["--output", "nowhere", "--resume"], "nowhere has no config.yaml; without --resume a new run begins"),
        (["--output", "empty", "--resume"], "empty has no config.yaml"),
    ],
)
def test_folders_without_a_run(flags, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert train(*flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "runs").exists()


def test_resume_is_no_setting(tmp_path):
    assert train(*FLAGS, "--method", "standard", "--epochs", "1", "--output", "run", "--save-every", "7") == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["config"]
    assert not {"resume", "save_every"} & set(config)


@pytest.fixture
def ctrl_c():
    """Raises KeyboardInterrupt, also where a shell has started the tests in the background, with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("at, number", [(1, signal.SIGTERM), (2, signal.SIGINT), (5, signal.SIGINT)])
def test_a_signal_saves_after_the_minibatch(number, at, tmp_path, capsys, monkeypatch, ctrl_c):
    """In an epoch, in the last minibatch of one, and in the very last; the handlers are as before afterwards."""
    flags = [*FLAGS, "--method", "standard", "--device", "cpu"]
    assert train(*flags, "--output", "whole") == 0
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    step, steps = Trainer.step, []

    def interrupted(self, images, labels, **options):
        steps.append(1)
        if len(steps) == at + 1:
            os.kill(os.getpid(), number)
        return step(self, images, labels, **options)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert train(*flags, "--output", "my run") == 130
    assert "To go on: adt-fast train --output 'my run' --resume" in capsys.readouterr().err
    assert len(steps) == at + 1, "the minibatch is done, and no other"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert train("--output", "my run", "--resume") == 0
    assert len(steps) == STEPS, "what was done is not done again"
    assert_same_results(tmp_path / "my run", tmp_path / "whole")


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch, ctrl_c):
    def step(*batch, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("goes on")

    monkeypatch.setattr(Trainer, "step", step)
    assert train(*FLAGS, "--method", "standard", "--output", "run") == 130
    assert not (tmp_path / "run" / "last.safetensors").exists()


# Killed

KILLED = [*FLAGS, "--method", "adt-imp-am", "--generator-width", "4", "--device", "cpu", "--save-every", "0",
          "--train-limit", "48", "--validation-images", "8", "--ema-decay", "0.9", "--accumulation-steps", "2",
          "--max-grad-norm", "1", "--cutout", "3"]  # fmt: skip
PLACES = ["half written", "after the rename", "before the rename", "before the fsync", "before the replacement",
          "after the replacement", "in the last fsync"]  # fmt: skip


def run_in_a_process(arguments, aim):
    """What a process does: a command, which kills itself in a save if it is told so. aim: (number, place) or None."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    tqdm.set_lock(threading.RLock())  # the one it has by default is a semaphore, which a killed process leaves behind
    if aim is not None:
        aim_at_save(*aim)
    os._exit(cli.main(arguments))


def aim_at_save(number, place):
    """The process is killed in its save of that number, from 1."""
    save, write, fsync, replace = RunCheckpoint.save, checkpoint_file.atomic_file, os.fsync, os.replace
    saves = []

    def at(where):
        if len(saves) == number and place == where:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, state):
        saves.append([])
        return save(self, state)

    @contextmanager
    def halved(path):
        with write(path) as file:
            yield file
            if len(saves) == number and place == "half written":
                file.truncate(file.tell() // 2)
                at("half written")

    def noted_fsync(descriptor):
        if saves:
            saves[-1].append("fsync")
            at("in the last fsync" if "replace" in saves[-1] else "before the fsync")
        return fsync(descriptor)

    def noted_replace(source, target):
        renames = str(target).endswith("last.previous.safetensors")
        at("before the rename" if renames else "before the replacement")
        replace(source, target)
        if saves and not renames:
            saves[-1].append("replace")
        at("after the rename" if renames else "after the replacement")

    RunCheckpoint.save, checkpoint_file.atomic_file = counted, halved
    os.fsync, os.replace = noted_fsync, noted_replace


def start(context, arguments, aim=None):
    process = context.Process(target=run_in_a_process, args=(["train", *arguments], aim))
    process.start()
    return process


def begun(process, folder):
    """Waits until the run has a folder, without which there is nothing to resume; the process."""
    while process.is_alive() and not (folder / "config.yaml").exists():
        time.sleep(0.001)
    return process


def killed(context, arguments, folder, *, aim=None, after=None):
    """Whether a process was killed: in a save, or so many seconds after the run has begun."""
    process = start(context, arguments, aim)
    if aim is None:
        begun(process, folder).join(after)
        process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def minibatches_saved(folder):
    progress = RunCheckpoint(folder).load()["trainer"]["fit"]["progress"]
    return len(progress["results"]) * STEPS // 2 + progress["sums"]["batches"]


def kill_runs(tmp_path, monkeypatch, at_random, in_saves):
    """Kills runs so often, and resumes them. Gives how many kills there were, and how many of them left no trace."""
    # Processes are forked from one that has imported everything and run nothing; it finds modules by this alone.
    folders = [Path(module.__file__).parent for module in (cli, sys.modules[__name__])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folders[0].parent), str(folders[1])]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["adt_fast.cli", "test_resume", "sklearn.datasets"])
    whole = tmp_path / "whole"
    process = begun(start(context, [*KILLED, "--output", str(whole)]), whole)
    began, chance = time.perf_counter(), random.Random(0)
    process.join()
    seconds = time.perf_counter() - began

    def trial(name, aim=None):
        """How often a run was killed, once or twice, and whether it then ended as the one that nobody killed."""
        folder = tmp_path / name
        flags, resume = [*KILLED, "--output", str(folder)], ["--output", str(folder), "--resume"]
        kills = killed(context, flags, folder, aim=aim, after=chance.uniform(0, seconds))
        if aim is not None:
            assert kills, "the aim was missed"
            number, place = aim
            is_done = place in ("after the replacement", "in the last fsync")
            assert minibatches_saved(folder) == (number if is_done else number - 1), "more is lost than need be"
        if chance.random() < 0.3:
            kills += killed(context, resume, folder, after=chance.uniform(0, 2 * seconds))
        process = start(context, resume)
        process.join()
        try:
            assert process.exitcode == 0
            assert_same_results(folder, whole)
        except AssertionError:
            traceback.print_exc()
            return kills, 0
        return kills, kills

    kills = exact = 0
    for number in range(in_saves):
        # Every place, in every save but the first, which has none before it to rename.
        done, right = trial(f"save{number}", (2 + number % (STEPS - 1), PLACES[number % len(PLACES)]))
        kills, exact = kills + done, exact + right
    number = 0
    while kills < at_random + in_saves:
        done, right = trial(f"random{number}")
        kills, exact, number = kills + done, exact + right, number + 1
    return kills, exact


def test_killed_runs_are_resumed_exactly(tmp_path, monkeypatch):
    kills, exact = kill_runs(tmp_path, monkeypatch, 1, 2)
    assert kills == exact >= 3


@pytest.mark.slow
def test_a_hundred_killed_runs_are_resumed_exactly(tmp_path, monkeypatch, capsys):
    kills, exact = kill_runs(tmp_path, monkeypatch, 70, 30)
    with capsys.disabled():
        print(f"\n{exact} of {kills} resumed exactly, {kills - exact} lost")
    assert kills == exact >= 100
