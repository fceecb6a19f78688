"""python -m studies: a plan is carried out, goes on where it was stopped, and its numbers become tables and figures."""

import json

import pytest
import yaml

from adt_fast.experiment import TrainingRun
from studies import __main__ as study
from studies import paper, training
from studies.figures import write_figures
from studies.plan import PLANS, Measurement, Run, load_plan
from studies.store import ModelFolder
from studies.summary import by_name, differences, spread, title, values

TRAINING = {"config": "digits", "epochs": 1, "train_limit": 64}
SMALL = {"method": "adt-exp-am", "entropy_weight": 0.1, "generator_width": 8}
AM = "adt-exp-am, entropy_weight=0.1, generator_width=8"
COMPARED = [{"method": "standard"}, SMALL]
PLAN = {
    "training": TRAINING,
    "seeds": [0, 1],
    "test_images": 20,
    "accuracies": {"runs": COMPARED, "attacks": ["fgsm", "feaattack:targets=1"]},
    "entropy": {"runs": COMPARED[1:], "attacks": ["pgd-20"], "samples": 3},
    "strength": {"runs": COMPARED[:1], "seeds": [0],
                 "attacks": ["pgd-20", "exp", "exp-am:epochs=1:train_limit=32:generator_width=8",
                             "imp-am:epochs=1:train_limit=32:generator_width=8"]},
    "curvature": {"runs": COMPARED, "seeds": [0]},
    "landscape": {"runs": COMPARED, "seeds": [0], "image": 1, "steps": 3},
    "distribution": {"runs": [{"method": "adt-exp"}], "seeds": [0], "images": [2]},
    "epoch_time": {"methods": ["standard", "adt-exp-am"]},
}  # fmt: skip


def call(folder, *flags):
    study.main([str(folder / "tiny.yaml"), "--work", str(folder / "work"), "--output", str(folder / "out"),
                "--figures", str(folder / "figures"), *flags])  # fmt: skip
    return json.loads((folder / "out" / "study-tiny.json").read_text())


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(PLAN))
    return folder, call(folder, "--epoch-time")


def test_everything_is_measured_of_the_models_that_the_plan_names(carried_out):
    _, document = carried_out
    assert document["plan"] == PLAN and document["machine"]["cpu"]
    models = {(model["name"], model["seed"]): model for model in document["runs"]}
    assert set(models) == {("adt-exp", 0), *((name, seed) for name in ("standard", AM) for seed in (0, 1))}
    kinds = {key: {kind for kind in PLAN if kind in model} for key, model in models.items()}
    assert kinds["standard", 0] == {"accuracies", "strength", "curvature", "landscape"}
    assert kinds["standard", 1] == {"accuracies"}
    assert kinds[AM, 1] == {"accuracies", "entropy"}
    assert models["adt-exp", 0]["distribution"]["samples"] == 1000
    for model in filter(lambda model: "accuracies" in model, models.values()):
        found = model["accuracies"]["accuracies"]
        assert list(found) == ["natural", "fgsm", "feaattack:targets=1", "A_rob"] and len(model["losses"]) == 1
        assert found["A_rob"] <= min(found.values()) and model["accuracies"]["versions"]["torch"]
    landscape = models["standard", 0]["landscape"]
    assert landscape["offsets"] == pytest.approx([-10, 0, 10]) and len(landscape["losses"]) == 3
    assert landscape["losses"][1][1] == pytest.approx(landscape["at_image"], rel=1e-5)
    entropy = models[AM, 0]["entropy"]
    assert entropy["entropy_per_element"] < entropy["highest_per_element"]


def test_figures_are_drawn(carried_out):
    folder, _ = carried_out
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {"robustness-cost.png", "entropy.png", "curvature.png", "landscape.png", "distribution.png"}


def test_times_of_epochs_do_not_tell_where_files_are(carried_out):
    folder, _ = carried_out
    times = json.loads((folder / "out" / "study-tiny-epoch-time.json").read_text())
    assert times["methods"] == ["standard", "adt-exp-am"] and times["settings"]["dataset"] == "digits"
    assert times["settings"].keys().isdisjoint({"data_dir", "output", "download"})


