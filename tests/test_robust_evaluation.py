"""evaluate(): accuracies and A_rob against brute force, stopping and resuming, what it refuses, what it warns of."""

import copy
import json

import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

import adt_fast.compat.torchattacks as torchattacks
from adt_fast import NoiseStream, RobustReport, evaluate
from adt_fast.attacks import FGSM, MIM, PGD, Transfer
from adt_fast.checkpoint import CheckpointError, save_checkpoint
from adt_fast.data import ImageData
from adt_fast.evaluation.reviewer import suspicious_results
from adt_fast.losses import Margin
from adt_fast.methods import l2l

EPSILON = 0.1


@pytest.fixture
def model(device):
    return TinyClassifier().to(device).train()


def batches():
    return [tiny_batch(8, seed) for seed in range(4)]


def labelled_by(model, count=4):
    """Batches that the model classifies right but for one image in eight."""
    result = []
    with torch.no_grad():
        for seed in range(count):
            images, labels = tiny_batch(8, seed)
            found = copy.deepcopy(model).cpu().eval()(images).argmax(1)
            labels[1:] = found[1:]
            labels[0] = (found[0] + 1) % 4
            result.append((images, labels))
    return result


def toward(label, epsilon=EPSILON):
    """A deterministic attack: one gradient step that raises the logit of a class."""
    model = TinyClassifier().eval()

    def attack(images, labels):
        x = images.detach().cpu().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(model(x)[:, label].sum(), x)
        return (images + epsilon * grad.sign().to(images)).clamp(0, 1)

    return attack


def brute_force(model, data, attacks):
    """Per example: right naturally, and under each attack."""
    model = copy.deepcopy(model).eval()
    device = next(model.parameters()).device
    rows = {name: [] for name in ("natural", *attacks)}
    with torch.no_grad():
        for images, labels in data:
            images, labels = images.to(device), labels.to(device)
            natural = model(images).argmax(1) == labels
            rows["natural"] += natural.tolist()
            for name, attack in attacks.items():
                rows[name] += ((model(attack(images, labels)).argmax(1) == labels) & natural).tolist()
    return rows


ATTACKS = {f"towards {label}": toward(label) for label in range(3)}


def test_accuracies_and_a_rob_are_those_of_brute_force(model):
    data = labelled_by(model, 8)
    report = evaluate(model, data, ATTACKS, epsilon=EPSILON)
    rows = brute_force(model, data, ATTACKS)
    robust = [all(right) for right in zip(*rows.values())]
    assert 0 < sum(robust) < min(sum(rows[name]) for name in ATTACKS), "the attacks differ"
    assert report.natural.tolist() == rows["natural"]
    for name in ATTACKS:
        assert report.outcomes[name].bool().tolist() == rows[name]
        assert (report.accuracy(name).correct, report.accuracy(name).total) == (sum(rows[name]), 64)
    assert report.is_robust.tolist() == robust
    assert report.robust_accuracy.correct == sum(robust)
    by_class = {row["class"]: row for row in report.per_class()}
    labels = torch.cat([labels for _, labels in data])
    for label, row in by_class.items():
        mine = (labels == label).tolist()
        assert row["images"] == sum(mine)
        assert row["robust"].correct == sum(one for one, here in zip(robust, mine) if here)


def test_natural_errors_are_not_attacked_and_survivors_only_are_with_the_option(model, device):
    data = labelled_by(model)
    for survivors_only in (False, True):
        seen = dict.fromkeys(ATTACKS, 0)

        def counting(name, seen=seen):
            def attack(images, labels):
                seen[name] += len(images)
                return ATTACKS[name](images, labels)

            return attack

        counted = {name: counting(name) for name in ATTACKS}
        report = evaluate(model, data, counted, epsilon=EPSILON, survivors_only=survivors_only)
        rows = brute_force(model, data, ATTACKS)
        alive = torch.tensor(rows["natural"])
        for name in ATTACKS:
            assert seen[name] == alive.sum()
            if survivors_only:
                attacked = report.outcomes[name] != -1
                assert torch.equal(attacked, alive | ~torch.tensor(rows["natural"]))
                alive &= torch.tensor(rows[name])
                assert report.accuracy(name).correct == alive.sum()
        assert report.is_robust.tolist() == [all(right) for right in zip(*rows.values())]


