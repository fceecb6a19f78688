"""The kernel benchmark: it runs, says what it measured, and refuses to time what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import adt_fast
from adt_fast import ops

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import kernels, report, targets
from benchmarks.operator_cases import CASES, COPY, EAGER, OURS, Workload
from benchmarks.timing import Timing, time_interleaved
from benchmarks.validation import ValidationError, relative_error, validate

native = pytest.mark.skipif(not adt_fast.build_info()["native"], reason="needs the native module")

TINY = ["--batch", "3", "--image", "3", "6", "5", "--samples", "2", "--repeats", "2"]
CPU = torch.device("cpu")


def tiny_workload(layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> Workload:
    return Workload(CPU, samples=2, batch=3, image=(3, 6, 5), dtype=dtype, layout=layout)


@native
def test_command_line_measures_every_operator(tmp_path, capsys):
    output = tmp_path / "kernels.json"
    kernels.main([*TINY, "--device", "cpu", "--threads", "1", "--contestants", "eager", "--output", str(output)])
    document = json.loads(output.read_text())
    assert set(document) == {"machine", "results", "targets"}
    assert {"cpu", "logical_cpus", "adt_fast", "git_commit", "inductor_compiler"} <= set(document["machine"])
    assert [result["operator"] for result in document["results"]] == list(CASES)
    for result in document["results"]:
        assert set(result["timings"]) == {OURS, COPY, EAGER} and set(result["ratios"]) == {EAGER}
        assert len(result["timings"][OURS]["repeats_ms"]) == 2
        assert result["ratios"][EAGER] > 0
        assert result["gb_per_s"] > 0 and result["copy_fraction"] > 0
        assert result["threads"] == 1 and result["batch"] == 3 and result["image"] == [3, 6, 5]
        assert all(error["ours"] <= error["tolerance"] for error in result["errors"].values())
    assert document["targets"] == []  # the promises are for another size
    table = capsys.readouterr().out.strip().splitlines()[-len(CASES) - 1 :]
    assert table[0].startswith("operator") and table[1].startswith("sample ")


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_every_operator_and_contestant_is_right(name, layout, dtype):
    with torch.no_grad():
        assert all(error.passed for error in validate(CASES[name], tiny_workload(layout, dtype)))


@native
@pytest.mark.parametrize("name", ["sample", "ascent_step", "linf_step"])
def test_a_wrong_kernel_is_refused(name, monkeypatch):
    case = CASES[name]
    right = case.ours

    def wrong(self):
        results = right(self)
        next(iter(results.values())).mul_(1.0 + 1e-3)
        return results

    monkeypatch.setattr(case, "ours", wrong)
    settings = kernels.Settings(
        device="cpu", threads=(1,), samples=2, batch=3, image=(3, 6, 5), dtypes=("float32",), layouts=("contiguous",),
        operators=(name,), contestants=(EAGER,), repeats=1, cuda_graph=False,
    )  # fmt: skip
    with pytest.raises(ValidationError, match=f"{name} is not timed"):
        kernels.measure_here(settings, threads=torch.get_num_threads())


@native
def test_a_wrong_operator_is_refused(monkeypatch):
    right = ops.tanh_gaussian_sample

    def other_noise(*tensors, **options):
        return right(*tensors, **options, draw=1)

    monkeypatch.setattr(ops, "tanh_gaussian_sample", other_noise)
    with torch.no_grad(), pytest.raises(ValidationError):
        validate(CASES["sample"], tiny_workload())


def test_not_a_number_is_an_error():
    truth = torch.ones(4, dtype=torch.float64)
    result = torch.tensor([1.0, 1.0, float("nan"), 1.0])
    assert not relative_error(result, truth) <= 1e9


def test_contestants_take_turns():
    order: list[str] = []
    contestants = {name: [lambda name=name: order.append(name)] for name in "abc"}
    timings = time_interleaved(contestants, CPU, repeats=2, warmup=1)
    assert order == [*"abc", *"abc", *"cba"]  # the warm-up, then there and back
    assert all(len(timing.seconds) == 2 for timing in timings.values())


def test_timing_statistics():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (timing.fastest, timing.median, timing.percentile(10), timing.percentile(100)) == (1.0, 3.0, 1.4, 5.0)


def test_targets_hold_where_they_are_meant():
    result = {
        "operator": "sample", "device": "cpu", "device_name": "a CPU", "launch": "call", "samples": 5, "batch": 64,
        "image": [3, 32, 32], "dtype": "float32", "layout": "contiguous", "threads": 1, "copy_fraction": 0.2,
        "ratios": {"eager": 5.0, "compile": 20.0, "noise + compile": 3.0},
    }  # fmt: skip
    met = {target["bound"]: target["met"] for target in targets.check_targets([result])}
    assert met == {2.5: True, 6.0: False}
    assert not list(targets.check_targets([result | {"batch": 32}]))
    assert "NOT MET" in report.targets_table(list(targets.check_targets([result])))


def test_flags_of_the_other_device_are_refused(capsys):
    with pytest.raises(SystemExit):
        kernels.main(["--device", "cpu", "--launch", "graph"])
    assert "--launch is for --device cuda" in capsys.readouterr().err
