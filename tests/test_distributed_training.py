"""Training in two processes is training in one: same data, noise, gradients, results and files; and it ends in time."""

from __future__ import annotations

import copy
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from plain_adt import TinyClassifier, tiny_batch
from test_docs_examples import ROOT, blocks
from test_resume import Stopped, assert_same_results, logged, stopping
from torch.nn.parallel import DistributedDataParallel
from two_processes import SIZE, Failed, Torchrun, TwoProcesses

from adt_fast import NoiseStream, cli
from adt_fast._runs.checkpoint import RunCheckpoint
from adt_fast.checkpoint import load_checkpoint, pack_state
from adt_fast.commands.train import _how_to_go_on as how_to_go_on
from adt_fast.config import TrainConfig
from adt_fast.data import BatchLoader, ImageData, load_dataset
from adt_fast.evaluation import evaluate
from adt_fast.experiment import TrainingRun
from adt_fast.input_gradient import FLOAT32
from adt_fast.methods import create_method, method_names, method_spec
from adt_fast.models import convert_sync_batchnorm, create_model
from adt_fast.processes import Processes
from adt_fast.trainer import ADTExpTrainer, Trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own"),
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    processes = TwoProcesses(tmp_path_factory.mktemp("two"))
    yield processes
    processes.close()


# Steps

SIZES = [7, 6, 5]
"""Images of each minibatch: 3 and 4, 3 and 3, 2 and 3 in the processes."""