def test_attacks_by_name_are_the_attacks(model, device):
    """FGSM draws no noise: the same images, the same outcome."""
    data = labelled_by(model)
    report = evaluate(model, data, "fgsm, mim-5,fgsm", epsilon=EPSILON)
    assert report.attacks == ("fgsm", "mim-5")
    rows = brute_force(model, data, {"fgsm": FGSM(model, EPSILON), "mim-5": MIM(model, EPSILON, steps=5)})
    for name in report.attacks:
        assert report.outcomes[name].bool().tolist() == rows[name]
    assert report.settings["attacks"]["mim-5"]["steps"] == 5


def test_random_numbers_do_not_depend_on_the_other_attacks(model):
    data = labelled_by(model)
    alone = evaluate(model, data, "pgd-3", epsilon=EPSILON)
    among = evaluate(model, data, "fgsm,exp-2,pgd-3", epsilon=EPSILON)
    assert torch.equal(alone.outcomes["pgd-3"], among.outcomes["pgd-3"])
    assert torch.equal(alone.examples["pgd-3"], among.examples["pgd-3"])
    other = evaluate(model, data, "pgd-3", epsilon=EPSILON, seed=1)
    assert not torch.equal(alone.examples["pgd-3"], other.examples["pgd-3"])


def test_an_attack_keeps_its_noise_and_torch_its_generator(model, device):
    attack = PGD(model, EPSILON, steps=2, noise=NoiseStream(5))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    noise = attack.noise
    drawn = []

    def rolls(images, labels):
        drawn.append(float(torch.rand(())))
        return images

    for _ in range(2):
        attacks = {"mine": attack, "rolls": rolls, "pgd-2": "pgd-2", "transfer": "transfer-exp-1"}
        evaluate(model, labelled_by(model, 2), attacks, epsilon=EPSILON, source=model)
    assert attack.noise is noise and noise.offset == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn[:2] == drawn[2:] and drawn[0] != drawn[1]


def test_the_model_is_as_it_was(model):
    model.conv.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    evaluate(model, labelled_by(model), "fgsm,pgd-2,feaattack:targets=1:layer=conv,spsa-2:steps=1", epsilon=EPSILON)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_image_data_and_batches_agree(model):
    data = labelled_by(model)
    images, labels = (torch.cat(parts) for parts in zip(*data))
    as_data = ImageData((images * 255).round().byte(), labels, 4, "tiny", (0.5,) * 3, (0.5,) * 3)
    rounded = [(part.float() / 255, of) for part, of in zip(as_data.images.split(8), labels.split(8))]
    by_data = evaluate(model, as_data, "pgd-3", epsilon=EPSILON, batch_size=8)
    by_batch = evaluate(model, rounded, "pgd-3", epsilon=EPSILON)
    assert torch.equal(by_data.outcomes["pgd-3"], by_batch.outcomes["pgd-3"])
    assert by_data.settings["data"] == {"name": "tiny", "images": 32}


# Stopping and resuming


class Stop(BaseException):
    """Like Ctrl-C."""


def stopping_after(calls, attacks):
    """The attacks, of which the call after that many raises."""
    left = [calls]

    def guarded(attack):
        def run(images, labels):
            if left[0] == 0:
                raise Stop
            left[0] -= 1
            return attack(images, labels)

        return run

    return {name: guarded(attack) for name, attack in attacks.items()}


def named(attacks):
    """Under one qualified name, for settings are compared."""
    for attack in attacks.values():
        attack.__qualname__ = "attack"
    return attacks


