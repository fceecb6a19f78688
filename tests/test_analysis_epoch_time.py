"""The arithmetic of epoch times, by a clock that the test moves; and real runs, whose times nobody looks at."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from adt_fast.analysis import EpochTimes, epoch_times
from adt_fast.analysis.epoch_time import FIGURE_6_METHODS, time_in_turns
from adt_fast.config import TrainConfig
from adt_fast.experiment import TrainingRun
from adt_fast.methods import method_names

SMALL = TrainConfig(train_limit=40, test_limit=4, batch_size=16, device="cpu", precision="fp32")


class Clock:
    """Stands still unless a call moves it."""

    def __init__(self):
        self.now = 100.0
        self.calls = []

    def __call__(self):
        return self.now

    def taking(self, name, *seconds):
        """A call that takes these times, one after another."""
        remaining = list(seconds)

        def call():
            self.calls.append(name)
            self.now += remaining.pop(0)

        return call


def test_turns_warmup_and_sums():
    clock = Clock()
    seconds = time_in_turns(
        {"a": clock.taking("a", 50, 1, 2, 3), "b": clock.taking("b", 60, 10, 20, 30)},
        minibatches=3, warmup=1, clock=clock,
    )  # fmt: skip
    assert seconds == {"a": (1, 2, 3), "b": (10, 20, 30)}
    assert "".join(clock.calls) == "abbaabba"


def example(**changes):
    fields = {
        "methods": ("standard", "at-pgd", "adt-exp"),
        "seconds": ((0.1, 0.3, 0.1), (1.0, 0.5, 0.6), (5.0, 2.0, 3.0)),
        "batches": 782.5,
        "settings": {},
        "machine": {},
    }
    return EpochTimes(**(fields | changes))


def test_epoch_arithmetic():
    times = example()
    assert times.epoch_seconds == pytest.approx((78.25, 469.5, 2347.5))
    assert times.spreads[1] == pytest.approx((391.25, 782.5))
    assert times.relative == pytest.approx((1 / 6, 1.0, 5.0))
    assert times.table()[3] == ("adt-exp", *map(pytest.approx, (2347.5, 1565.0, 3912.5, 5.0)))
    assert times.to_dict()["over_at-pgd"] == pytest.approx([1 / 6, 1.0, 5.0])
    assert example(methods=("a", "b", "c")).relative == (None, None, None)


def test_files(tmp_path):
    pytest.importorskip("matplotlib")
    assert len(example().save(tmp_path).files) == 4
    assert len(example(methods=("a", "b", "c")).save(tmp_path).files) == 4


def test_real_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batches = []
    monkeypatch.setattr(
        "adt_fast.trainer.Trainer.step", lambda self, images, labels, **options: batches.append((self, len(images)))
    )
    times = epoch_times(SMALL, ("standard", "at-pgd"), minibatches=3, warmup=2)
    assert times.methods == ("standard", "at-pgd") and all(len(seconds) == 3 for seconds in times.seconds)
    assert times.batches == 40 / 16
    assert len(batches) == 2 * 5 and {size for _, size in batches} == {16}, "full ones, though there are 2 an epoch"
    assert all(value > 0 for seconds in times.seconds for value in seconds)
    assert times.settings["model"] == "small-cnn" and times.settings["batch_size"] == 16
    assert "method" not in times.settings and "output" not in times.settings
    assert times.machine["adt_fast"]["torch"] == torch.__version__
    assert not any(tmp_path.iterdir()), "no run folder is left"


@pytest.mark.parametrize(
    "options, images",
    [({}, 40), ({"drop_last": True}, 32), ({"extra": True}, 70), ({"extra": True, "extra_fraction": 0.75}, 160)],
)
def test_an_epoch_has_the_minibatches_that_its_loader_gives(options, images, tmp_path, monkeypatch):
    """With 3 of 4 images from extra data, 40 of the data are in minibatches of 160 images."""
    if options.pop("extra", False):
        file = tmp_path / "more.npz"
        np.savez(file, image=np.zeros((30, 8, 8, 1), dtype=np.uint8), label=np.zeros(30, dtype=np.int64))
        options["extra_data"] = file
    monkeypatch.setattr("adt_fast.trainer.Trainer.step", lambda self, *batch: None)
    times = epoch_times(replace(SMALL, **options), ("standard",), minibatches=1, warmup=1)
    assert times.batches == images / 16


def test_runs_are_closed_and_have_no_loggers(monkeypatch):
    """However it ends: also where a run cannot be made, or a step fails."""
    opened, closed, loggers = [], [], []
    make, close = TrainingRun.__init__, TrainingRun.close

    def made(self, *arguments, **options):
        make(self, *arguments, **options)
        opened.append(self)
        loggers.extend(self.folder.loggers)

    monkeypatch.setattr(TrainingRun, "__init__", made)
    monkeypatch.setattr(TrainingRun, "close", lambda self: closed.append(self) or close(self))
    config = replace(SMALL, tensorboard=True, wandb="adt")
    epoch_times(config, ("standard", "at-pgd"), minibatches=1, warmup=1)
    assert len(opened) == 2 and set(closed) == set(opened) and loggers == []

    monkeypatch.setattr("adt_fast.trainer.Trainer.step", lambda self, *batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        epoch_times(config, ("standard", "at-pgd"), minibatches=1, warmup=1)
    assert len(opened) == 4 and set(closed) == set(opened)


def test_the_papers_methods_take_steps():
    assert set(FIGURE_6_METHODS) <= set(method_names())
    config = TrainConfig(train_limit=16, test_limit=4, batch_size=4, device="cpu")
    times = epoch_times(config, minibatches=1, warmup=1)
    assert times.methods == FIGURE_6_METHODS
    assert times.epoch_seconds[1] == statistics.median(times.seconds[1]) * 4


def test_a_method_takes_the_options_it_has(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "adt_fast.trainer.Trainer.step", lambda self, *batch: seen.setdefault(id(self), self.method.maximizer)
    )
    epoch_times(replace(SMALL, steps=3, samples=2), ("standard", "at-pgd", "adt-exp"), minibatches=1, warmup=1)
    standard, at_pgd, adt_exp = seen.values()
    assert standard is None and (at_pgd.steps, adt_exp.steps, adt_exp.samples) == (3, 3, 2)
    with pytest.raises(ValueError, match="samples is no option of any of the methods standard, at-pgd"):
        epoch_times(replace(SMALL, steps=3, samples=2), ("standard", "at-pgd"))


@pytest.mark.parametrize(
    "methods, options, message",
    [
        (("standard",), {"minibatches": 0}, "minibatches must be in"),
        (("standard",), {"warmup": 0}, "warmup must be in"),
        ((), {}, "methods must be one or more different names"),
        (("standard", "standard"), {}, "methods must be one or more different names"),
        (("adt-expp",), {}, "did you mean 'adt-exp'"),
    ],
)
def test_bad_arguments(methods, options, message):
    with pytest.raises(ValueError, match=message):
        epoch_times(SMALL, methods, **options)


def test_a_batch_that_is_never_full():
    config = TrainConfig(train_limit=8, test_limit=4, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="batch_size must be at most 8"):
        epoch_times(config, ("standard",))
