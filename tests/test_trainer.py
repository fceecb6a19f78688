"""Trainer: whole steps against plain ones, modes, failures that change nothing, and the loop."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from plain_adt import TinyClassifier, recipe_inner, tiny_batch

from adt_fast import NoiseStream, ops
from adt_fast._training.step import multiplies_bf16
from adt_fast.attacks import PGD, exp_recipe
from adt_fast.input_gradient import EngineOptions
from adt_fast.methods import CrossEntropy, Method, create_method, method_names, method_spec
from adt_fast.trainer import ADTExpTrainer, EpochResult, StepResult, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON, STEPS, SAMPLES, SEED = 0.1, 3, 2, 13


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def trainer_of(model, **options):
    settings = {"steps": STEPS, "samples": SAMPLES, "seed": SEED} | options
    return ADTExpTrainer(model, sgd(model), EPSILON, **settings)


@pytest.fixture
def problem(device):
    images, labels = tiny_batch(6)
    return TinyClassifier().double().to(device), images.double().to(device), labels.to(device)


def plain_step(model, optimizer, images, labels, recipe, offset):
    """The inner maximisation and the outer step, plainly; `offset` is the first draw's."""
    noise = NoiseStream(SEED, images.device, offset).state
    normals = torch.stack([ops.normal(images, noise, samples=SAMPLES, draw=t) for t in range(STEPS)])
    mu, rho = recipe_inner(model, images, labels, normals, recipe, epsilon=EPSILON, step_size=0.3, entropy_weight=0.01)
    model.train()
    last = ops.normal(images, noise, samples=recipe.outer_samples, draw=STEPS)
    x_adv = images + EPSILON * torch.tanh(mu + F.softplus(rho) * last)
    x_adv = x_adv.clamp(0, 1) if recipe.clamp else x_adv
    # One batch of all samples: batch norm in train mode sees them together.
    loss = F.cross_entropy(model(x_adv.flatten(0, 1)), labels.repeat(recipe.outer_samples))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    "recipe",
    [exp_recipe("published"), exp_recipe("paper"), exp_recipe("paper", outer_samples=3)],
    ids=["published", "paper", "paper-outer_samples"],
)
def test_steps_equal_plain_ones(problem, recipe):
    model, images, labels = problem
    plain = copy.deepcopy(model)
    trainer, optimizer = trainer_of(model, recipe=recipe), sgd(plain)
    for step in range(3):
        result = trainer.step(images, labels)
        loss = plain_step(plain, optimizer, images, labels, recipe, offset=step * (STEPS + 1))
        assert result.loss == pytest.approx(loss, rel=1e-9) and result.images == 6
    for (name, ours), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    assert trainer.noise.offset == 3 * (STEPS + 1)


def test_the_modes_of_inner_and_outer_passes(problem):
    """Eval inside, train outside, and each module afterwards as it was."""
    model, images, labels = problem
    seen = []
    model.norm.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    trainer = trainer_of(model)
    model.eval()
    model.conv.train()
    trainer.step(images, labels)
    assert [module.training for module in model.modules()] == [False, True, False, False]
    count = seen.pop(0)  # the first batch tells how many classes there are
    assert count == (False, False)
    assert seen == [(False, True)] * STEPS + [(True, True)]


def test_keep_leaves_frozen_batch_norm_alone(problem):
    model, images, labels = problem
    model.train()
    model.norm.eval()
    before = model.norm.running_mean.clone()
    trainer_of(model, outer_mode="keep").step(images, labels)
    assert torch.equal(model.norm.running_mean, before)
    trainer_of(model).step(images, labels)
    assert not torch.equal(model.norm.running_mean, before)


def test_steps_are_reproducible_and_chunks_do_not_matter(problem):
    model, images, labels = problem
    weights = []
    for options in ({}, {}, {"engine": EngineOptions(chunk=5)}, {"seed": 14}):
        mine = copy.deepcopy(model)
        trainer_of(mine, **options).step(images, labels)
        weights.append(mine.fc.weight)
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])
    assert not torch.allclose(weights[0], weights[3])


def test_host_batches_move_to_the_model(problem):
    model, images, labels = problem
    assert isinstance(trainer_of(model).step(images.cpu(), labels.cpu()), StepResult)


def test_accuracy_is_of_the_adversarial_images(problem):
    model, images, labels = problem
    model.eval()
    predicted = model(images).argmax(1)
    trainer = Trainer(model, sgd(model), create_method("standard", model), outer_mode="eval")
    labels = predicted.clone()
    labels[0] = (labels[0] + 1) % 4
    result = trainer.step(images, labels)
    assert result.accuracy == pytest.approx(5 / 6)