@pytest.mark.parametrize("survivors_only", [False, True])
def test_stopped_anywhere_and_resumed_it_is_the_same_report(model, tmp_path, survivors_only):
    data = labelled_by(model)
    options = {"epsilon": EPSILON, "survivors_only": survivors_only}

    def noisy(images, labels):
        return images + EPSILON * 0.9 * (torch.rand_like(images) * 2 - 1) * (images > EPSILON) * (images < 1 - EPSILON)

    attacks = {"noisy": noisy, "towards 1": toward(1), "noisier": noisy}
    whole = evaluate(model, data, named(stopping_after(99, attacks)), **options)
    calls = len(attacks) * len(data)
    for after in range(calls):
        state = tmp_path / f"{after}.safetensors"
        with pytest.raises(Stop):
            evaluate(model, data, named(stopping_after(after, attacks)), state=state, **options)
        report = evaluate(
            model, data, named(stopping_after(calls - after, attacks)), state=state, resume=True, **options
        )
        assert report.to_json() == whole.to_json()
        assert all(torch.equal(report.examples[name], whole.examples[name]) for name in whole.examples)
    again = evaluate(model, data, named(stopping_after(0, attacks)), state=state, resume=True, **options)
    assert again.to_json() == whole.to_json(), "nothing is left to do"


def test_stopped_twice_with_a_random_attack_of_the_library(model, tmp_path):
    data, state = labelled_by(model), tmp_path / "state.safetensors"
    whole = evaluate(model, data, "pgd-3,exp-2", epsilon=EPSILON)

    def until(count):
        for index, batch in enumerate(data):
            if index == count:
                raise Stop
            yield batch

    for count in (1, 3):
        with pytest.raises(Stop):
            evaluate(model, until(count), "pgd-3,exp-2", epsilon=EPSILON, state=state, resume=True)
    resumed = evaluate(model, data, "pgd-3,exp-2", epsilon=EPSILON, state=state, resume=True)
    assert resumed.to_json() == whole.to_json()


def test_a_state_of_something_else_is_refused(model, tmp_path):
    data, state = labelled_by(model), tmp_path / "state.safetensors"
    evaluate(model, data, "fgsm", epsilon=EPSILON, state=state)
    before = state.read_bytes()
    with pytest.raises(ValueError, match=r"state .* is there already: resume it"):
        evaluate(model, data, "fgsm", epsilon=EPSILON, state=state)
    for options, message in (
        ({"attacks": "fgsm,mim-2"}, "attacks differ"),
        ({"epsilon": 0.2}, "attacks, epsilon differ"),
        ({"seed": 1}, "seed differ"),
        ({"model": TinyClassifier(seed=1).to(next(model.parameters()).device)}, "model differ"),
        ({"data": data[::-1]}, "data must be the same, in the same order"),
        ({"data": data[:2]}, "data must be the same .* outcomes of 4 batches, the data have 2"),
    ):
        arguments = {"model": model, "data": data, "attacks": "fgsm", "epsilon": EPSILON} | options
        with pytest.raises(ValueError, match=message):
            evaluate(**arguments, state=state, resume=True)
    save_checkpoint(tmp_path / "other.safetensors", {}, {})
    with pytest.raises(CheckpointError, match="not of an evaluation"):
        evaluate(model, data, "fgsm", epsilon=EPSILON, state=tmp_path / "other.safetensors", resume=True)
    state.write_bytes(before[:-20])
    with pytest.raises(CheckpointError):
        evaluate(model, data, "fgsm", epsilon=EPSILON, state=state, resume=True)


@pytest.mark.parametrize("one, other", [
    ({"a": "fgsm", "b": "mim-2"}, {"b": "mim-2", "a": "fgsm"}),
    ({"a": "pgd-2"}, {"a": "pgd-2:target=least-likely"}),
    ({"a": "feaattack-1:targets=1:layer=conv"}, {"a": "feaattack-1:targets=1:layer=fc"}),
])  # fmt: skip
def test_a_state_of_other_attacks_by_the_same_name_is_refused(model, tmp_path, one, other):
    """The order tells which attack saw the survivors of which."""
    options = {"epsilon": EPSILON, "survivors_only": True, "state": tmp_path / "state"}
    evaluate(model, labelled_by(model, 1), one, **options)
    with pytest.raises(ValueError, match="attacks differ"):
        evaluate(model, labelled_by(model, 1), other, resume=True, **options)
    evaluate(model, labelled_by(model, 1), one, resume=True, **options)


