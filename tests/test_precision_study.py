"""benchmarks.precision_study: its table, and that finished runs are not done again."""

import json

from benchmarks import precision_study


def run(precision, seed, natural, robust):
    return {"settings": {"precision": precision, "seed": seed}, "natural": natural, "PGD-20": robust, "seconds": 10.0}


def test_differences_are_between_runs_of_one_seed():
    runs = [run("fp32", 0, 0.5, 0.3), run("bf16", 0, 0.52, 0.3), run("fp32", 1, 0.6, 0.4), run("bf16", 1, 0.62, 0.38)]
    header, fp32, bf16 = precision_study.table(runs).splitlines()
    assert header.split()[:4] == ["precision", "seeds", "natural", "PGD-20"]
    assert "55.00 +- 7.07" in fp32 and "0.00 +- 0.00" in fp32
    assert "57.00 +- 7.07" in bf16 and "2.00 +- 0.00" in bf16 and "-1.00 +- 1.41" in bf16


def test_finished_runs_are_not_done_again(tmp_path, monkeypatch, capsys):
    done = []

    def train(settings, data_dir):
        done.append((settings["precision"], settings["seed"]))
        return {"settings": settings, "device": "cpu", "seconds": 1.0, "natural": 0.5, "PGD-20": 0.25}

    monkeypatch.setattr(precision_study, "train", train)
    arguments = ["--output", str(tmp_path / "study.json"), "--seeds", "0", "1"]
    precision_study.main([*arguments, "--precisions", "fp32"])
    precision_study.main([*arguments, "--precisions", "fp32", "bf16"])
    assert done == [("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1)]
    assert len(json.loads((tmp_path / "study.json").read_text())["runs"]) == 4
    assert capsys.readouterr().out.count("bf16, seed") == 2
