"""The scaling benchmark: two processes are compared with one before they are timed; and the plan's counts are right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import scaling, scaling_plan
from benchmarks.model_flops import ModelFlops
from benchmarks.scaling_plan import Network, Rates

TOY = Network("toy", ModelFlops(10, 20, 30), parameters=1000, training_bytes=7, attack_bytes=5, batch_norms=3)
RATES = Rates(flops=100, utilisation=0.5, bandwidth_near=4000, bandwidth_far=400, latency_near=0.5, latency_far=1.0)


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_are_timed_beside_one(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(scaling, "ALL_REDUCED", ("wrn-10-1",))
    output = tmp_path / "scaling.json"
    tiny = ["--model", "wrn-10-1", "--batch", "5", "--steps", "1", "--samples", "1", "--repeats", "1"]
    scaling.main([*tiny, "--output", str(output)])
    document = json.loads(output.read_text())
    assert document["relative_error"] < 1e-9
    assert list(document["steps"]) == [scaling.TOGETHER, scaling.APART, scaling.ONE_THREAD, scaling.TWO_THREADS]
    median = {name: timing["median_ms"] for name, timing in document["steps"].items()}
    assert document["efficiency"] == median[scaling.ONE_THREAD] / median[scaling.TOGETHER] / 2
    assert document["machine"]["git_commit"] and document["settings"]["batch"] == 5
    assert "2 processes, 1 thread each" in capfd.readouterr().out


def test_the_networks_of_the_plan():
    """ResNet-50 has 25.6 million weights and 4.09 billion multiply-adds (He et al., 2016, and torchvision's count)."""
    model = scaling_plan.network("ResNet-50")
    assert model.parameters == 25_557_032 and model.batch_norms == 53
    assert model.flops.forward == pytest.approx(2 * 4.09e9, rel=0.01)
    assert scaling_plan.resnet50().eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_activations_are_in_proportion_to_pixels():
    model = scaling_plan.resnet50()
    small = scaling_plan.activation_bytes(model, torch.rand(1, 3, 64, 64))
    assert scaling_plan.activation_bytes(model, torch.rand(1, 3, 128, 128)) == pytest.approx(4 * small, rel=0.01)


def test_what_the_plan_computes():
    """By hand: 10 images of 7 x 1 passes of 20 and 30 to train are 1700; at 50 a second, 34 s."""
    assert scaling_plan.step_seconds(TOY, "at-pgd, 7 steps", 10, RATES) == 34
    assert scaling_plan.exchange_seconds(TOY, 8, RATES) == pytest.approx(2 * 7 / 8 * 4000 / 4000 + 2 * 3 * 0.5)
    assert scaling_plan.exchange_seconds(TOY, 64, RATES) == pytest.approx(2 * 63 / 64 * 4000 / 400 + 2 * 3 * 1.0)
    assert scaling_plan.efficiency(TOY, "at-pgd, 7 steps", 8, 10, RATES) == pytest.approx(34 / (34 + 1.75 + 3))
    days = scaling_plan.days(TOY, "at-pgd, 7 steps", 8, 10, 2, RATES)
    assert days == pytest.approx(2 * 1_281_167 / 80 * (34 + 1.75 + 3) / 86400)
    assert sum(scaling_plan.fixed_bytes(TOY).values()) == 22 * 1000
    assert scaling_plan.image_bytes(TOY, 5) == {
        "training pass": 7, "distribution": 20 * 150_528, "samples": 20 * 150_528,
    }  # fmt: skip


def test_the_page_has_what_the_command_prints(capsys):
    scaling.main(["--plan"])
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    missing = [line for line in tables if line not in page]
    assert len(tables) > 20 and not missing, "docs/scaling.md must have what benchmarks.scaling --plan prints"