def test_a_state_of_other_networks_is_refused(model, device, tmp_path):
    """Attacks have networks of their own: the source of a transfer, a generator."""
    def attacks(seed):
        torch.manual_seed(seed)
        source = TinyClassifier(seed=seed).to(device)
        options = {"image_shape": (3, 6, 5), "generator_width": 4, "noise": NoiseStream(0)}
        return {"transfer": (source, "transfer-fgsm"), "generator": (None, {"l2l": l2l(model, EPSILON, **options)})}

    for kind in attacks(0):
        state = tmp_path / kind
        for seed in (0, 1, 0):
            source, names = attacks(seed)[kind]
            run = {"epsilon": EPSILON, "source": source, "state": state, "resume": state.exists()}
            if seed == 0:
                evaluate(model, labelled_by(model, 1), names, **run)
                continue
            with pytest.raises(ValueError, match="attacks differ"):
                evaluate(model, labelled_by(model, 1), names, **run)


def test_settings_are_the_same_in_every_process(model):
    """An address in memory would be another one when an evaluation is resumed."""
    report = evaluate(model, labelled_by(model, 1), "pgd-1:target=least-likely,exp-1", epsilon=EPSILON)
    assert " at 0x" not in report.to_json()


def test_attacks_under_other_libraries_names_are_resumed_too(model, tmp_path):
    """Their noise is a batch's own, and their settings are kept."""
    data, state = labelled_by(model), tmp_path / "state"

    def attacks(steps=2):
        return {"pgd": torchattacks.PGD(model, EPSILON, EPSILON / 2, steps)}

    whole = evaluate(model, data, attacks(), epsilon=EPSILON)
    evaluate(model, data[:2], attacks(), epsilon=EPSILON, state=state)
    resumed = evaluate(model, data, attacks(), epsilon=EPSILON, state=state, resume=True)
    assert resumed.to_json() == whole.to_json()
    assert torch.equal(resumed.examples["pgd"], evaluate(model, data[:1], attacks(), epsilon=EPSILON).examples["pgd"])
    with pytest.raises(ValueError, match="attacks differ"):
        evaluate(model, data, attacks(3), epsilon=EPSILON, state=state, resume=True)


def test_a_random_model_is_evaluated_with_the_seed(model):
    noisy = Wrapped(model.eval(), lambda inner, images: inner(images) + 5 * torch.randn(len(images), 4).to(images))
    data = labelled_by(model, 8)
    before = torch.get_rng_state()
    reports = [evaluate(noisy, data, {"same": lambda x, y: x}, epsilon=EPSILON, seed=seed) for seed in (0, 0, 1)]
    assert reports[0].to_dict()["outcomes"] == reports[1].to_dict()["outcomes"] != reports[2].to_dict()["outcomes"]
    assert torch.equal(torch.get_rng_state(), before)


# What it refuses


def bad_attacks():
    return {
        "too far": (lambda x, y: x + (0.5 - x).sign() * EPSILON * 1.01, ValueError, "left the ball of radius 0.1"),
        "out of bounds": (lambda x, y: x - EPSILON / 2, ValueError, "left the ball"),
        "a NaN": (lambda x, y: x * float("nan"), ValueError, "left the ball"),
        "too far, in place": (lambda x, y: x.add_((0.5 - x).sign() * 2 * EPSILON), ValueError, "left the ball"),
        "one image": (lambda x, y: x[:1], ValueError, "must give images"),
        "another dtype": (lambda x, y: x.double(), ValueError, "must give images .* torch.float32, .* torch.float64"),
        "towards the true class": (
            PGD(TinyClassifier(), EPSILON, target="given"), ValueError, "must not have target='given'"
        ),
        "nothing": (lambda x, y: None, ValueError, "must give images"),
        "no function": (3, TypeError, "must be callable"),
    }


