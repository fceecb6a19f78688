"""Faults from outside, one after the other: full and read-only disks, data and models that go wrong in the middle.

Each ends in a clear error, with what was there before still there, whole and bit for bit.
"""

from __future__ import annotations

import builtins
import copy
import errno
import io
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream, cli, evaluation
from adt_fast._runs.checkpoint import RunCheckpoint
from adt_fast.attacks import EXP, PGD
from adt_fast.attacks.base import Attack
from adt_fast.checkpoint import load_checkpoint, load_model, save_checkpoint
from adt_fast.methods import create_method
from adt_fast.trainer import Trainer
from adt_fast.validation import Validated

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")

TRAIN = ["train", "--method", "standard", "--model", "wrn-10-1", "--train-limit", "40", "--test-limit", "8",
         "--batch-size", "16", "--epochs", "2", "--device", "cpu", "--output", "run"]  # fmt: skip


def trainer_of(method: str = "adt-exp", learning_rate: float = 0.05, model: nn.Module | None = None) -> Trainer:
    model = TinyClassifier() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    options = {"steps": 1, "samples": 1} if method == "adt-exp" else {}
    return Trainer(model, optimizer, create_method(method, model, epsilon=0.1, noise=NoiseStream(1), **options))


def state_of(trainer: Trainer) -> list[Any]:
    """Weights, optimizer, noise, modes and flags."""
    modules, parameters = trainer.model.modules(), trainer.model.parameters()
    return [copy.deepcopy(trainer.state_dict()), [module.training for module in modules],
            [parameter.requires_grad for parameter in parameters]]  # fmt: skip


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other):
            assert_same(mine, theirs)
    else:
        assert one == other


# ---- Disks -------------------------------------------------------------------------------------------------------


class Disk:
    """Where files are written: counts what reaches it, and refuses from the n-th time on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int = errno.ENOSPC) -> None:
        self.error, self.calls, self.refuses_at = error, 0, math.inf
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "truncate")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        monkeypatch.setattr(builtins, "open", self._opened(builtins.open))
        monkeypatch.setattr(io, "open", self._opened(io.open))

    def _reach(self) -> None:
        self.calls += 1
        if self.calls > self.refuses_at:
            raise OSError(self.error, os.strerror(self.error), "a file of the run")

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._reach()
            return call(*arguments, **options)

        return counted

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return call(file, mode, *arguments, **options)
            self._reach()
            stream = call(file, mode, *arguments, **options)
            write = self._counted(stream.write)
            if "b" in mode:  # the write of such a file cannot be set
                return _Writing(stream, write)
            stream.write = write
            return stream

        return opened


class _Writing:
    """A file with another way of writing."""

    def __init__(self, stream: Any, write: Callable[[Any], int]) -> None:
        self._stream, self.write = stream, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()


def test_a_disk_that_is_full_at_any_moment_keeps_the_checkpoint_before(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = {"a": torch.zeros(1000)}, {"a": torch.ones(2000)}
    save_checkpoint("a.safetensors", old, {"epoch": 1})
    disk = Disk(monkeypatch)
    save_checkpoint("b.safetensors", new, {})
    needed, failures = disk.calls, 0
    assert needed >= 4  # open, write, fsync, replace
    for moment in range(needed):
        disk.calls, disk.refuses_at = 0, moment
        try:
            save_checkpoint("a.safetensors", new, {"epoch": 2})
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failures += 1
        tensors, metadata = load_checkpoint("a.safetensors")
        assert (len(tensors["a"]), metadata) in ((1000, {"epoch": 1}), (2000, {"epoch": 2}))
        assert metadata["epoch"] == 1 or moment == needed - 1  # the folder's own fsync comes after the name
        assert {path.name for path in Path().iterdir()} == {"a.safetensors", "b.safetensors"}
    assert failures == needed


def test_a_disk_that_is_full_at_any_moment_keeps_a_state_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "weights": [torch.full((500,), float(epoch))]}

    disk = Disk(monkeypatch)
    checkpoint = RunCheckpoint(Path())
    for epoch in (1, 2):
        disk.calls = 0
        checkpoint.save(state(epoch))
    for moment in range(disk.calls):
        for path in Path().iterdir():
            path.unlink()
        disk.refuses_at = math.inf
        checkpoint = RunCheckpoint(Path())
        checkpoint.save(state(1))
        disk.calls, disk.refuses_at = 0, moment
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(state(2))
        disk.refuses_at = math.inf
        found = RunCheckpoint(Path()).load()
        assert_same(found, state(found["epoch"]))
        checkpoint.save(state(3))  # once there is space again
        assert RunCheckpoint(Path()).load()["epoch"] == 3
        assert not list(Path().glob(".*.tmp"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], int]:
    """The weights of a run that no disk has stopped, and how often it reached for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("unbroken"))
        torch.set_num_threads(1)
        disk = Disk(patch)
        assert cli.main([*TRAIN, "--save-every", "0"]) == 0
        return load_checkpoint("run/model.safetensors")[0], disk.calls