def share_of(batch, rank, size):
    """The rows that a BatchLoader gives a process."""
    return tuple(part[rank * len(part) // size : (rank + 1) * len(part) // size] for part in batch)


def trainer_of(name, dtype, size, sync=False, compiled=False, options=None, **settings):
    torch.manual_seed(0)
    model = TinyClassifier(seed=0).to(dtype)
    if size > 1:
        model = DistributedDataParallel(convert_sync_batchnorm(model) if sync else model)
    if compiled:
        model = torch.compile(model, backend="eager")
    joint = {"image_shape": (3, 6, 5), "generator_width": 4} if method_spec(name).joint is not None else {}
    method = create_method(
        name, model, epsilon=0.1, noise=NoiseStream(3), engine=FLOAT32, **joint, **(options or {})
    )
    for network in method.joint.networks.values() if method.joint is not None else ():
        network.to(dtype)
        if size > 1 and sync:
            convert_sync_batchnorm(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return Trainer(model, optimizer, method, outer_precision="fp32", **settings)


def train(rank, size, name, dtype, settings):
    """Three steps: what there is afterwards, and the results of each step."""
    trainer = trainer_of(name, dtype, size, **settings)
    results = []
    for step, count in enumerate(SIZES):
        images, labels = tiny_batch(count, seed=step)
        results.append(trainer.step(*share_of((images.to(dtype), labels), rank, size), measure_clean=True))
    state = trainer.state_dict()
    if rank > 0:
        return None, None, results
    tensors, _ = pack_state(state)  # weights, statistics, momentum, of the average and of jointly trained networks too
    return copy.deepcopy(tensors), state["maximizer"] and state["maximizer"]["noise"], results


TWO_STEPS = {"steps": 2, "samples": 2}
CASES = {
    "adt-exp": ("adt-exp", {"sync": True, "options": TWO_STEPS}),
    "adt-exp, eval": ("adt-exp", {"outer_mode": "eval", "options": TWO_STEPS}),
    "in parts": ("adt-exp", {"outer_mode": "eval", "accumulation_steps": 2, "options": TWO_STEPS}),
    "compiled": ("at-pgd", {"outer_mode": "eval", "accumulation_steps": 2, "compiled": True}),
    "clipped": ("adt-exp", {"sync": True, "max_grad_norm": 0.1, "ema_decay": 0.9, "options": TWO_STEPS}),
    "adt-imp-am, paper": ("adt-imp-am", {"sync": True, "max_grad_norm": 0.5, "options": {"recipe": "paper"}}),
    "l2l": ("l2l", {"sync": True, "options": {"gradient_scale": "batch_mean"}}),
}
NOT_SHARED = {"feascatter", "l2l"}  # the latter as it is by default
CASES |= {name: (name, {"sync": True}) for name in method_names() if name not in CASES and name not in NOT_SHARED}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_one_process(case, two):
    """Within summation order: of all that training goes on from, and of what a step reports."""
    name, settings = CASES[case]
    dtypes = [torch.float64] if case != "adt-exp" else [torch.float64, torch.float32]
    for dtype in dtypes:
        (found, noise, results), (_, _, other_results) = two(train, name, dtype, settings)
        expected, expected_noise, expected_results = train(0, 1, name, dtype, settings)
        close = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found, expected, **close)
        assert noise == expected_noise and results == other_results
        for result, wanted in zip(results, expected_results, strict=True):
            assert (result.accuracy, result.clean_accuracy, result.images) == (
                wanted.accuracy, wanted.clean_accuracy, wanted.images
            )  # fmt: skip
            assert result.loss == pytest.approx(wanted.loss, rel=close["rtol"])
            assert result.penalty == pytest.approx(wanted.penalty, rel=close["rtol"])


def perturb_equal_images(rank, size):
    """What the process makes of three images, of which each has the same ones."""
    trainer, found = trainer_of("adt-exp", torch.float64, size, options=TWO_STEPS), []
    perturb = trainer.method.maximizer.perturb
    trainer.method.maximizer.perturb = lambda *batch: found.append(perturb(*batch)) or found[-1]
    images, labels = tiny_batch(3)
    times = SIZE // size
    trainer.step(images.double().repeat(times, 1, 1, 1), labels.repeat(times))
    return found[0][0]


def test_equal_images_are_perturbed_by_other_noise_in_each_process(two):
    first, second = two(perturb_equal_images)
    assert (first != second).flatten(1).any(1).all()
    torch.testing.assert_close(torch.cat([first, second]), perturb_equal_images(0, 1), rtol=1e-7, atol=1e-9)


def own_batch_norm(rank, size):
    """A model whose batch norm is of its own images: statistics are averaged, so that the attacks are on one model."""
    trainer = trainer_of("at-pgd", torch.float64, size, options={"steps": 2})
    for step, count in enumerate(SIZES):
        images, labels = tiny_batch(count, seed=step)
        trainer.step(*share_of((images.double(), labels), rank, size))
    return trainer.trained_model.state_dict()


def test_processes_have_one_model_where_each_normalises_its_own_images(two):
    first, second = two(own_batch_norm)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["norm.running_mean"].abs().max() > 0


# Runs

# 3 minibatches, the last one of 13 images, in each of 2 epochs; a network with batch norm.
SETTINGS = {
    "method": "adt-exp", "model": "wrn-10-1", "train_limit": 55, "validation_images": 10, "batch_size": 16,
    "test_limit": 30, "epochs": 2, "learning_rate": 0.02, "device": "cpu", "seed": 4, "precision": "fp32",
    "sync_batchnorm": True, "ema_decay": 0.9, "max_grad_norm": 1.0, "steps": 2, "samples": 2,
}  # fmt: skip
JOINT = {"method": "adt-imp-am", "generator_width": 4, "steps": None, "samples": None, "precision": "auto"}


def run_of(output, processes=None, resume=False, **changes):
    settings = {name: value for name, value in (SETTINGS | changes).items() if value is not None}
    return TrainingRun(TrainConfig(output=output, **settings), resume=resume, save_every=0.0, processes=processes)


def run_here(rank, size, output, changes, resume=False):
    """Trains and tests in both processes: where the run began, and its warnings."""
    run = run_of(output, Processes(dist.group.WORLD), resume, **changes)
    run.train(progress=False)
    run.evaluate()
    run.close()
    return run.stands_at, run.warnings


class Kill(Exception):
    """Cannot be made: the process has ended as by ``kill -9``."""

    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def stopped_here(rank, size, output, changes, at, how):
    """Both processes stop in the step of this number, from 0."""
    with stopping(at, how), pytest.raises(Stopped):
        run_here(rank, size, output, changes)


def flags(settings):
    """Those of the command line."""
    words = [(f"--{name.replace('_', '-')}", value) for name, value in settings.items()]
    return [word for flag, value in words for word in ([flag] if value is True else [flag, str(value)])]


def assert_close_results(folder, expected):
    """The same files, of which the lines agree to rounding; and weights to that of float32 over 6 steps."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    lines, wanted = logged(folder), logged(expected)
    assert [line["event"] for line in lines] == [line["event"] for line in wanted]
    for line, one in zip(lines, wanted):
        assert line == {name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
                        for name, value in one.items()}
    for name in ("model.safetensors", "best.safetensors"):
        (found, _), (tensors, _) = (load_checkpoint(path / name) for path in (folder, expected))
        torch.testing.assert_close(found, tensors, rtol=1e-3, atol=1e-4)


def test_a_command_in_two_processes_is_that_in_one(tmp_path, capfd):
    """Through torchrun, as people start it; with validation, an average of the weights, and the closing test."""
    words = ["train", *flags(SETTINGS), "--save-every", "0", "--output"]
    torchrun = Torchrun("-m", "adt_fast.cli", *words, "two", cwd=tmp_path)
    assert cli.main([*words, "one"]) == 0
    expected = capfd.readouterr().out
    status, out, err = torchrun.end()
    assert status == 0, err
    assert_close_results(tmp_path / "two", tmp_path / "one")
    assert "on 2 processes, cpu" in out
    assert len(out.splitlines()) == len(expected.splitlines()), "one process speaks"
    for pattern in (r"^epoch 1/2.*", r"^pgd-20 .*", r"^natural .*"):
        found = [re.findall(pattern, text.replace(" images/s", ""), re.MULTILINE) for text in (out, expected)]
        assert len(found[0]) == len(found[1]) > 0
    one, two = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("one", "two"))
    assert one["config"] | {"output": "two"} == two["config"]
    assert (one["processes"], two["processes"]) == (1, 2)


def test_jointly_trained_networks_normalise_all_images(two, tmp_path):
    """In a run's first step. After it, Adam makes a whole step of what is rounding in a gradient."""
    changes = JOINT | {"precision": "fp32", "epochs": 1, "batch_size": 45, "recipe": "paper"}
    two(run_here, tmp_path / "two", changes)
    one = run_of(tmp_path / "one", **changes)
    one.train(progress=False)
    one.close()
    (found, *_), (wanted, *_) = (logged(tmp_path / name) for name in ("two", "one"))
    assert (found["loss"], found["penalty"]) == pytest.approx((wanted["loss"], wanted["penalty"]), rel=1e-5)
    found, wanted = (load_checkpoint(tmp_path / name / "maximizer.safetensors")[0] for name in ("two", "one"))
    statistics = [name for name in wanted if "running" in name]
    assert any(name.startswith("generator") for name in statistics) and any("encoder" in name for name in statistics)
    for name in statistics:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def guard_here(rank, size, output, changes):
    """The state of the precision guard, among others, in a run that was resumed."""
    run = run_of(output, Processes(dist.group.WORLD), True, **changes)
    run.close()
    return run.trainer.method.maximizer.input_gradient.state_dict()


@pytest.fixture(scope="module")
def unbroken(two, tmp_path_factory):
    """The folder of a run in two processes that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    two(run_here, folder, {})
    return folder


def test_two_killed_processes_go_on_bit_for_bit(unbroken, two, tmp_path):
    with pytest.raises(Failed, match="process 0 is dead"):
        two(stopped_here, tmp_path / "run", {}, 4, Kill)
    for stands_at, warnings in two(run_here, tmp_path / "run", {}, True):
        assert stands_at == "epoch 2 of 2, minibatch 2 of 3" and not warnings
    assert_same_results(tmp_path / "run", unbroken)


def test_jointly_trained_networks_go_on_bit_for_bit(two, tmp_path):
    """In 16 bits, with a precision guard in each process."""
    two(run_here, tmp_path / "unbroken", JOINT)
    two(stopped_here, tmp_path / "run", JOINT, 2, Stopped)
    guards = [process["engine"] for process in RunCheckpoint(tmp_path / "run").load()["trainer"]["processes"]]
    assert two(guard_here, tmp_path / "run", JOINT) == guards and guards[0] != guards[1]
    for stands_at, _ in two(run_here, tmp_path / "run", JOINT, True):
        assert stands_at == "epoch 1 of 2, minibatch 3 of 3"
    assert_same_results(tmp_path / "run", tmp_path / "unbroken")


def test_another_number_of_processes_goes_on_and_says_so(unbroken, two, tmp_path):
    """From two to one and back; in float32 nothing differs but the order of sums."""
    two(stopped_here, tmp_path / "run", {}, 2, Stopped)
    one = run_of(tmp_path / "run", resume=True)
    warning = "the run was saved by 2 processes, and goes on with 1: their shares of a minibatch"
    assert one.stands_at == "epoch 1 of 2, minibatch 3 of 3" and one.warnings[0].startswith(warning)
    with stopping(2), pytest.raises(Stopped):
        one.train(progress=False)
    one.close()
    (stands_at, warnings), _ = two(run_here, tmp_path / "run", {}, True)
    assert stands_at == "epoch 2 of 2, minibatch 2 of 3" and "saved by 1 processes, and goes on with 2" in warnings[0]
    assert_close_results(tmp_path / "run", unbroken)


def test_sigterm_to_torchrun_saves_and_says_how_to_go_on(tmp_path):
    changes = {"epochs": 100, "validate_every": 100}
    words = ["train", *flags(SETTINGS | changes), "--save-every", "1000", "--output", "run"]
    torchrun = Torchrun("-m", "adt_fast.cli", *words, cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", torchrun)
    torchrun.terminate()
    status, _, err = torchrun.end()
    assert status != 0
    assert err.count("stopping after this minibatch") == err.count("interrupted; the metrics so far are in run.") == 1
    assert "To go on: torchrun --nproc-per-node 2 -m adt_fast.cli train --output run --resume\n" in err
    one = run_of(tmp_path / "run", resume=True, **changes)
    assert re.fullmatch(r"epoch \d+ of 100, minibatch \d of 3", one.stands_at)
    one.close()


def wait_for(path, torchrun):
    end = time.monotonic() + 60
    while not path.exists():
        assert torchrun.process.poll() is None and time.monotonic() < end, torchrun.end()
        time.sleep(0.05)


# Evaluation


def evaluate_here(rank, size, batch_size):
    torch.manual_seed(0)
    images, labels = tiny_batch(30)
    data = ImageData((images * 255).byte(), labels, 4, "tiny", (0.5,) * 3, (0.2,) * 3)
    processes = None if size == 1 else Processes(dist.group.WORLD)
    report = evaluate(TinyClassifier(), data, "fgsm, pgd-5", epsilon=0.1, batch_size=batch_size, processes=processes)
    return report.outcomes | report.examples | {"labels": report.labels}, report.accuracies(), report.warnings


@pytest.mark.parametrize("batch_size", [7, 100], ids=["5 batches", "fewer batches than processes"])
def test_a_shared_evaluation_is_that_of_one_process(batch_size, two):
    expected = evaluate_here(0, 1, batch_size)
    for found in two(evaluate_here, batch_size):
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
        assert found[1:] == expected[1:]


# Errors


def error_here(rank, size, output, changes, of_second):
    """What making the run raises, in each process."""
    changes = changes | (of_second if rank == 1 else {})
    try:
        run_of(output, Processes(dist.group.WORLD), **changes)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    "changes, of_second, wanted",
    [
        ({"batch_size": 1}, {}, "ValueError: batch_size must be at least num_replicas=2"),
        ({"batch_size": 22}, {}, "ValueError: num_replicas must be at most 1, the images of an epoch's last minibatch"),
        ({"epsilon": -1.0}, {}, "ValueError: epsilon must"),
        ({}, {"dataset": "cifar10", "data_dir": Path("not-here")}, "FileNotFoundError"),
        ({}, {"model": "wrn-1-1"}, "ValueError: depth of a WideResNet must be"),
    ],
)
def test_what_cannot_begin_in_one_process_begins_in_none(changes, of_second, wanted, two, tmp_path):
    first, second = two(error_here, tmp_path / "run", changes, of_second, timeout=20)
    assert re.match(wanted, second)
    assert re.match(f"AnotherProcessFailed: process 1 of 2 failed: {wanted}" if of_second else wanted, first)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_an_error_that_is_said_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    torchrun = Torchrun("-m", "adt_fast.cli", "train", *flags(SETTINGS), "--output", "run", cwd=tmp_path)
    status, out, err = torchrun.end()
    assert status == 1  # torchrun's own; of its processes it tells
    assert err.count("adt-fast: error: output must be a new or an empty folder") == 1
    statuses = re.findall(r"exitcode  : (-?\d+)", err)
    assert statuses in (["2", "2"], ["-15", "2"])  # where one has ended, torchrun may be faster to end the other
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"] and not out


FAILING = """
import os, sys, torch
from adt_fast import cli
from adt_fast.trainer import ADTExpTrainer, Trainer

step = Trainer.step

def failing(self, images, labels, **options):
    if os.environ["RANK"] == "1":
        with torch.no_grad():
            self.model.module.fc.weight.fill_(torch.nan)
    return step(self, images, labels, **options)

Trainer.step = failing
sys.exit(cli.main())
"""


def test_a_process_that_fails_ends_all(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    torchrun = Torchrun("failing.py", "train", *flags(SETTINGS), "--output", "run", cwd=tmp_path)
    status, _, err = torchrun.end()
    assert status == 1
    assert err.count("adt-fast: error: process 1 of 2: the input gradient is NaN or infinite") == 1


def test_several_machines_go_on_with_as_many(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    run = SimpleNamespace(processes=SimpleNamespace(size=8), path=Path("my run"))
    command = "torchrun --nnodes 2 --nproc-per-node 4 -m adt_fast.cli train --output 'my run' --resume"
    assert how_to_go_on(run).endswith(f"To go on: {command}")


# A loop of one's own


def own_loop(rank, size, example):
    """The weights that an example ends with, in the group that there is."""
    namespace = {"torch": torch, "ADTExpTrainer": ADTExpTrainer, "BatchLoader": BatchLoader,
                 "load_dataset": load_dataset, "create_model": create_model}  # fmt: skip
    torch.manual_seed(rank)
    exec(re.sub(r"dist\.(init|destroy)_process_group\(.*\)", "pass", example), namespace)
    return {name: value.clone() for name, value in namespace["trainer"].trained_model.state_dict().items()}


def test_the_example_of_the_documentation(two):
    (example,) = (block.text for block in blocks(ROOT / "docs" / "training.md") if "DistributedSampler" in block.text)
    first, second = two(own_loop, example)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
