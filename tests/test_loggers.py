"""Metrics elsewhere: the same numbers as in metrics.jsonl, once, also of resumed runs; no harm to a run if it fails.

The packages are stood in for, but for one test of each with the real one where it is installed.
"""

import json
import sys
import warnings
from types import SimpleNamespace

import pytest

from adt_fast._runs.folder import RunFolder
from adt_fast.loggers import Logger, TensorBoardLogger, WandbLogger

ACCURACIES = {"natural": {"correct": 3, "total": 4}, "pgd-20": {"correct": 1, "total": 4}}
EVENTS = [
    {"event": "epoch", "epoch": 1, "loss": 2.0, "images": 96},
    {"event": "engine", "twin": "on, fused"},
    {"event": "precision", "minibatch": 0, "cosine": 0.5, "passed": True},
    {"event": "epoch", "epoch": 2, "loss": 1.0, "images": 96},
    {"event": "validation", "epoch": 2, "natural": {"correct": 1, "total": 2}},
    {"event": "test", **ACCURACIES},
]


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config({"device": "cpu"})
    return folder


def log(folder, events):
    for event in events:
        folder.log(**event)


class FakeWriter:
    """A SummaryWriter that notes what it is told."""

    def __init__(self, path, purge_step):
        self.path, self.purge_step, self.scalars, self.flushed, self.is_closed = path, purge_step, [], 0, False
        FakeWriter.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        self.flushed = len(self.scalars)

    def close(self):
        self.is_closed = True


class FakeRun:
    """A run of W&B that has come to a step."""

    def __init__(self, step=0):
        self.step, self.history, self.summary, self.is_finished = step, [], {}, False

    def log(self, values, step):
        self.step = step
        self.history.append((step, values))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def writers(monkeypatch):
    FakeWriter.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=FakeWriter))
    return FakeWriter.made


@pytest.fixture
def wandb(monkeypatch):
    """W&B, whose run is its `run`; `inits` are what it was asked for."""
    module = SimpleNamespace(run=FakeRun(), inits=[], Settings=lambda **settings: settings)
    module.init = lambda **options: module.inits.append(options) or module.run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


# What is written


def test_tensorboard_gets_the_numbers(folder, writers):
    folder.loggers.append(TensorBoardLogger(folder.path))
    assert writers == [], "nothing is there before there is anything to write"
    log(folder, EVENTS)
    (writer,) = writers
    assert (writer.path, writer.purge_step) == (str(folder.path / "tensorboard"), 1)
    assert writer.scalars == [
        ("epoch/loss", 2.0, 1), ("epoch/images", 96, 1),
        ("precision/minibatch", 0, 1), ("precision/cosine", 0.5, 1), ("precision/passed", True, 1),
        ("epoch/loss", 1.0, 2), ("epoch/images", 96, 2), ("validation/natural", 0.5, 2),
        ("test/natural", 0.75, 2), ("test/pgd-20", 0.25, 2),
    ]  # fmt: skip
    assert writer.flushed == len(writer.scalars), "a kill loses nothing"
    folder.close()
    assert writer.is_closed


@pytest.mark.parametrize("event, first", [(EVENTS[3], 2), (EVENTS[4], 3), (EVENTS[5], 3)])
def test_tensorboard_forgets_what_is_done_again(event, first, folder, writers):
    log(folder, EVENTS[:4] if event["event"] != "epoch" else EVENTS[:1])
    folder.loggers.append(TensorBoardLogger(folder.path))
    folder.log(**event)
    assert writers[0].purge_step == first


def test_wandb_gets_the_numbers(folder, wandb):
    folder.loggers.append(WandbLogger(folder.path, "mine", None, {"epochs": 2}))
    log(folder, EVENTS)
    (asked,) = wandb.inits
    assert (asked["project"], asked["name"], asked["config"], asked["resume"], asked["dir"]) == (
        "mine", "run", {"epochs": 2}, "allow", str(folder.path),
    )  # fmt: skip
    assert asked["settings"]["silent"] and asked["settings"]["console"] == "off"
    assert wandb.run.history == [
        (1, {"epoch/loss": 2.0, "epoch/images": 96}),
        (2, {"epoch/loss": 1.0, "epoch/images": 96}),
        (2, {"validation/natural": 0.5}),
    ]
    assert wandb.run.summary == {
        "engine/twin": "on, fused", "precision/minibatch": 0, "precision/cosine": 0.5, "precision/passed": True,
        "test/natural": 0.75, "test/pgd-20": 0.25,
    }  # fmt: skip
    folder.close()
    assert wandb.run.is_finished


