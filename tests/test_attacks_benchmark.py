"""The benchmark of attacks: contestants agree, weakened ones do not pass, and it counts and compares rightly."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

import adt_fast
from adt_fast.checkpoint import save_model
from adt_fast.models import create_model

# At the end, so that an installed adt_fast is the one tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import attack_report, attacks
from benchmarks.attack_contestants import (
    CHANNELS_LAST,
    FOOLBOX,
    OURS,
    PLAIN,
    AttackSpec,
    Entry,
    Plain,
    attack_specs,
    entries,
    margin,
    require,
)
from benchmarks.attack_validation import Validator, excess
from benchmarks.attacks import Broken
from benchmarks.timing import Timing
from benchmarks.validation import ValidationError

SPECS = {spec.name: spec for spec in attack_specs(8 / 255, 0.5)}
WIDE = {spec.name: spec for spec in attack_specs(0.3, 1.8)}
"""Of balls so wide that not every step goes the same way."""


@pytest.fixture
def validator():
    """Of images that are classified rightly: of the others, the two losses have almost the same gradient."""
    model, (images, _) = TinyClassifier(num_classes=10).eval(), tiny_batch(24)
    return Validator(model, images, model(images).argmax(1), seed=3)


def planted(change) -> Entry:
    """The plain loop with other settings than it is asked for."""
    return Entry("weakened", lambda spec, model: Plain(change(spec), model))


class ShortSteps(AttackSpec):
    @property
    def step_size(self) -> float:
        return super().step_size / 2


# ---- Validation -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("contestant", [OURS, PLAIN, CHANNELS_LAST])
def test_contestants_agree(validator, contestant, name):
    agreement = validator.check(entries()[contestant], SPECS[name])
    assert agreement.share > 0.98 and agreement.loss_error < 1e-3 and agreement.excess < 1e-5


WEAKENED = {
    "smaller radius": lambda spec: replace(spec, epsilon=0.97 * spec.epsilon),
    "short steps": lambda spec: ShortSteps(**dataclasses.asdict(spec)),
    "a step less": lambda spec: replace(spec, steps=max(spec.steps - 1, 0)),
    "other loss": lambda spec: replace(spec, kind="pgd" if spec.kind == "cw" else "cw"),
    "no random start": lambda spec: replace(spec, random_start=False),
}


@pytest.mark.parametrize("name", WIDE)
def test_weakened_contestants_do_not_pass(validator, name):
    spec = WIDE[name]
    for weakness, change in WEAKENED.items():
        if weakness == "no random start" and not spec.random_start:
            continue
        with pytest.raises(ValidationError, match=f"weakened is not timed, for what it does is not {name}"):
            validator.check(planted(change), spec)
            pytest.fail(weakness)


def test_leaving_the_ball_and_nan_do_not_pass(validator):
    spec = SPECS["FGSM"]
    outside = Entry("outside", lambda spec, model: lambda x, y: Plain(spec, model)(x, y) * 1.001)
    nan = Entry("nan", lambda spec, model: lambda x, y: Plain(spec, model)(x, y) * torch.nan)
    for entry in (outside, nan):
        with pytest.raises(ValidationError):
            validator.check(entry, spec)


def test_another_algorithm_is_not_compared_by_its_elements(validator):
    """Another momentum, as foolbox has it."""
    spec = SPECS["MIM-20"]
    other = replace(planted(lambda spec: replace(spec, kind="pgd")), other_steps=("mim",))
    assert validator.check(other, spec).share is None


def test_excess_is_of_the_norm():
    images = torch.full((3, 1, 2, 2), 0.5)
    x_adv = images.clone()
    x_adv[1] += 0.1  # 0.2 in L2
    x_adv[2, 0, 0, 0] = torch.nan
    linf, l2 = (excess(x_adv, images, AttackSpec("", "pgd", 1, 0.05, norm)) for norm in ("linf", "l2"))
    assert linf[0] == 0 and linf[1] == pytest.approx(1.0, rel=1e-5) and linf[2].isnan()
    assert l2[1] == pytest.approx(3.0, rel=1e-5)
    below = excess(torch.full((1, 1, 2, 2), -0.01), torch.zeros(1, 1, 2, 2), AttackSpec("", "pgd", 1, 0.1))
    assert below.item() == pytest.approx(0.1, rel=1e-5)


def test_margin():
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [90.0, 4.0, 2.0]])
    assert margin(logits, torch.tensor([1, 2, 2])).tolist() == [-2.0, 2.0, 50.0]


# ---- Strength -------------------------------------------------------------------------------------------------------
class Constant(nn.Module):
    """Says which half of the range the mean of an image is in."""

    def forward(self, images):
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def test_what_an_attack_breaks():
    """One image moves across, one is moved too far, one becomes NaN, and one was wrong as it was."""
    images = torch.tensor([0.49, 0.2, 0.2, 0.7]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    moved = torch.tensor([0.03, 0.6, torch.nan, 0.0]).view(4, 1, 1, 1)
    entry = Entry("moves", lambda spec, model: lambda images, labels: images + moved)
    spec = AttackSpec("", "pgd", 1, 0.05)
    found = attacks.strength(entry, spec, Constant(), [(images, torch.zeros(4, dtype=torch.int64))], [0, 1])
    assert found.by_seed.tolist() == [[True, False, False, True]] and found.invalid == 2
    assert attacks.natural_accuracy(Constant(), [(images, torch.zeros(4, dtype=torch.int64))]) == 0.75


def test_seeds_are_of_the_random_start():
    model, batch = TinyClassifier().eval(), tiny_batch(8)
    starts = []

    def build(spec, model):
        def attack(images, labels):
            starts.append(torch.rand(()).item())
            return images

        return attack

    found = attacks.strength(Entry("draws", build), SPECS["PGD-20"], model, [batch, batch], [5, 6, 5])
    assert found.by_seed.shape == (3, 16)
    assert starts[:2] == starts[4:] and starts[0] != starts[2]


def test_comparison():
    ours = Broken(torch.tensor([[True, False, False, False], [False, True, False, False]]), 0)
    weaker = Broken(torch.tensor([[True, False, False, False]]), 1)
    stronger = Broken(torch.tensor([[True, False, True, True]]), 0)
    found = attacks.compare({OURS: ours, "weaker": weaker, "stronger": stronger})
    assert found["accuracy"][OURS] == [0.75, 0.75] and found["mean_accuracy"]["stronger"] == 0.25
    assert found["above_lowest_peer"] == 0.5
    assert found["only_ours"] == {"weaker": 1, "stronger": 1} and found["only_peer"] == {"weaker": 0, "stronger": 2}
    assert attacks.compare({OURS: ours})["above_lowest_peer"] is None


# ---- Speed, and what is left ----------------------------------------------------------------------------------------
def test_ratio():
    found = attacks.ratio(Timing((4.0, 9.0, 6.0)), Timing((2.0, 3.0, 2.0)))
    assert found == {"of_medians": 3.0, "lowest": 2.0, "highest": 3.0}


def test_traces():
    def build(spec, model):
        def attack(images, labels):
            model(images).sum().backward()
            model.conv.eval()
            model.fc.weight.requires_grad_(False)
            return images

        return attack

    found = attacks.traces(Entry("careless", build), SPECS["FGSM"], TinyClassifier().eval(), tiny_batch())
    assert found == {"gradients": 6, "modes": 1, "buffers": 3, "requires_grad": 1}
    ours = attacks.traces(entries()[OURS], SPECS["FGSM"], TinyClassifier().eval(), tiny_batch())
    assert not any(ours.values())


# ---- Promises -------------------------------------------------------------------------------------------------------
def document(above: float, ratios: dict[str, float], device: str = "cpu") -> dict:
    timed = {"batch": 64, "ratios": {name: {"of_medians": value} for name, value in ratios.items()}}
    result = {"attack": "FGSM", "strength": {"above_lowest_peer": above}, "speed": [timed]}
    return {"results": [result], "settings": {"device": device}}


def test_targets():
    found = attack_report.check_targets(document(0.0021, {"a": 3.0, "b": 1.4}))
    assert [(target["measured"], target["met"]) for target in found] == [(0.0021, False), (1.4, False)]
    assert all(target["met"] for target in attack_report.check_targets(document(-0.01, {"a": 1.5})))
    assert len(attack_report.check_targets(document(0.0, {"a": 1.0}, "cuda"))) == 1


# ---- All of it ------------------------------------------------------------------------------------------------------
def test_a_missing_peer_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, FOOLBOX, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install foolbox==3\.3\.4; or leave it out of --peers"):
        require(FOOLBOX)
    assert require(PLAIN) is None


def test_torchattacks_has_no_attack_on_the_margin():
    assert entries()["torchattacks"].build(SPECS["C&W-30"], TinyClassifier()) is None


def test_torchattacks_is_called_with_equal_settings(monkeypatch):
    calls = {}
    fake = types.ModuleType("torchattacks")
    for name in ("FGSM", "PGD", "PGDL2", "MIFGSM"):
        setattr(fake, name, lambda model, name=name, **options: calls.update({name: options}))
    monkeypatch.setitem(sys.modules, "torchattacks", fake)
    for spec in SPECS.values():
        entries()["torchattacks"].build(spec, TinyClassifier())
    linf = {"eps": 8 / 255, "alpha": 2 / 255, "steps": 20}
    assert calls == {
        "FGSM": {"eps": 8 / 255},
        "PGD": linf | {"random_start": True},
        "PGDL2": {"eps": 0.5, "alpha": 0.125, "steps": 20, "random_start": True},
        "MIFGSM": linf,
    }


@pytest.mark.skipif(not adt_fast.build_info()["native"], reason="needs the native module")
def test_from_the_command_line(tmp_path, capsys):
    torch.manual_seed(0)
    made_of = {"num_classes": 10, "in_channels": 1}
    model = create_model("small-cnn", **made_of)
    trained_with = {"dataset": "digits", "epsilon": 0.1, "method": "none"}
    save_model(
        tmp_path / "model.safetensors", model, model_name="small-cnn", model_kwargs=made_of, extra=trained_with
    )
    threads = torch.get_num_threads()
    try:
        attacks.main(["--checkpoint", str(tmp_path / "model.safetensors"), "--images", "12", "--batch-size", "8", "2",
                      "--validation-images", "4", "--epsilon", "1/10", "--attacks", "FGSM", "C&W-30", "--peers", PLAIN,
                      "--seeds", "0", "1", "--repeats", "2", "--threads", "1", "--device", "cpu",
                      "--output", str(tmp_path / "found.json")])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [result["attack"] for result in found["results"]] == ["FGSM", "C&W-30"]
    assert found["settings"]["threads"] == 1 and found["peers"] == {} and found["classifier"]["dataset"] == "digits"
    for result, seeds in zip(found["results"], (1, 2)):
        assert result["settings"]["epsilon"] == 0.1 and set(result["agreement"]) == {OURS, PLAIN}
        assert len(result["strength"]["accuracy"][OURS]) == seeds
        assert result["strength"]["mean_accuracy"][OURS] <= found["natural_accuracy"]
        assert [timed["batch"] for timed in result["speed"]] == [8, 2]
        assert all(len(timed["timings"][PLAIN]["repeats_ms"]) == 2 for timed in result["speed"])
    assert len(found["targets"]) == 2 * 3
    printed = capsys.readouterr().out
    assert "| attack | adt_fast | pytorch | above lowest peer |" in printed
    assert "x the fastest peer, 2 images" in printed
