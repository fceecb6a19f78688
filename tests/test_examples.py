"""The examples run by their own command lines, made smaller, and what they print and leave is what they are to show."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_data import write_cifar10
from test_docs_examples import ROOT, publish
from two_processes import Torchrun

from adt_fast.evaluation import PAPER

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))

CHANCE = 0.1
"""The accuracy of guessing one of ten digits."""

pytestmark = pytest.mark.usefixtures("one_thread", "in_a_folder_of_its_own")


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[[str], str]:
    """Runs the words of a command, from the script's name on: what it has printed."""

    def run_script(command: str) -> str:
        script, *flags = command.split()
        monkeypatch.setattr(sys, "argv", [script, *flags])
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as ending:
            assert not ending.code
        return capsys.readouterr().out

    return run_script


def numbers(pattern: str, output: str) -> list[float]:
    """Those that the one group of the pattern finds, in order; percentages as shares."""
    found = re.findall(pattern, output, re.MULTILINE)
    assert found, f"nothing like {pattern!r} in:\n{output}"
    return [float(text.rstrip("%")) / (100 if text.endswith("%") else 1) for text in found]


def test_one_changed_line_makes_a_loop_train_robustly(run):
    output = run("drop_in.py --epochs 3 --train-images 320 --test-images 60")
    losses, natural, robust = {}, {}, {}
    for loop in ("as it was", "trainer", "adt_loss"):
        losses[loop] = numbers(rf"^{loop}: epoch \d, loss (.+)$", output)
        (natural[loop],) = numbers(rf"^{loop}: natural (.+), PGD", output)
        (robust[loop],) = numbers(rf"^{loop}: .* PGD-20 (.+)$", output)
        assert len(losses[loop]) == 3 and losses[loop] == sorted(losses[loop], reverse=True)
        assert natural[loop] > 5 * CHANCE
    assert min(robust["trainer"], robust["adt_loss"]) > max(robust["as it was"], 1.5 * CHANCE)
    assert losses["trainer"] == pytest.approx(losses["adt_loss"], rel=0.03)  # the same mathematics, other noise
    assert losses["trainer"][-1] > 1.2 * losses["as it was"][-1]


def test_a_model_of_ones_own_trains_and_is_explained(run):
    output = run("custom_model.py --epochs 4 --train-images 320 --test-images 60 --attacks fgsm,pgd-10")
    losses = numbers(r"^epoch \d: loss (.+),", output)
    assert len(losses) == 4 and losses == sorted(losses, reverse=True)
    assert re.search(r"^twin +on, not fused: .*used as inputs to control flow", output, re.MULTILINE)
    accuracy = {name: numbers(rf"^{name} +(\S+%)", output)[0] for name in ("natural", "fgsm", "pgd-10", "A_rob")}
    assert accuracy["natural"] > 3 * CHANCE and accuracy["A_rob"] > 1.5 * CHANCE
    assert accuracy["natural"] > accuracy["fgsm"] >= accuracy["pgd-10"] >= accuracy["A_rob"]


def test_images_of_ones_own_are_learned_whichever_way_they_come(run):
    output = run("custom_data.py --epochs 3 --train-images 320 --test-images 60")
    for way in ("dataset", "arrays", "npz"):
        ((first, last, natural, robust),) = re.findall(
            rf"^{way}: loss (\S+) to (\S+), natural (\S+)%, PGD-10 (\S+)%$", output, re.MULTILINE
        )
        assert float(last) < 0.85 * float(first)
        assert float(natural) / 100 > 5 * CHANCE and float(robust) / 100 > 1.5 * CHANCE