def state(trainer):
    gradients = (parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None)
    tensors = [*trainer.model.state_dict().values(), *gradients]
    return [tensor.clone() for tensor in tensors], trainer.noise.offset, copy.deepcopy(trainer.optimizer.state_dict())


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (lambda x, y: (x * 2, y), ValueError, "images must be finite"),
        (lambda x, y: (x / 0 * 0, y), ValueError, "images must be finite"),
        (lambda x, y: ((x * 255).byte(), y), TypeError, "images must be float32"),
        (lambda x, y: (x.flatten(1), y), ValueError, "images must be a batch"),
        (lambda x, y: (x, y + 4), ValueError, "labels must be in"),
        (lambda x, y: (x, y.int()), TypeError, "labels must be an int64 tensor"),
        (lambda x, y: (x.numpy(), y), TypeError, "images must be a torch.Tensor"),
        (lambda x, y: (x, y.tolist()), TypeError, "labels must be an int64 tensor"),
    ],
)
def test_bad_batches_change_nothing(spoil, error, message):
    images, labels = tiny_batch(6)
    trainer = trainer_of(TinyClassifier())
    trainer.step(images, labels)
    before = state(trainer)
    with pytest.raises(error, match=message):
        trainer.step(*spoil(images, labels))
    torch.testing.assert_close(state(trainer), before, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_leaves_the_weights():
    images, labels = tiny_batch()
    model = TinyClassifier()
    trainer = Trainer(model, sgd(model), create_method("standard", model))
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(FloatingPointError, match="loss is nan"):
        trainer.step(images, labels)
    torch.testing.assert_close(before, list(model.parameters()), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(FloatingPointError, match="input gradient"):
        trainer_of(model).step(images, labels)


def test_fit_runs_epochs_schedule_and_callbacks(capsys):
    model = TinyClassifier()
    batches = [tiny_batch(batch, seed) for batch, seed in ((6, 1), (2, 2))]
    trainer, epochs = trainer_of(model), []
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=1, gamma=0.5)
    results = trainer.fit(batches, epochs=3, scheduler=scheduler, callbacks=[epochs.append])
    assert epochs == results and all(isinstance(result, EpochResult) for result in results)
    assert [result.epoch for result in results] == [1, 2, 3]
    assert [result.images for result in results] == [8, 8, 8]
    assert [result.learning_rate for result in results] == [0.1, 0.05, 0.025]
    assert scheduler.last_epoch == 3
    assert capsys.readouterr().err == "", "no progress bar where stderr is no terminal"

    per_step = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=1)
    trainer.fit(batches, epochs=2, scheduler=per_step, schedule_every="step", progress=True)
    assert per_step.last_epoch == 4
    assert "epoch 2/2" in capsys.readouterr().err


def test_fit_averages_over_images():
    model = TinyClassifier().eval()
    batches = [tiny_batch(batch, seed) for batch, seed in ((6, 1), (2, 2))]
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, frozen, create_method("standard", model), outer_mode="eval")
    (result,) = trainer.fit(batches, epochs=1)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert result.loss == pytest.approx(F.cross_entropy(model(images), labels).item(), rel=1e-5)
    assert result.accuracy == pytest.approx((model(images).argmax(1) == labels).float().mean().item())


def test_fit_takes_any_iterable_and_refuses_an_empty_one():
    trainer = trainer_of(TinyClassifier())

    class Batches:
        def __iter__(self):
            yield tiny_batch(3)

    assert len(trainer.fit(Batches(), epochs=2)) == 2
    with pytest.raises(ValueError, match="loader must give at least one batch"):
        trainer.fit([], epochs=1)
    with pytest.raises(ValueError, match="epochs"):
        trainer.fit(Batches(), epochs=0)
    with pytest.raises(ValueError, match="schedule_every"):
        trainer.fit(Batches(), epochs=1, schedule_every="batch")