def test_wandb_goes_on_in_the_same_run(folder, wandb):
    WandbLogger(folder.path, "mine", "called so", {})
    wandb.run = FakeRun(step=2)  # as a resumed one: behind its last
    logger = WandbLogger(folder.path, "mine", "called so", {})
    for event in (EVENTS[0], EVENTS[3]):
        logger(event)
    one, other = (asked["id"] for asked in wandb.inits)
    assert one == other == (folder.path / "wandb_id").read_text() and one.isalnum()
    assert {asked["name"] for asked in wandb.inits} == {"called so"}
    assert [step for step, _ in wandb.run.history] == [2], "what it has is not given again"
    WandbLogger(RunFolder(folder.path.parent / "another").path, "mine", None, {})
    assert wandb.inits[-1]["id"] != one


# What goes wrong


@pytest.mark.parametrize("missing", ["torch.utils.tensorboard", "tensorboard"])
def test_a_missing_tensorboard_is_an_error_that_names_the_extra(missing, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "adt_fast\[tensorboard\]"'):
        TensorBoardLogger(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_missing_wandb_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'pip install "adt_fast\[wandb\]"'):
        WandbLogger(tmp_path, "mine", None, {})
    assert not any(tmp_path.iterdir())


class Failing(Logger):
    name = "Nowhere"

    def _write(self, event):
        raise OSError("no network")

    def _close(self):
        raise OSError("no network")


def test_a_logger_that_fails_warns_once_and_the_run_goes_on(folder):
    taken = []
    folder.loggers += [failing := Failing(), taken.append]
    with pytest.warns(RuntimeWarning, match="^Nowhere is missing metrics, .*OSError: no network.* goes on$") as found:
        log(folder, EVENTS)
        failing(EVENTS[0])
        folder.loggers.pop()
        folder.close()
    assert len(found) == 1 and len(taken) == len(EVENTS)
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert lines == taken, "loggers get the very lines"


def test_failures_of_the_packages_are_warnings(folder, wandb, writers, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr(FakeWriter, "flush", fail)
    with pytest.warns(RuntimeWarning, match="TensorBoard is missing metrics"):
        TensorBoardLogger(folder.path)(EVENTS[0])
    wandb.init = fail
    with pytest.warns(RuntimeWarning, match="Weights & Biases is missing metrics"):
        logger = WandbLogger(folder.path, "mine", None, {})
    with warnings.catch_warnings(record=True) as found:
        logger(EVENTS[0])
        logger.close()
    assert not found


# The real ones


def test_tensorboard_reads_it_back(folder, capfd):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    capfd.readouterr()
    for resume, events in ((False, EVENTS[:4]), (True, EVENTS[3:])):
        run = RunFolder(folder.path, resume=True) if resume else folder
        run.loggers.append(TensorBoardLogger(run.path))
        log(run, events)  # not closed: the second is killed, too
    assert capfd.readouterr() == ("", "")
    found = reader.EventAccumulator(str(folder.path / "tensorboard"))
    found.Reload()
    scalars = {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert scalars["epoch/loss"] == [(1, 2.0), (2, 1.0)], "the second epoch stands there once"
    assert scalars["test/pgd-20"] == [(2, 0.25)] and scalars["validation/natural"] == [(2, 0.5)]


def test_wandb_offline(folder, capfd, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for events in (EVENTS[:4], EVENTS[3:]):
        run = RunFolder(folder.path, resume=True)
        run.loggers.append(WandbLogger(run.path, "mine", None, {"epochs": 2}))
        log(run, events)
        run.close()
    assert capfd.readouterr() == ("", "")
    name = (folder.path / "wandb_id").read_text()
    files = list((folder.path / "wandb").glob("offline-run-*/*.wandb"))
    assert files and {file.name for file in files} == {f"run-{name}.wandb"}
    content = b"".join(file.read_bytes() for file in sorted(files))
    assert b"epoch/loss" in content and b"test/pgd-20" in content