def test_single_operators_attack(run):
    output = run("one_operator.py --epochs 6 --train-images 600 --test-images 60 --steps 10")
    first, last = numbers(r"^distribution: step \d+, loss (\S+),", output)
    assert last > 2 * first
    entropies = numbers(r"entropy (\S+)$", output)
    assert entropies[1] < entropies[0] < torch.tensor(0.3).log().item()  # of the uniform distribution in the ball
    rows = {
        name: [numbers(rf"^{name}: .*{what} (\S+?%?)(?:,| epsilon)", output)[0] for what in
               ("accuracy", "shifted", "perturbed by")]
        for name in ("as they are", "uniform noise", "distribution", "pgd")
    }  # fmt: skip
    natural, noise, distribution, pgd = rows.values()
    assert natural[0] > 5 * CHANCE and natural[2] == 0.0
    assert pgd[0] < distribution[0] < noise[0] - CHANCE  # PGD has no shift to care for
    assert distribution[1] < noise[1] - CHANCE
    assert all(0.9 < row[2] <= 1.0 for row in (noise, distribution, pgd))


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_processes_have_the_same_weights_and_one_process_the_same_losses(run, tmp_path):
    flags = "--epochs 1 --train-images 130 --test-images 40 --precision fp32"
    torchrun = Torchrun(EXAMPLES / "distributed.py", *flags.split(), cwd=tmp_path)
    alone = run(f"distributed.py {flags}")
    status, together, err = torchrun.end()
    assert status == 0, err
    (loss,), (expected,) = (numbers(r"^epoch 1: loss (\S+),", output) for output in (together, alone))
    assert loss == pytest.approx(expected, rel=1e-3)
    first, second = re.search(r"^2 process\(es\), weights agree: (\w+), (\w+)$", together, re.MULTILINE).groups()
    assert first == second
    assert re.search(r"^1 process\(es\), weights agree: \w+$", alone, re.MULTILINE)
    assert len(together.splitlines()) == len(alone.splitlines()) == 3, "one process speaks"


def test_a_foreign_checkpoint_is_attacked_and_reported(run):
    output = run("evaluate_checkpoint.py --epochs 4 --train-images 320 --test-images 12 --output one")
    state = torch.load("one/theirs.pt", weights_only=True)["state_dict"]
    assert "module.block1.layer.0.conv1.weight" in state and not any("normalize" in name for name in state)
    assert '"layout": "wrn", "entry": "state_dict", "prefix": "module."' in output
    report = json.loads(Path("one/report.json").read_text())
    assert report["accuracy"]["natural"]["share"] > 5 * CHANCE and report["accuracy"]["A_rob"]["share"] > CHANCE
    page = Path("one/report.html").read_text()
    for name in PAPER:
        assert name in page and numbers(rf"^{name} +(\S+%)", output)
    # Read again, as the file of others that it is.
    run("evaluate_checkpoint.py --checkpoint one/theirs.pt --attacks fgsm --test-images 12 --output two")
    again = json.loads(Path("two/report.json").read_text())
    assert all(again["outcomes"][name] == report["outcomes"][name] for name in ("natural", "fgsm"))


def test_a_checkpoint_of_ones_own_network_is_attacked_without_complaint(run):
    words = "evaluate_checkpoint.py --own-code --attacks fgsm,pgd-10 --train-images 320 --test-images 60 --output one"
    output = run(f"{words} --epochs 4")
    assert "warning" not in output
    assert numbers(r"^natural +(\S+%)", output)[0] > 5 * CHANCE and numbers(r"^A_rob +(\S+%)", output)[0] > 2 * CHANCE


CIFAR = {
    "custom_model.py": "--attacks fgsm",
    "one_operator.py": "--steps 2",
    "evaluate_checkpoint.py": "--attacks fgsm --output out",
}
"""Further flags."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_take_cifar10(script, run, tmp_path, monkeypatch):
    folder = tmp_path / "DIR" / "cifar-10-batches-py"
    write_cifar10(folder)
    publish({file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}, monkeypatch)
    flags = f"--data-dir {tmp_path / 'DIR'} --epochs 1 --train-images 16 --test-images 4 {CIFAR.get(script, '')}"
    output = run(f"{script} {flags}")
    assert all(0 <= share <= 1 for share in numbers(r"(\d+\.\d+%)", output))


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_say_how_to_run_them(script):
    text = (EXAMPLES / script).read_text()
    readme = (EXAMPLES / "README.md").read_text()
    commands = re.findall(rf"^    \S.* examples/{script}.*$", text.split('"""')[1], re.MULTILINE)
    assert commands and f"examples/{script}`" in readme
    for flag in re.findall(r"--[a-z-]+", " ".join(commands).replace("--nproc-per-node", "")):
        assert f'add_argument("{flag}"' in text
    assert 30 <= len(text.splitlines()) <= 100
