"""benchmarks.methods_study: its table, its runs, and that finished ones are not done again."""

import json

from benchmarks import methods_study


def run(method, seed, natural, robust):
    settings = {"config": "cifar10-cpu", "method": method, "seed": seed}
    return {"settings": settings, "seconds": 10.0, "natural": natural, "FGSM": robust, "PGD-20": robust, "C&W": robust}


def test_the_table_has_a_row_for_each_method():
    runs = [run("trades", 0, 0.5, 0.3), run("standard", 0, 0.6, 0.0), run("trades", 1, 0.6, 0.4)]
    header, _, standard, trades = methods_study.table(runs).splitlines()
    assert header == "| method | natural | FGSM | PGD-20 | C&W | seeds | seconds a run |"
    assert standard.startswith("| standard | 60.00 +- 0.00 | 0.00 +- 0.00 |")
    assert trades.startswith("| trades | 55.00 +- 7.07 | 35.00 +- 7.07 |") and trades.endswith("| 2 | 10 |")


def test_differences_are_between_runs_of_one_seed():
    runs = [run("at-pgd", 0, 0.5, 0.30), run("adt-exp", 0, 0.5, 0.32), run("adt-exp", 2, 0.5, 0.9)]
    runs += [run("at-pgd", 1, 0.5, 0.40), run("adt-exp", 1, 0.5, 0.41)]
    assert methods_study.differences(runs) == ["PGD-20 of adt-exp less that of at-pgd: 1.50 +- 0.71"]


def test_what_is_changed_has_a_row_of_its_own():
    changed = run("l2l", 0, 0.5, 0.2)
    changed["settings"] = changed["settings"] | {"changes": {"gradient_scale": "batch_mean"}}
    _, _, plain, other = methods_study.table([run("l2l", 0, 0.4, 0.3), changed]).splitlines()
    assert plain.startswith("| l2l | 40.00") and other.startswith("| l2l, gradient_scale=batch_mean | 50.00")


def test_runs(tmp_path, capsys):
    """On the digits, which need no files; a second call has nothing to do."""
    output = tmp_path / "study.json"
    small = ["--config", "digits", "--epochs", "1", "--train-limit", "64", "--test-limit", "20"]
    small += ["--output", str(output)]
    methods_study.main([*small, "--methods", "standard", "at-fgsm", "--seeds", "0", "--jobs", "2"])
    first = json.loads(output.read_text())
    assert sorted(run["settings"]["method"] for run in first["runs"]) == ["at-fgsm", "standard"]
    for run in first["runs"]:
        assert run["test_images"] == 20 and len(run["losses"]) == 1 and run["resolved"]["precision"] == "fp32"
        assert all(0 <= run[name] <= 1 for name in methods_study.ACCURACIES)
        assert run["C&W"] <= run["natural"] and "generator_width" not in run["resolved"]
    capsys.readouterr()
    methods_study.main([*small, "--methods", "standard", "--seeds", "0"])
    assert json.loads(output.read_text()) == first
    assert capsys.readouterr().out.count("standard") == 1
    methods_study.main([*small, "--methods", "at-fgsm", "--seeds", "0", "--change", "target=none"])
    assert json.loads(output.read_text())["runs"][-1]["resolved"]["target"] == "none"
