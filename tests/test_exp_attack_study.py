"""benchmarks.exp_attack: its table, and that finished runs are not done again."""

import pytest
import torch

from adt_fast import cli
from benchmarks import exp_attack


def run(model, seed, natural, pgd, exp):
    settings = {"model": model, "seed": seed, "images": 10}
    return {"settings": settings, "natural": natural, "pgd-20": pgd, "exp": exp, "exp, as in training": exp + 0.01}


def test_differences_are_between_means_over_seeds():
    runs = [run("a", 0, 0.5, 0.3, 0.28), run("a", 1, 0.5, 0.32, 0.31), run("b", 0, 0.9, 0.1, 0.2)]
    header, a, b = exp_attack.table(runs).splitlines()
    assert header.split()[:4] == ["model", "seeds", "natural", "pgd-20"]
    assert a.split()[-1] == "-1.50" and "31.00 +- 1.41" in a and "29.50" in a and "30.50" in a
    assert b.split()[-1] == "+10.00"


def test_finished_runs_are_not_done_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    small = ["--train-limit", "96", "--test-limit", "8", "--epochs", "1", "--method", "standard", "--device", "cpu"]
    assert cli.main(["train", *small, "--output", "run"]) == 0
    arguments = ["run", "--names", "model", "--images", "12", "--seeds", "0", "1", "--output", "study.json"]
    exp_attack.main(arguments)
    first = capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(exp_attack, "measure", lambda *arguments: pytest.fail("done again"))
    exp_attack.main(arguments)
    assert capsys.readouterr().out.splitlines()[-1] == first and first.startswith("model")