def status_of(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("error", "share"),
    [(errno.ENOSPC, share) for share in (0.0, 0.05, 0.3, 0.55, 0.97)] + [(errno.EROFS, share) for share in (0.0, 0.4)],
)
def test_a_run_on_a_disk_that_fails_stops_with_one_line_and_resumes(
    error: int, share: float, unbroken: tuple[dict[str, torch.Tensor], int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    weights, calls = unbroken
    with monkeypatch.context() as patch:
        disk = Disk(patch, error)
        disk.refuses_at = int(share * calls)
        assert status_of([*TRAIN, "--save-every", "0"]) in (1, 2)
    told = capsys.readouterr().err
    assert os.strerror(error) in told and "Traceback" not in told
    last_lines = [line for line in told.splitlines() if os.strerror(error) in line]
    assert len(last_lines) == 1 and "error" in last_lines[0]
    if (tmp_path / "run" / "config.yaml").exists():
        assert status_of([*TRAIN, "--save-every", "0", "--resume"]) == 0
    else:  # it had not begun
        assert status_of([*TRAIN, "--save-every", "0"]) == 0
    assert_same(load_checkpoint(tmp_path / "run" / "model.safetensors")[0], weights)


class FullFor:
    """A disk that is full for files of a name: from the n-th writing on, half of what is written arrives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, writing: int) -> None:
        self.name, self.left = name, writing
        for owner in (builtins, io):
            monkeypatch.setattr(owner, "open", self._opened(owner.open))

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            stream = call(file, mode, *arguments, **options)
            if self.name not in str(file) or not set(mode) & set("wax+"):
                return stream
            write = stream.write

            def half_written(content: Any) -> int:
                self.left -= 1
                if self.left >= 0:
                    return write(content)
                write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # which names no file

            return _Writing(stream, half_written)

        return opened


VALIDATED = [*TRAIN, "--validation-images", "8", "--validation-attack", "fgsm", "--save-every", "0",
             "--ema-decay", "0.9"]  # fmt: skip


def results_of(run: Path) -> list[Any]:
    """Models, and metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in ("time", "seconds")} for line in lines]
    return [metrics, *(load_checkpoint(run / name)[0] for name in ("model.safetensors", "best.safetensors"))]


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with validation that no disk has stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("validated"))
        patch.setattr(Validated, "is_better_than", lambda *_: True)
        torch.set_num_threads(1)
        assert cli.main(VALIDATED) == 0
        return Path("run").absolute()