@pytest.mark.parametrize("name", bad_attacks())
def test_attacks_that_are_none(model, name):
    attack, error, message = bad_attacks()[name]
    with pytest.raises(error, match=message):
        evaluate(model, labelled_by(model), {"bad": attack}, epsilon=EPSILON)
    assert model.training


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"epsilon": 0.0}, ValueError, "epsilon"),
        ({"norm": "l1"}, ValueError, "norm"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"examples": -1}, ValueError, "examples"),
        ({"survivors_only": 1}, TypeError, "survivors_only"),
        ({"resume": True, "state": None}, ValueError, "state must be given with resume=True"),
        ({"attacks": "pgd-20:target=given"}, ValueError, "must not have target='given'"),
        ({"attacks": "transfer-mim-2:target=given", "source": TinyClassifier()}, ValueError, "target='given'"),
        ({"attacks": 'feaattack:layer="Conv"'}, ValueError, "unknown module 'Conv'; did you mean 'conv'"),
        ({"attacks": "pgd-20:restarts=" + "[" * 10**5}, ValueError, "restarts must be an int, got str"),
        ({"attacks": "pgd-20:steps=3"}, ValueError, "steps is the number in 'pgd-20'"),
        ({"attacks": "pgd:steps=3:steps=4"}, ValueError, "steps, an option of the attack, must be given once"),
        ({"attacks": {"A_rob": "fgsm"}}, ValueError, "must not be called A_rob"),
        ({"attacks": {1: "fgsm"}}, TypeError, "attacks must have names that are texts, got 1"),
        ({"data": tiny_batch()}, TypeError, "data must give .* got a Tensor"),
        ({"data": [tiny_batch()[:1]]}, TypeError, "data must give .* a tuple of 1"),
        ({"processes": "2"}, TypeError, "processes must be .* or None, got str"),
        ({"data": 3}, TypeError, "data must be an ImageData, or batches .* got int"),
        ({"attacks": []}, ValueError, "at least one attack"),
        ({"attacks": "fgsm,,pgd-2"}, ValueError, "with commas between them"),
        ({"attacks": "pgb-20"}, ValueError, "did you mean 'pgd-N'"),
        ({"attacks": "fgsm-3"}, ValueError, "unknown attack 'fgsm-3'"),
        ({"attacks": "pgd-20:stepsize=1"}, ValueError, "did you mean 'step_size'"),
        ({"attacks": "pgd-20:restarts"}, ValueError, "NAME=VALUE"),
        ({"attacks": "pgd-20:restarts=many"}, ValueError, "restarts must be an int"),
        ({"attacks": "transfer-pgd-20"}, ValueError, "source must be given"),
        ({"attacks": "mim-20", "norm": "l2"}, ValueError, "'mim-20' is of the L-infinity ball alone"),
        ({"attacks": [FGSM]}, TypeError, "attacks must be names"),
        ({"attacks": {"natural": "fgsm"}}, ValueError, "must not be called natural"),
        ({"data": []}, ValueError, "data must have at least one image"),
        ({"data": [(tiny_batch()[0] * 2, tiny_batch()[1])]}, ValueError, "images must be finite"),
        ({"model": torch.relu}, TypeError, "model"),
    ],
)
def test_bad_arguments(options, error, message, tmp_path):
    arguments = {"model": TinyClassifier(), "data": batches(), "attacks": "fgsm", "epsilon": EPSILON} | options
    with pytest.raises(error, match=message):
        evaluate(**{"state": tmp_path / "state"} | arguments)
    assert not any(tmp_path.iterdir())


# What a reviewer would ask


def warnings_of(model, data=None, attacks="fgsm", **options):
    data = data or labelled_by(model)
    return " ".join(evaluate(model, data, attacks, epsilon=EPSILON, **options).warnings)


def test_no_warning_where_nothing_is_wrong(model):
    assert warnings_of(model.eval(), attacks="fgsm,pgd-5,pgd-20,mim-20,cw-30") == ""


def test_a_model_in_train_mode(model):
    assert "given in train mode" in warnings_of(model)
    model.eval()
    assert "train mode" not in warnings_of(model)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.train()
    assert "given in train mode" in warnings_of(model)
    model.train()
    norm.eval()
    assert "train mode" not in warnings_of(model), "its batch norm is as in eval mode"


class Wrapped(nn.Module):
    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, images):
        return self.change(self.inner, images)


def test_normalisation_outside_of_the_model(model):
    """What classifies (x - mean) / std, and is given x."""

    def labels_of(images):
        return (images.mean((1, 2, 3)) > 0.5).long()

    def bright(inner, images):  # right for normalised images, blind for others
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean - (images.min() >= 0) * 9.0], 1)

    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(64, 3, 6, 5, generator=generator) * 0.2 + torch.linspace(0, 0.8, 64)[:, None, None, None])
    data = [(images, labels_of(images))]
    assert "normalised outside" in warnings_of(Wrapped(model, bright), data)
    assert "normalised outside" not in warnings_of(model.eval())