def test_what_is_done_is_not_done_again_and_a_changed_plan_adds_what_is_new(carried_out, monkeypatch, capsys):
    folder, document = carried_out
    monkeypatch.setattr(TrainingRun, "train", None)
    assert call(folder)["runs"] == document["runs"]  # in processes of their own: nothing has changed
    capsys.readouterr()
    (folder / "more.yaml").write_text(yaml.safe_dump(PLAN | {"test_images": 10}))
    measured = []
    monkeypatch.setattr(training, "measure", lambda measurement, *_: measured.append(measurement) or {})
    for run, measurements in load_plan(str(folder / "more.yaml")).tasks(("accuracies",)):
        training.carry_out(run, measurements, folder / "work" / "tiny", None, threads=1)
    assert [one.settings["test_images"] for one in measured] == [10] * 4


def test_a_training_that_was_stopped_goes_on(tmp_path, monkeypatch):
    run = Run({"method": "standard"}, 3, TRAINING)
    folder = ModelFolder(tmp_path, run)
    save = TrainingRun._save_results

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "_save_results", stop)
    with pytest.raises(KeyboardInterrupt):
        training.carry_out(run, [], tmp_path, None, threads=1)
    assert not (folder.run / "model.safetensors").exists()
    monkeypatch.setattr(TrainingRun, "_save_results", save)
    assert "trained" in training.carry_out(run, [], tmp_path, None, threads=1)
    assert "there" in training.carry_out(run, [], tmp_path, None, threads=1)


def test_a_folder_is_named_by_all_that_a_model_depends_on(tmp_path):
    run = Run({"method": "standard"}, 0, TRAINING)
    others = [
        Run({"method": "at-fgsm"}, 0, TRAINING),
        Run({"method": "standard"}, 1, TRAINING),
        Run({"method": "standard"}, 0, TRAINING | {"train_limit": 65}),
    ]
    assert len({ModelFolder(tmp_path, one).path for one in [run, *others]}) == 4
    assert ModelFolder(tmp_path, Run({"method": "standard"}, 0, dict(TRAINING))).path == ModelFolder(tmp_path, run).path
    files = {ModelFolder(tmp_path, run).file(Measurement("accuracies", {"test_images": n})) for n in (1, 2)}
    assert len(files) == 2


def test_one_that_fails_does_not_stop_the_others(tmp_path, capsys):
    broken = PLAN | {"seeds": [0], "accuracies": {"runs": COMPARED[:1], "attacks": ["fgsm", "no-such-attack"]}}
    broken["accuracies"]["runs"] = [*COMPARED]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(broken | dict.fromkeys(("entropy", "strength", "distribution"))))
    with pytest.raises(ValueError, match="no-such-attack"):
        call(tmp_path, "--only", "landscape", "accuracies")
    assert "2/2" in capsys.readouterr().out


def of(name, seed, natural, robust):
    method = name.split(",")[0]
    accuracies = {"natural": natural, "feaattack:targets=3": robust, "A_rob": robust}
    return {"name": name, "method": method, "seed": seed, "accuracies": {"accuracies": accuracies}}


def test_numbers_are_brought_together_by_model_and_seed():
    runs = [of("at-pgd", 0, 0.5, 0.30), of("at-pgd", 1, 0.5, 0.40), of("adt-exp", 0, 0.5, 0.32), of("adt-exp", 2, 1, 0)]
    document = {"plan": {"accuracies": {"runs": [{"method": "adt-exp"}, {"method": "at-pgd"}]}}, "runs": runs}
    found = by_name(document, "accuracies")
    assert list(found) == ["adt-exp", "at-pgd"] and values(found["at-pgd"], "accuracies", "feaattack") == [30, 40]
    assert spread(values(found["at-pgd"], "accuracies", "A_rob")) == "35.0 ± 7.1" and spread([1.25], 2) == "1.25"
    assert differences(document, "adt-exp", "at-pgd", "A_rob") == pytest.approx([2])
    assert title("adt-exp-am, recipe=published,gradient_scale=max_abs") == "adt-exp-am, gradient_scale=max_abs"


def test_the_plans_of_the_project_are_sound(tmp_path):
    plans = sorted(PLANS.glob("*.yaml"))
    assert plans
    for path in plans:
        plan = load_plan(path.stem)
        for run, measurements in plan.tasks():
            assert run.config(None, tmp_path).resolved().dataset == "cifar10" and measurements
        listed = {changes["method"] for changes in plan.document["accuracies"]["runs"]}
        assert listed == set(paper.ACCURACIES)


def test_figures_without_numbers_are_left_out(tmp_path):
    assert write_figures({"plan": {}, "runs": []}, None, tmp_path) == []
