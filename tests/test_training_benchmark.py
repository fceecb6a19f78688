"""The benchmark of training steps: contestants agree, planted bugs do not pass, and it says what it measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import adt_fast

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import training, training_contestants, training_report
from benchmarks.model_flops import count_joint_flops, count_model_flops, float32_products, matmul_ceiling
from benchmarks.training_contestants import (
    ADT_EXP,
    ADT_EXP_AM,
    AMORTIZED,
    AT_PGD,
    FORMS,
    OBJECTIVES,
    STANDARD,
    Entry,
    Ours,
    Strongest,
    StrongestAmortized,
    Task,
    build_published,
    choose,
    entries,
    strongest,
)
from benchmarks.validation import ValidationError

pytestmark = pytest.mark.usefixtures("one_thread")

native = pytest.mark.skipif(not adt_fast.build_info()["native"], reason="needs the native module")

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--model", "small-cnn", "--batch", "4", "--image", "3", "8", "8", "--steps", "2",
        "--samples", "2", "--generator-width", "8", "--repeats", "2", "--training-steps", "2", "--no-compile",
        "--threads", "1"]  # fmt: skip


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setattr("benchmarks.model_flops._MATRIX_SIZE", {"cpu": 64})


def tiny_task(objective: str = ADT_EXP, model: str = "wrn-10-1") -> Task:
    settings = replace(
        training._settings(training._parser(), training._parser().parse_args(TINY)), model=model, training_steps=10
    )
    torch.manual_seed(0)
    classifier = training._trained_model(settings, CPU)
    return replace(training._task(objective, classifier, settings, CPU), steps=3, samples=2)


def eager(precision: str, kind: type = Strongest):
    return lambda task: kind(task, precision, FORMS["cpu"][0])


@native
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_contestant_does_the_same(objective):
    validator = training.Validator(tiny_task(objective), seed=3)
    task = validator.task
    found = [entry for entry in entries(objective, "cpu") if entry.group != "headline" and not entry.compiled]
    assert {entry.group for entry in found} >= {"published", "strongest", "ours"}
    for entry in found:
        contestant = entry.build(task)
        validator.check(entry, contestant)
        contestant.step()  # with random numbers of its own
        if task.inner_steps:
            contestant.model_pass()
        assert (contestant.explain() is None) == (entry.group in ("published", "strongest") or objective == STANDARD)


@native
@pytest.mark.parametrize("objective", [ADT_EXP, AT_PGD, *AMORTIZED])
def test_loss_scaling_is_undone(objective):
    validator = training.Validator(tiny_task(objective), seed=3)
    kind = StrongestAmortized if objective in AMORTIZED else Strongest
    for build in (eager("fp16", kind), partial(Ours, precision="fp16")):
        agreement = validator.check(Entry("fp16", "strongest", "fp16", build), build(validator.task))
        assert agreement.x_adv_share > 0.7


BUGS = {
    "a wrong radius": ((ADT_EXP, AT_PGD), {"epsilon": 8.8 / 255}),
    "a missing step": ((ADT_EXP, AT_PGD), {"steps": 2}),
    "a wrong step size": ((ADT_EXP,), {"step_size": 0.2}),
}


@native
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug, precision):
    objectives, change = BUGS[bug]
    for objective in objectives:
        task = tiny_task(objective)
        wrong = replace(task, **change)
        validator = training.Validator(task, seed=3)
        for build in (eager(precision), lambda wrong: Ours(wrong, precision)):
            with pytest.raises(ValidationError, match=f"culprit is not timed.*{objective}"):
                validator.check(Entry("culprit", "strongest", precision, build), build(wrong))


@native
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_pass_on_other_images_is_caught(objective):
    validator = training.Validator(tiny_task(objective), seed=3)
    culprit = build_published(validator.task)
    culprit.optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(ValidationError, match="culprit is not timed"):
        validator.check(Entry("culprit", "published", "fp32", build_published), culprit)


class NotReversed(StrongestAmortized):
    def _generate(self, noise):
        x_adv, penalty = super()._generate(noise)
        x_adv.register_hook(torch.neg)  # a second time
        return x_adv, penalty


class EntropyLowered(StrongestAmortized):
    def _generate(self, noise):
        x_adv, penalty = super()._generate(noise)
        penalty.register_hook(torch.neg)  # with the right value
        return x_adv, penalty


class NotClamped(StrongestAmortized):
    def _generate(self, noise):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "clamp", lambda tensor, *bounds: tensor)
            return super()._generate(noise)


class SummedGradients(StrongestAmortized):
    def _find(self):
        super()._find()
        self._gradients.mul_(len(self.task.images))


class OneGradient(StrongestAmortized):
    def _find(self):
        super()._find()
        self._gradients[1] = self._gradients[0]


@native
@pytest.mark.parametrize("objective", AMORTIZED)
def test_a_planted_bug_in_amortised_training_is_caught(objective):
    validator = training.Validator(tiny_task(objective), seed=3)

    def refuses(build, precision: str) -> None:
        with pytest.raises(ValidationError, match=f"culprit is not timed.*{objective}"):
            validator.check(Entry("culprit", "strongest", precision, build), build(validator.task))

    for kind in (NotReversed, EntropyLowered, NotClamped, SummedGradients):
        for precision in ("fp32", "bf16"):
            refuses(eager(precision, kind), precision)
    refuses(eager("fp32", OneGradient), "fp32")
    for precision in ("fp32", "bf16"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("adt_fast.methods.method.reverse_gradient", lambda x_adv: x_adv)
            refuses(partial(Ours, precision=precision), precision)


@native
def test_a_bug_aborts_the_benchmark(monkeypatch):
    right = strongest._ascend

    def forgetful(*tensors, **options):
        right(*tensors, **options | {"step_size": 0.1})

    monkeypatch.setattr(strongest, "_ascend", forgetful)
    with pytest.raises(ValidationError, match="eager fp32 is not timed"):
        training.main([*TINY, "--objectives", ADT_EXP, "--contestants", "strongest"])


@native
def test_command_line_measures_every_objective(tmp_path, capsys):
    output = tmp_path / "training.json"
    training.main([*TINY, "--output", str(output)])
    document = json.loads(output.read_text())
    assert set(document) == {
        "machine", "device_name", "settings", "model_flops_per_image", "joint_training_flops_per_image",
        "matmul_flops_per_s", "results", "left_out", "headline", "figure_6", "targets",
    }  # fmt: skip
    assert {"cpu", "adt_fast", "git_commit"} <= set(document["machine"])
    assert document["settings"]["steps"] == 2 and document["settings"]["image"] == [3, 8, 8]
    assert set(document["matmul_flops_per_s"]) == {"fp32", "bf16"}
    assert {result["objective"] for result in document["results"]} == set(OBJECTIVES)
    absent = {(one["objective"], one["contestant"]) for one in document["left_out"]}
    for objective in OBJECTIVES:
        expected = {entry.name for entry in entries(objective, "cpu") if not entry.compiled}
        measured = {result["contestant"] for result in document["results"] if result["objective"] == objective}
        assert measured == {name for name in expected if (objective, name) not in absent}
    flops = document["model_flops_per_image"]
    for result in document["results"]:
        assert len(result["timing"]["repeats_ms"]) == 2
        seconds = result["timing"]["median_ms"] / 1e3
        assert result["images_per_s"] == pytest.approx(4 / seconds)
        assert result["epoch_s"] == pytest.approx(50_000 / 4 * seconds)
        pgd = result["group"] == "headline" or result["objective"] == AT_PGD
        passes = 2 if pgd else {ADT_EXP: 4, STANDARD: 0}.get(result["objective"], 2)
        trained = document["joint_training_flops_per_image"].get(result["objective"], flops["training"])
        assert result["model_flops"] == 4 * (passes * flops["input_gradient"] + trained)
        assert result["ceiling_fraction"] > 0 and result["ratios"]["fastest"] > 0
        assert result["peak_memory_bytes"] is None and result["peak_memory_absent_because"]
        assert result["kernels_outside_model"] is None
        assert result["agreement"]["gradient_cosine"] > 0.9
    assert set(document["headline"]) == {"best", "fp32"} and document["headline"]["fp32"] > 0
    assert set(document["figure_6"][0]["epoch_s"]) == set(OBJECTIVES)
    assert document["targets"] == []  # the promises are for another size
    printed = capsys.readouterr().out
    assert "% of matmul" in printed and "in plain PyTorch at library defaults:" in printed
    assert "Figure 6" in printed


def test_flops_of_a_known_model():
    class OneConvolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
            self.fc = nn.Linear(5, 10, bias=False)

        def forward(self, images):
            return self.fc(self.conv(images).mean(dim=(2, 3)))

    flops = count_model_flops(OneConvolution(), (3, 8, 6))
    conv, fc = 2 * 3 * 5 * 9 * 8 * 6, 2 * 5 * 10
    assert flops.forward == conv + fc
    assert flops.input_gradient == 2 * conv + 2 * fc
    assert flops.training == 2 * conv + 3 * fc  # of the first layer, no gradient of the images
    assert flops.of_step(4, 35) == 4 * (35 * flops.input_gradient + flops.training)


def test_flops_of_joint_training():
    class Generator(nn.Conv2d):
        latent = None

    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 10))
    networks = nn.ModuleDict({"generator": Generator(9, 6, 3, padding=1)})
    generator, linear = 2 * 9 * 6 * 9 * 8 * 6, 2 * 3 * 8 * 6 * 10
    assert count_joint_flops(classifier, networks, (3, 8, 6)) == 2 * generator + 3 * linear
    networks["encoder"] = nn.Conv2d(6, 2, 1)
    assert count_joint_flops(classifier, networks, (3, 8, 6)) == 2 * generator + 3 * linear + 3 * (2 * 6 * 2 * 8 * 6)


def test_the_generator_is_in_proportion_to_the_classifier():
    widths = {name: training._generator_width(name, (3, 32, 32)) for name in ("wrn-28-10", "wrn-16-4", "wrn-10-1")}
    assert widths == {"wrn-28-10": 256, "wrn-16-4": 72, "wrn-10-1": 16}
    assert training._generator_width("small-cnn", (1, 8, 8)) == 16


def test_matmul_ceiling():
    assert all(matmul_ceiling(precision, CPU, size=64, repeats=2) > 1e6 for precision in ("fp32", "bf16"))


def test_tf32_is_set_and_set_back():
    settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [setting.allow_tf32 for setting in settings]
    for precision in ("fp32", "tf32"):
        with float32_products(precision, torch.device("cuda")):
            assert [setting.allow_tf32 for setting in settings] == [precision == "tf32"] * 2
            assert torch.compile(torch.sin, backend="eager")(torch.zeros(1)) == 0.0
        assert [setting.allow_tf32 for setting in settings] == before


def test_choosing_contestants():
    found = entries(ADT_EXP, "cuda")
    assert len({entry.name for entry in found}) == len(found)
    names = [entry.name for entry in choose(found, ["published", "eager fp16", "ours"], ["fp16"], True)]
    assert names == ["published", "eager fp16", "adt_fast fp16"]
    assert not any(entry.compiled for entry in choose(found, training_contestants.GROUPS, ["fp32"], False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda", "--threads", "2"], "--threads is for --device cpu"),
        (["--device", "cpu", "--precisions", "fp16"], "--precisions fp16 is not for --device cpu"),
        (["--device", "cpu", "--contestants", "nobody"], "'nobody' is unknown"),
    ],
)
def test_impossible_settings_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        training.main(arguments)
    assert message in capsys.readouterr().err


def some_result(contestant: str, group: str, precision: str, milliseconds: float, objective: str = ADT_EXP) -> dict:
    return {
        "objective": objective, "contestant": contestant, "group": group, "precision": precision,
        "timing": {"median_ms": milliseconds, "p10_ms": 0.9 * milliseconds, "p90_ms": 1.1 * milliseconds},
        "images_per_s": 1.0, "epoch_s": milliseconds, "flops_per_s": 1e12, "ceiling_fraction": 0.5,
        "peak_memory_bytes": 2**30, "kernels_outside_model": 2.5, "explain": "twin  on" if group == "ours" else None,
    }  # fmt: skip


def some_document() -> dict:
    results = [
        some_result("published", "published", "fp32", 400.0),
        some_result("published at-pgd", "headline", "fp32", 80.0),
        some_result("eager fp32", "strongest", "fp32", 220.0),
        some_result("eager bf16", "strongest", "bf16", 90.0),
        some_result("adt_fast fp32", "ours", "fp32", 200.0),
        some_result("adt_fast bf16", "ours", "bf16", 100.0),
    ]
    training_report.add_ratios(results)
    return {
        "settings": {"device": "cpu", "model": "wrn-16-4", "batch": 16, "image": [3, 32, 32], "steps": 7, "samples": 5},
        "device_name": "a CPU", "results": results, "headline": training_report.headline(results), "figure_6": [],
        "left_out": [{"objective": ADT_EXP, "contestant": "eager fp16", "reason": "out of memory"}],
    }  # fmt: skip


def test_ratios_and_targets():
    document = some_document()
    assert document["results"][0]["ratios"] == {"same_precision": 2.0, "fastest": 4.0}
    assert document["headline"] == {"best": 1.25, "fp32": 2.5}
    met = {target["what"]: target["met"] for target in training_report.check_targets(document)}
    assert met == {
        "x the published algorithm, in fp32": True,
        "x the published algorithm, in bf16": True,
        "x the strongest plain PyTorch, in the best precision": False,
        "x the strongest plain PyTorch, in fp32": True,
        "x the strongest plain PyTorch, in bf16": False,
        "times AT-PGD of plain PyTorch at library defaults": False,
    }
    document["settings"]["batch"] = 8
    assert training_report.check_targets(document) == []


def test_table_and_summary():
    document = some_document()
    document["targets"] = training_report.check_targets(document)
    lines = training_report.results_table(document["results"]).splitlines()
    assert lines[1].split()[:4] == ["adt-exp", "published", "at-pgd", "80"]  # the fastest first
    assert lines[-1].split() == ["adt-exp", "published", "400", "360-440", "1", "1", "50.0", "2.00", "4.00", "1.00",
                                 "2.5"]  # fmt: skip
    summary = training_report.summary(document)
    for part in ("1.25 in best, 2.50 in fp32", "NOT MET", "left out: eager fp16", "adt_fast bf16, adt-exp:\ntwin  on"):
        assert part in summary
    drawn = [result["contestant"] for result in training_report.bars(document["results"], ADT_EXP)]
    assert drawn == ["published", "eager fp32", "adt_fast fp32", "adt_fast bf16", "eager bf16", "published at-pgd"]


def test_figure_6():
    def results(contestant: str, group: str, seconds: dict[str, float]) -> list[dict]:
        return [some_result(contestant, group, "fp32", value, objective) for objective, value in seconds.items()]

    found = training_report.figure_6(
        results("published", "published", {ADT_EXP: 50.0, ADT_EXP_AM: 5.0, AT_PGD: 10.0, STANDARD: 2.0})
        + results("eager fp32", "strongest", {ADT_EXP: 30.0, AT_PGD: 6.0})
        + results("adt_fast fp32", "ours", {ADT_EXP: 20.0, AT_PGD: 5.0})
        + results("adt_fast bf16", "ours", {ADT_EXP: 10.0})
    )
    assert [row["contestant"] for row in found] == ["published", "adt_fast fp32"]
    assert found[0]["over_at_pgd"] == {STANDARD: 0.2, AT_PGD: 1.0, ADT_EXP: 5.0, ADT_EXP_AM: 0.5}
    assert found[1]["epoch_s"] == {AT_PGD: 5.0, ADT_EXP: 20.0}
    lines = training_report.summary(some_document() | {"targets": [], "figure_6": found}).splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("Figure 6"))
    assert lines[start + 1].split() == ["contestant", "standard", "at-pgd", "adt-exp", "adt-exp-am", "adt-imp-am"]
    assert lines[start + 2].split("  ")[0] == "published" and "50 (5.00)" in lines[start + 2]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_plot(tmp_path):
    training_report.plot(some_document(), tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.skipif(shutil.which("bash") is None or torch.cuda.is_available(), reason="needs bash, and no GPU")
def test_gpu_suite_says_that_there_is_no_gpu(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    suite = subprocess.run(
        ["bash", Path(training.__file__).with_name("gpu_suite.sh"), tmp_path / "results"],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert suite.returncode == 1, suite.stdout + suite.stderr
    table = (tmp_path / "results" / "summary.txt").read_text()
    assert "FAIL" in table and table.count("SKIPPED") == 8 and "PASS" not in table