def test_a_model_that_refuses_other_images(model):
    def strict(inner, images):
        assert images.min() >= 0 and images.max() <= 1
        return inner(images)

    assert warnings_of(Wrapped(model.eval(), strict)) == ""


def test_an_attack_in_a_smaller_ball(model):
    model.eval()
    for attack in (PGD(model, EPSILON / 2), Transfer(model, PGD, EPSILON / 2)):
        for survivors_only in (False, True):
            warning = warnings_of(model, attacks={"weak": attack}, survivors_only=survivors_only)
            assert "weak stays in a ball of radius 0.05 (linf), and the report is of radius 0.1 (linf)" in warning
    assert "radius 0.1 (l2), and" in warnings_of(model, attacks="pgd-2:norm=l2")


def test_a_model_without_a_gradient(model):
    rounded = Wrapped(model.eval(), lambda inner, images: inner((images * 8).round() / 8))
    assert "exactly zero for 100% of the images" in warnings_of(rounded, labelled_by(rounded))
    saturated = Wrapped(model, lambda inner, images: inner(images) * 1e4)
    assert "exactly zero" in warnings_of(saturated, labelled_by(saturated))
    detached = Wrapped(model, lambda inner, images: inner(images.detach()))
    assert "no gradient with respect to its input" in warnings_of(
        detached, labelled_by(detached), {"towards 1": toward(1)}
    )


def test_a_random_model(model):
    noisy = Wrapped(model.eval(), lambda inner, images: inner(images) + 0.01 * torch.randn(len(images), 4).to(images))
    assert "different logits for the same images" in warnings_of(noisy, labelled_by(model))


def test_logits_that_are_not_finite(model):
    def broken(inner, images):
        dark = images.mean((1, 2, 3)) < 0.5
        return inner(images).masked_fill(dark.unsqueeze(1), float("nan"))

    model.eval()
    same = {"same": lambda x, y: x}
    report = evaluate(Wrapped(model, broken), labelled_by(model), same, epsilon=EPSILON)
    assert "not finite" in " ".join(report.warnings)
    dark = torch.cat([images for images, _ in labelled_by(model)]).mean((1, 2, 3)) < 0.5
    assert torch.equal(report.natural, evaluate(model, labelled_by(model), same, epsilon=EPSILON).natural & ~dark)
    assert 0 < report.natural.sum() < 28


def test_more_steps_that_are_weaker(model):
    class Fading(PGD):
        def perturb(self, images, labels):
            return images.unsqueeze(0).clone() if self.steps > 5 else super().perturb(images, labels)

    model.eval()
    attacks = {"short": Fading(model, EPSILON, steps=5), "long": Fading(model, EPSILON, steps=50)}
    assert "more iterations should not make an attack weaker" in warnings_of(model, attacks=attacks)
    for other in ({"step_size": 0.01}, {"loss": Margin()}, {"target": "least-likely"}):
        attacks["long"] = Fading(model, EPSILON, steps=50, **other)
        assert "iterations" not in warnings_of(model, attacks=attacks), f"{other} is another attack"


@pytest.mark.parametrize("gained, lost, images, warned", [
    (1, 0, 32, False), (4, 2, 360, False), (5, 0, 1000, False), (12, 3, 1000, True), (90, 70, 2000, False),
    (100, 50, 2000, True),
])  # fmt: skip
def test_a_few_images_are_no_sign_of_anything(gained, lost, images, warned):
    """Random starts break now one image more, now one less: of 32, that is 3%."""
    outcome = torch.ones(images, dtype=torch.int8)
    short, longer = outcome.clone(), outcome.clone()
    short[:gained] = 0
    longer[gained : gained + lost] = 0
    settings = {name: {"class": "PGD", "steps": steps} for name, steps in (("short", 20), ("longer", 100))}
    report = RobustReport(
        settings={"attacks": settings, "epsilon": 0.1, "norm": "linf", "survivors_only": False},
        labels=torch.zeros(images, dtype=torch.int64), natural=outcome.bool(),
        outcomes={"short": short, "longer": longer}, examples={},
    )  # fmt: skip
    assert bool(suspicious_results(report, dict.fromkeys(settings))) == warned