def test_training_makes_a_classifier_robust():
    """Two classes that differ by a strong and a weak, easily perturbed, feature."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256,), generator=generator)
    images = torch.full((256, 3, 6, 5), 0.5) + 0.1 * torch.rand(256, 3, 6, 5, generator=generator)
    images[:, 0, 0, 0] += 0.6 * (labels - 0.5)  # undone by epsilon = 0.3
    images[:, 1:] += 0.1 * (labels - 0.5).view(-1, 1, 1, 1)  # undone by epsilon = 0.05
    accuracy = {}
    for name in ("standard", "adt-exp"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(90, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        trainer = Trainer(model, optimizer, create_method(name, model, epsilon=0.1, noise=NoiseStream(0)))
        trainer.fit([(images, labels)], epochs=60)
        adversarial = PGD(model, 0.1, noise=NoiseStream(1))(images, labels)
        accuracy[name] = (model(adversarial).argmax(1) == labels).float().mean().item()
    assert accuracy["standard"] < 0.2 and accuracy["adt-exp"] > 0.8, accuracy


def test_a_wrapped_model():
    """The attack runs on the module inside, the outer pass through the wrapper: the same step."""
    images, labels = tiny_batch(6)
    plain, wrapped = TinyClassifier(), TinyClassifier()
    trainer_of(plain).step(images, labels)
    outside = torch.nn.DataParallel(wrapped)
    forwards = []
    outside.register_forward_hook(lambda *_: forwards.append(1))
    trainer_of(outside).step(images, labels)
    assert len(forwards) == 1
    torch.testing.assert_close(plain.state_dict(), wrapped.state_dict(), rtol=0, atol=0)


def test_bfloat16_is_that_of_the_images_gpu(monkeypatch):
    """Not of the current one, where the two are of different ages."""
    current = [0]

    @contextlib.contextmanager
    def on(device):
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[0] == 1)
    assert [multiplies_bf16(torch.device("cuda", index)) for index in (0, 1)] == [False, True]


def test_the_outer_pass_in_bfloat16():
    """Weights, their gradients and the optimizer stay float32; "auto" follows the inner precision."""
    images, labels = tiny_batch(6)
    weights = {}
    for precision, inner in (("fp32", "bf16"), ("bf16", "fp32"), ("auto", "bf16"), ("auto", "fp32")):
        model = TinyClassifier()
        seen = []
        model.fc.register_forward_hook(lambda module, inputs, logits, seen=seen: seen.append(logits.dtype))
        trainer_of(model, outer_precision=precision, engine=EngineOptions(precision=inner)).step(images, labels)
        assert model.fc.weight.dtype == model.fc.weight.grad.dtype == torch.float32
        weights[precision, inner] = (model.fc.weight.detach(), seen[-1])
    dtypes = {settings: dtype for settings, (_, dtype) in weights.items()}
    assert dtypes["fp32", "bf16"] == dtypes["auto", "fp32"] == torch.float32
    assert dtypes["bf16", "fp32"] == dtypes["auto", "bf16"] == torch.bfloat16
    torch.testing.assert_close(weights["bf16", "fp32"][0], weights["fp32", "bf16"][0], rtol=0, atol=0.01)


def test_methods_by_name():
    model = TinyClassifier()
    assert len(method_names()) == 13
    adt = create_method("adt-exp", model, epsilon=0.2, samples=4)
    assert (adt.maximizer.epsilon, adt.maximizer.steps, adt.maximizer.samples) == (0.2, 7, 4)
    assert create_method("at-pgd", model, epsilon=0.2).maximizer.steps == 7
    assert create_method("standard", model) == Method(None, CrossEntropy())
    assert method_spec("adt-exp").defaults()["entropy_weight"] == 0.01
    assert method_spec("standard").defaults() == {"label_smoothing": 0.0}


def test_joint_training_needs_networks():
    model = TinyClassifier()
    joint = create_method("l2l", model, image_shape=(3, 6, 5), generator_width=4).joint
    with pytest.raises(TypeError, match="joint must be None for a maximizer without networks, PGD"):
        Method(create_method("at-pgd", model).maximizer, CrossEntropy(), joint)
    other = create_method("l2l", model, image_shape=(3, 6, 5), generator_width=4)
    with pytest.raises(ValueError, match="joint must train the networks of this maximizer"):
        Method(other.maximizer, CrossEntropy(), joint)
    with pytest.raises(TypeError, match="maximizer must be an Attack or None, got str"):
        Method("pgd", CrossEntropy())


def test_unknown_methods_and_options():
    with pytest.raises(ValueError, match="did you mean 'adt-exp'"):
        create_method("adt-expp", TinyClassifier())
    with pytest.raises(ValueError, match="steps is no option of method 'standard', which has label_smoothing"):
        create_method("standard", TinyClassifier(), steps=3)
    with pytest.raises(ValueError, match="samples is no option of method 'at-pgd', which has steps"):
        create_method("at-pgd", TinyClassifier(), samples=3)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"model": torch.relu}, TypeError, "model"),
        ({"optimizer": "sgd"}, TypeError, "optimizer"),
        ({"method": "adt-exp"}, TypeError, "method"),
        ({"method": create_method("at-pgd", TinyClassifier())}, ValueError, "method must be one for this model"),
        ({"outer_mode": "training"}, ValueError, "outer_mode"),
    ],
)
def test_bad_settings(options, error, message):
    model = TinyClassifier()
    settings = {"model": model, "optimizer": sgd(model), "method": create_method("standard", model)} | options
    with pytest.raises(error, match=message):
        Trainer(**settings)


@pytest.mark.parametrize(
    "name, value",
    [("epsilon", -1.0), ("steps", -1), ("samples", 0), ("recipe", "x"), ("outer_precision", "fp16"), ("seed", 2**63)],
)
def test_bad_settings_of_adt_exp(name, value):
    model = TinyClassifier()
    with pytest.raises(ValueError, match=name):
        ADTExpTrainer(model, sgd(model), **{name: value})