@pytest.mark.parametrize(
    ("name", "writing", "epochs_saved"),
    [("best.safetensors", 0, 0), ("best.safetensors", 1, 1), ("metrics.jsonl", 0, 0), ("metrics.jsonl", 3, 1),
     ("metrics.jsonl", 4, None), ("last.safetensors", 3, 1), ("model.safetensors", 0, 2)],
)  # fmt: skip
def test_a_disk_that_is_full_for_one_file_of_a_run_costs_nothing_that_was_saved(
    name: str, writing: int, epochs_saved: int | None, validated: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Path("run")
    monkeypatch.setattr(Validated, "is_better_than", lambda *_: True)  # every epoch writes the best model
    with monkeypatch.context() as patch:
        FullFor(patch, name, writing)
        assert status_of(VALIDATED) == 1
    told = capsys.readouterr().err
    assert f"error: [Errno {errno.ENOSPC}]" in told and name in told and "Traceback" not in told
    assert not list(run.glob(".*.tmp"))
    if name == "best.safetensors" and writing:
        assert load_model(run / name)[1]["extra"]["validation"]["epoch"] == writing  # the one before
    state = RunCheckpoint(run).load()
    if epochs_saved is None:  # after training, whose result is there
        assert state is None and load_checkpoint(run / "model.safetensors")
    else:
        progress = state["trainer"]["fit"]["progress"]
        assert len(progress["results"]) == epochs_saved and (progress["sums"]["batches"] > 0 or epochs_saved == 2)
    assert status_of([*VALIDATED, "--resume"]) == 0
    assert_same(results_of(run), results_of(validated))


@pytest.mark.parametrize("name", ["state.safetensors", "report.json", "report.md", "report.html"])
def test_a_disk_that_is_full_for_a_report_costs_no_attack(
    name: str, validated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "report.html":
        pytest.importorskip("matplotlib")
        pytest.importorskip("jinja2")
    words = ["evaluate", str(validated), "--attacks", "fgsm,pgd-2", "--test-limit", "8", "--device", "cpu"]
    assert cli.main([*words, "--output", "undisturbed"]) == 0
    files = sorted(path.name for path in Path("undisturbed").glob("[!.]*"))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        FullFor(patch, name, 0)
        assert status_of([*words, "--output", "report"]) == 1
    told = capsys.readouterr().err
    assert f"error: [Errno {errno.ENOSPC}]" in told and name in told and "Traceback" not in told
    there = {path.name for path in Path("report").glob("*")} - {".lock"}
    assert name not in there and there <= set(files)
    before = [f for f in ("state.safetensors", "report.json", "report.md", "report.html") if f in files]
    assert there == set(before[: before.index(name)])
    with monkeypatch.context() as patch:
        if there:
            patch.setattr(Attack, "__call__", lambda *_: pytest.fail("attacked again"))
        assert status_of([*words, "--output", "report", *(["--resume"] if there else [])]) == 0
    for file in files:
        if file != "state.safetensors":
            assert (Path("report") / file).read_bytes() == (Path("undisturbed") / file).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_indeed(small_disk: Path) -> None:
    path = small_disk / "a.safetensors"
    save_checkpoint(path, {"a": torch.zeros(20_000)}, {"epoch": 1})
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"a": torch.ones(60_000)}, {"epoch": 2})
    tensors, metadata = load_checkpoint(path)
    assert metadata == {"epoch": 1} and not tensors["a"].any() and list(small_disk.iterdir()) == [path]


# ---- Data --------------------------------------------------------------------------------------------------------