def test_a_black_box_that_is_stronger(model):
    class Outside:
        is_black_box = True

        def __call__(self, images, labels):
            return MIM(model, EPSILON)(images, labels)

    model.eval()
    weak = PGD(model, EPSILON, steps=0)
    assert "less than all attacks that follow the gradient" in warnings_of(model, attacks={"a": weak, "b": Outside()})
    assert warnings_of(model, attacks={"a": MIM(model, EPSILON), "b": Outside()}) == ""


# The report


def test_a_rob_of_some_attacks_is_told_only_where_it_is_known(model):
    data = labelled_by(model, 8)
    report = evaluate(model, data, ATTACKS, epsilon=EPSILON, survivors_only=True)
    rows = brute_force(model, data, ATTACKS)
    first, second, third = ATTACKS
    expected = [all(right) for right in zip(rows["natural"], rows[first], rows[second])]
    assert report.is_robust_under([first, second]).tolist() == expected
    assert report.robust_accuracy_under([second, first]).correct == sum(expected)
    with pytest.raises(ValueError, match="attacks must have those before 'towards 1' among them"):
        report.robust_accuracy_under([second])


def test_an_attack_may_leave_a_graph_and_the_model_in_train_mode(model, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")

    def careless(images, labels):
        model.train()
        x = images.clone().requires_grad_()
        return (x + EPSILON * (0.5 - x).sign() * 0.5).clamp(0, 1)

    class Modal(TinyClassifier):
        def forward(self, images):
            return -super().forward(images) if self.training else super().forward(images)

    model = Modal().to(next(model.parameters()).device).eval()
    data = labelled_by(model)
    attacks = {"careless": careless, "same": lambda x, y: x}
    report = evaluate(model, data, attacks, epsilon=EPSILON)
    assert report.accuracy("same").correct == report.natural_accuracy.correct == 28
    assert report.accuracy("careless").correct > 0
    assert not model.training and not report.examples["careless"].requires_grad
    report.save(tmp_path)


def test_json_markdown_and_html(model, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    report = evaluate(model, labelled_by(model), "fgsm,pgd-2", epsilon=EPSILON)
    files = report.save(tmp_path / "out")
    assert [file.name for file in files] == ["report.json", "report.md", "report.html"]
    data = json.loads(files[0].read_text())
    assert data["accuracy"]["A_rob"] == {
        "share": float(report.robust_accuracy), "correct": report.robust_accuracy.correct, "total": 32
    }  # fmt: skip
    assert data["outcomes"]["pgd-2"] == "".join(str(int(value)) for value in report.outcomes["pgd-2"])
    assert data["labels"] == report.labels.tolist()
    markdown = files[1].read_text()
    assert f"| **A_rob** | {report.robust_accuracy} |" in markdown and "train mode" in markdown
    page = files[2].read_text()
    assert page.count("data:image/png;base64,") == 3 and "http" not in page and "train mode" in page
    assert report.save(tmp_path / "again")[2].read_text() == page, "the same bytes"


def test_without_matplotlib_there_is_no_html(model, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = evaluate(model, labelled_by(model), "fgsm", epsilon=EPSILON)
    (tmp_path / "report.html").write_text("of another model")
    assert [file.name for file in report.save(tmp_path)] == ["report.json", "report.md"]
    assert not (tmp_path / "report.html").exists()


def test_examples(model):
    data = labelled_by(model)
    report = evaluate(model, data, "fgsm", epsilon=EPSILON, examples=3)
    (images, labels), *_ = data
    right = (report.natural[:8]).nonzero().squeeze(1)[:3]
    assert torch.equal(report.examples["natural"], images[right])
    device = next(model.parameters()).device
    expected = FGSM(model, EPSILON)(images[right].to(device), labels[right].to(device)).cpu()
    torch.testing.assert_close(report.examples["fgsm"], expected)
    none = evaluate(model, data, "fgsm", epsilon=EPSILON, examples=0)
    assert len(none.examples["fgsm"]) == 0 and none.to_dict()["accuracy"] == report.to_dict()["accuracy"]