NAN = math.nan
BATCH = tiny_batch(4)
BAD_BATCHES: dict[str, tuple[Any, str]] = {
    "NaN": ((torch.full_like(BATCH[0], NAN), BATCH[1]), "images"),
    "one NaN": ((BATCH[0].clone().index_put((torch.tensor(0),) * 4, torch.tensor(NAN)), BATCH[1]), "images"),
    "inf": ((BATCH[0] + math.inf, BATCH[1]), "images"),
    "of 255": ((BATCH[0] * 255, BATCH[1]), "images"),
    "below 0": ((BATCH[0] - 0.5, BATCH[1]), "images"),
    "no images": ((BATCH[0][:0], BATCH[1][:0]), "images"),
    "other channels": ((BATCH[0][:, :1], BATCH[1]), "images|model"),
    "other size": ((BATCH[0][..., :-1], BATCH[1]), "images|model"),
    "bytes": (((BATCH[0] * 255).to(torch.uint8), BATCH[1]), "images"),
    "label too large": ((BATCH[0], BATCH[1] + 4), "labels"),
    "label below 0": ((BATCH[0], BATCH[1] - 4), "labels"),
    "float labels": ((BATCH[0], BATCH[1].float()), "labels"),
    "int32 labels": ((BATCH[0], BATCH[1].int()), "labels"),
    "a label less": ((BATCH[0], BATCH[1][:-1]), "labels"),
    "triple": ((*BATCH, 1), "loader|data"),
    "dict": ({"images": BATCH[0], "labels": BATCH[1]}, "loader|data"),
    "None": (None, "loader|data"),
    "tensor": (BATCH[0], "loader|data"),
    "lists": ((BATCH[0].tolist(), BATCH[1].tolist()), "images|data"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", BAD_BATCHES)
def test_bad_batches_change_nothing(flaw: str) -> None:
    bad, named = BAD_BATCHES[flaw]
    trainer = trainer_of()
    trainer.step(*BATCH)
    before = state_of(trainer)
    with pytest.raises((TypeError, ValueError), match=rf"\b({named})\b"):
        trainer.fit([bad], epochs=1, progress=False)
    assert_same(state_of(trainer), before)
    with pytest.raises((TypeError, ValueError), match=rf"\b({named})\b"):
        evaluation.evaluate(trainer.model, [bad], "fgsm", progress=None)
    assert_same(state_of(trainer), before)
    if isinstance(bad, tuple) and len(bad) == 2:
        others = PGD(trainer.model, 0.1, noise=NoiseStream(2)), EXP(trainer.model, 0.1, noise=NoiseStream(2))
        for attack in (trainer.method.maximizer, *others):
            noise = attack.noise.state_dict()
            for call in (attack, trainer.step) if attack is trainer.method.maximizer else (attack,):
                with pytest.raises((TypeError, ValueError), match=rf"\b({named})\b"):
                    call(*bad)
            assert attack.noise.state_dict() == noise
        assert_same(state_of(trainer), before)


IMAGES = (np.arange(3 * 64) % 256).astype(np.uint8).reshape(3, 8, 8, 1)
LABELS = np.array([0, 9, 3])
BAD_EXTRA_DATA: dict[str, tuple[Any, str]] = {
    "label too large": ({"label": LABELS + 1}, "'label' must be from 0 to 9, got 1 to 10"),
    "label below 0": ({"label": LABELS - 1}, "'label' must be from 0 to 9, got -1 to 8"),
    "NaN label": ({"label": np.array([0, NAN, 1])}, "'label' must be an array of integers"),
    "a label less": ({"label": LABELS[1:]}, "'label' must be an array of integers [3]"),
    "NaN": ({"image": np.full(IMAGES.shape, NAN)}, "'image' must be a uint8 array"),
    "in [0, 1]": ({"image": (IMAGES / 255).astype(np.float32)}, "'image' must be a uint8 array"),
    "of another size": ({"image": IMAGES[:, 1:]}, "'image' must be a uint8 array [N, 8, 8, 1]"),
    "none": ({"image": IMAGES[:0], "label": LABELS[:0]}, "N of at least 1"),
    "pickled": ({"label": np.array([0, "x", None], dtype=object)}, "'label' must be an array of integers"),
    "without labels": ({"label": None}, "'label' is missing"),
    "cut short": (300, "damaged"),
    "missing": (None, "No such file"),
}


@pytest.mark.parametrize("flaw", BAD_EXTRA_DATA)
def test_bad_extra_data_are_told_in_a_line_before_a_folder_is_made(
    flaw: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, told = BAD_EXTRA_DATA[flaw]
    arrays = {"image": IMAGES, "label": LABELS} | (changes if isinstance(changes, dict) else {})
    path = Path("made.npz")
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    if changes is None:
        path.unlink()
    elif isinstance(changes, int):
        path.write_bytes(path.read_bytes()[:changes])
    assert status_of([*TRAIN, "--dataset", "digits", "--extra-data", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and not Path("run").exists()
    assert said.err.startswith("adt-fast: error: ") and str(path) in said.err and told in said.err


def test_a_bad_batch_after_a_good_one_leaves_what_the_good_one_gave() -> None:
    trainer, alone = trainer_of(), trainer_of()
    alone.step(*BATCH)
    with pytest.raises(ValueError, match="images"):
        trainer.fit([BATCH, BAD_BATCHES["NaN"][0]], epochs=1, progress=False)
    assert_same(state_of(trainer), state_of(alone))


class _Broken(Exception):
    pass


def test_a_loader_that_raises_in_the_middle_is_heard() -> None:
    def loader() -> Iterator[Any]:
        yield BATCH
        raise _Broken("a disk of the loader's")

    trainer, alone = trainer_of(), trainer_of()
    alone.step(*BATCH)
    with pytest.raises(_Broken, match="a disk of the loader's"):
        trainer.fit(loader(), epochs=1, progress=False)
    assert_same(state_of(trainer), state_of(alone))
    with pytest.raises(_Broken):
        evaluation.evaluate(trainer.model, loader(), "fgsm", progress=None)
    assert_same(state_of(trainer), state_of(alone))


# ---- Models and losses -------------------------------------------------------------------------------------------


def test_a_loss_that_blows_up_leaves_the_weights_before_that_step() -> None:
    trainer = trainer_of("standard", learning_rate=3e38)
    for _ in range(20):
        before = copy.deepcopy(trainer.state_dict()["optimizer"]), [p.clone() for p in trainer.model.parameters()]
        try:
            trainer.step(*BATCH)
        except FloatingPointError as error:
            assert "loss is" in str(error) and "learning rate" in str(error)
            assert_same([trainer.state_dict()["optimizer"], list(trainer.model.parameters())], list(before))
            return
    raise AssertionError("the loss stays finite, whatever the learning rate")


class _Gives(nn.Module):
    """A model that makes something of its logits."""

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.make = TinyClassifier(), make

    def forward(self, images: torch.Tensor) -> Any:
        return self.make(self.inner(images))


@pytest.mark.parametrize(
    "make",
    [
        lambda logits: logits[0], lambda logits: logits[..., None], lambda logits: (logits, logits),
        lambda logits: None, lambda logits: logits.detach().numpy(), lambda logits: {"logits": logits},
        lambda logits: torch.cat([logits, logits]),
    ],
    ids=["vector", "3-d", "pair", "None", "array", "dict", "twice as many"],
)  # fmt: skip
def test_a_model_that_gives_no_logits(make: Callable[[torch.Tensor], Any]) -> None:
    trainer = trainer_of(model=_Gives(make))
    before = state_of(trainer)
    for call in (
        lambda: trainer.step(*BATCH), lambda: trainer.method.maximizer(*BATCH),
        lambda: evaluation.evaluate(trainer.model, [BATCH], "fgsm", progress=None),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=r"\b(model|logits)\b"):
            call()
        assert_same(state_of(trainer), before)


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_model_whose_logits_are_not_finite(value: float) -> None:
    trainer = trainer_of(model=_Gives(lambda logits: logits * value))
    weights = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(FloatingPointError):
        trainer.step(*BATCH)
    assert_same(list(trainer.model.parameters()), weights)
    with pytest.raises(FloatingPointError):
        trainer.method.maximizer(*BATCH)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = TinyClassifier()
    optimizer = torch.optim.SGD(TinyClassifier().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer .*parameters"):
        Trainer(model, optimizer, create_method("standard", model))
    Trainer(model, torch.optim.SGD(model.fc.parameters(), lr=0.1), create_method("standard", model))  # some of them
