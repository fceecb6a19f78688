"""What ADT learns: moments against Monte Carlo, samples one by one against plain PyTorch, the figure, the command."""

import csv
import json
import math

import independent_noise
import numpy as np
import pytest
import torch
from plain_adt import TinyClassifier, tiny_batch
from torch import nn

from adt_fast import NoiseStream, cli
from adt_fast.analysis import DistributionPicture, distribution_entropy, learned_distribution
from adt_fast.attacks import EXP, EXPAM, PGD
from adt_fast.checkpoint import load_state
from adt_fast.data import class_names, load_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = 0.2
SEED = 5


def exp(model, **options):
    return EXP(model, EPSILON, steps=3, noise=NoiseStream(1), **options)


def unsure_classifier():
    """So unsure that an attack succeeds with some samples only."""
    model = TinyClassifier()
    with torch.no_grad():
        for parameter in model.fc.parameters():
            parameter.mul_(0.3)
    return model


@pytest.fixture
def model(device):
    return unsure_classifier().to(device).train()


@pytest.fixture
def batch(device):
    """Images that are classified right."""
    images, _ = tiny_batch(3, seed=2)
    return images.to(device), unsure_classifier().eval()(images).argmax(1).to(device)


@pytest.fixture
def found(model, batch):
    return learned_distribution(exp(model), *batch, samples=40, shown=2, seed=SEED)


def test_moments_against_monte_carlo(found, model, batch):
    attack = exp(model)
    result = attack.maximize(*batch)
    mu, sigma = result.mu.cpu().double().numpy(), np.log1p(np.exp(result.rho.cpu().double().numpy()))
    np.testing.assert_array_equal(found.mu, mu)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-12)
    generator, count = np.random.default_rng(0), 100_000
    for image in range(3):
        r = generator.standard_normal((count, 30), dtype=np.float32)  # of one channel
        delta = EPSILON * np.tanh(mu[image, image].ravel() + sigma[image, image].ravel() * r.astype(np.float64))
        mean, std = (values[image, image].flatten().numpy() for values in (found.mean, found.std))
        assert (np.abs(delta.mean(0) - mean) < 5 * std / math.sqrt(count)).all()
        assert (np.abs(delta.std(0) / std - 1) < 0.05).all()
        assert std.max() > 1.5 * std.min(), "not all the same"


def test_entropy_is_that_of_distribution_entropy(found, model, batch):
    sampled = distribution_entropy(exp(model), [batch], samples=400)
    errors = sampled.standard_errors / 90
    assert bool(((found.entropies - sampled.per_image / 90).abs() < 4 * errors).all())
    assert bool((errors < 0.01).all())
    assert found.highest_entropy == pytest.approx(math.log(2 * EPSILON))
    assert float(found.entropies.max()) < found.highest_entropy


def test_samples_one_by_one(found, model, batch):
    """PGD's start is the first draw of the seed; the samples are the next ones."""
    images, labels = (tensor.cpu() for tensor in batch)
    plain = unsure_classifier().double().eval()
    wrong, probabilities = np.zeros(3), np.zeros(3)
    for sample in range(40):
        r = torch.from_numpy(independent_noise.normals((3, 3, 6, 5), seed=SEED, offset=1 + sample)[0].astype("float64"))
        x_adv = (images.double() + EPSILON * torch.tanh(found.mu + found.sigma * r)).clamp(0, 1)
        given = plain(x_adv).softmax(1).detach()
        wrong += (given.argmax(1) != labels).numpy()
        probabilities += given[range(3), labels].numpy()
        if sample < 2:
            torch.testing.assert_close(found.examples[:, sample], x_adv, rtol=0, atol=1e-6)
            assert found.example_classes[:, sample].tolist() == given.argmax(1).tolist()
    assert found.misclassified.tolist() == pytest.approx(wrong / 40)
    assert found.sample_probabilities.tolist() == pytest.approx(probabilities / 40, abs=1e-5)
    assert len(set(found.misclassified.tolist())) == 3, "shares that can be told apart"


def test_images_and_pgd(found, model, batch):
    plain, labels = unsure_classifier().double().eval(), batch[1].cpu()
    x_adv = PGD(model, EPSILON, steps=20, noise=NoiseStream(SEED))(*batch).cpu().double()
    assert torch.equal(found.images, batch[0].cpu().double()) and torch.equal(found.labels, labels)
    assert torch.equal(found.pgd, x_adv - found.images)
    for images, classes, probabilities in (
        (found.images, found.natural_classes, found.natural_probabilities),
        (x_adv, found.pgd_classes, found.pgd_probabilities),
    ):
        given = plain(images).softmax(1).detach()
        assert classes.tolist() == given.argmax(1).tolist()
        assert probabilities.tolist() == pytest.approx(given[range(3), labels].tolist(), abs=1e-5)
    assert bool((found.pgd_probabilities < found.natural_probabilities).all())


@pytest.mark.parametrize("recipe", ["published", "paper"])
def test_samples_are_in_the_ball_and_are_images(model, batch, recipe):
    """The paper's recipe samples x + delta as it is; what is shown and tried is an image all the same."""
    # With steps so large that tanh is 1, and x + delta rounds to points that are just outside.
    found = learned_distribution(exp(model, recipe=recipe, step_size=20.0), *batch, samples=30, shown=30)
    assert found.examples.shape == (3, 30, 3, 6, 5)
    assert bool(((found.examples - found.images[:, None]).abs() <= EPSILON).all())
    assert found.examples.min() >= 0 and found.examples.max() <= 1
    wrong = (found.example_classes != found.labels[:, None]).double().mean(1)
    assert wrong.tolist() == pytest.approx(found.misclassified.tolist())


def test_a_seed_gives_the_same_whatever_the_batch_size(found, model, batch):
    again = learned_distribution(exp(model), *batch, samples=40, shown=2, batch_size=1, seed=SEED)
    assert torch.equal(again.examples, found.examples) and torch.equal(again.misclassified, found.misclassified)
    torch.testing.assert_close(again.sample_probabilities, found.sample_probabilities, rtol=1e-6, atol=1e-7)
    other = learned_distribution(exp(model), *batch, samples=40, shown=2, seed=SEED + 1)
    assert torch.equal(other.mean, found.mean) and not torch.equal(other.examples, found.examples)


def test_it_leaves_no_trace(model, batch):
    model.conv.eval()
    model.fc.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learned_distribution(exp(model), *batch, samples=4)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [True] * 5 + [False]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Constant(nn.Module):
    """A generator of mu = 0.5 and rho = -1 everywhere."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Parameter(torch.tensor([0.5, -1.0]))

    def forward(self, inputs):
        return self.phi.repeat_interleave(3).view(1, 6, 1, 1).expand(len(inputs), 6, *inputs.shape[2:])


def test_distribution_of_a_generator(model, batch, device):
    attack = EXPAM(model, EPSILON, generator=Constant().to(device))
    found = learned_distribution(attack, *batch, samples=4)
    assert found.attack == "EXPAM" and bool((found.mu == 0.5).all())
    assert bool(((found.sigma - math.log1p(math.exp(-1))).abs() < 1e-12).all())
    assert float(found.mean.max() - found.mean.min()) == 0 and 0.4 < found.mean[0, 0, 0, 0] / EPSILON < math.tanh(0.5)


def test_files(found, tmp_path):
    pytest.importorskip("matplotlib")
    saved = found.save(tmp_path)
    data = json.loads(saved.files[0].read_text())
    assert set(data) == {
        "attack", "labels", "entropies", "example_classes", "misclassified", "sample_probabilities", "natural_classes",
        "natural_probabilities", "pgd_classes", "pgd_probabilities", "samples", "epsilon", "class_names",
        "highest_entropy",
    }  # fmt: skip
    assert data["misclassified"] == found.misclassified.tolist() and data["attack"] == "EXP"
    with open(saved.files[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 90
    row = rows[90 + 2 * 30 + 4 * 5 + 3]
    assert [int(row[name]) for name in ("image", "channel", "row", "column")] == [1, 2, 4, 3]
    for column, values in {"x": found.images, "mu": found.mu, "sigma": found.sigma, "mean": found.mean,
                           "std": found.std, "pgd": found.pgd}.items():  # fmt: skip
        assert float(row[column]) == pytest.approx(values[1, 2, 4, 3].item(), rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("channels", [1, 3])
def test_figure(model, batch, channels):
    """Each picture is what its title says, in the order of the columns."""
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_hex

    class First(nn.Module):
        def forward(self, images):
            return model(images.expand(-1, 3, -1, -1))

    images, labels = batch
    attack = exp(First() if channels == 1 else model)
    names = ("bee", "cat", "cow", "dog")
    found = learned_distribution(attack, images[:, :channels].contiguous(), labels, samples=9, shown=2,
                                 class_names=names)  # fmt: skip
    figure = found.plot()
    pictures = [axes for axes in figure.axes if axes.images]
    shown = [axes.images[0].get_array() for axes in pictures]
    titles = [axes.get_title() for axes in pictures]
    assert len(pictures) == 3 * 9
    for band in range(3):
        mine, its_titles, axes = (part[9 * band : 9 * band + 9] for part in (shown, titles, pictures))
        deltas = found.examples[band] - found.images[band]
        for place, image in {0: found.images[band], 1: found.examples[band, 0], 3: found.examples[band, 1],
                             5: found.images[band] + found.pgd[band]}.items():  # fmt: skip
            np.testing.assert_allclose(mine[place], drawn(image))
        for place, delta in {2: deltas[0], 4: deltas[1], 6: found.pgd[band], 7: found.mean[band]}.items():
            unit = delta / EPSILON
            np.testing.assert_allclose(mine[place], drawn(unit if channels == 1 else unit / 2 + 0.5), atol=1e-12)
            if channels == 1:
                assert axes[place].images[0].get_clim() == (-1, 1)
        np.testing.assert_allclose(mine[8], found.std[band].mean(0) / EPSILON)
        classes = [found.natural_classes[band], *found.example_classes[band], found.pgd_classes[band]]
        for place, number in zip((0, 1, 3, 5), classes):
            assert its_titles[place] == names[number]
            right = int(number) == int(found.labels[band])
            assert to_hex(axes[place].title.get_color()) == ("#0072b2" if right else "#d55e00")
    texts = [text.get_text() for text in figure.texts]
    share = f"{found.misclassified[1]:.0%} of 9 misclassified"
    assert share in texts and f"p({names[found.labels[0]]})" in texts


def drawn(image):
    return image[0] if len(image) == 1 else image.permute(1, 2, 0)


def test_class_names():
    assert class_names("cifar10")[3] == "cat" and class_names("digits") == class_names("svhn") == tuple("0123456789")
    assert class_names("cifar100") is None and class_names("mine") is None
    assert len(class_names("cifar10")) == 10


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"samples": 0}, ValueError, "samples must be in"),
        ({"samples": 3, "shown": 4}, ValueError, r"shown must be in \[1, 3\], got 4"),
        ({"shown": 0}, ValueError, "shown must be in"),
        ({"batch_size": 0}, ValueError, "batch_size must be in"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"class_names": "abcd"}, TypeError, "class_names must be a list of str or None, got 'abcd'"),
        ({"class_names": ["a", "b"]}, ValueError, "class_names must be 4, one for each class of the model, got 2"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        learned_distribution(EXP(TinyClassifier(), EPSILON, steps=1), *tiny_batch(2), **options)


def test_bad_attacks_and_images():
    images, labels = tiny_batch(2)
    with pytest.raises(TypeError, match="attack must be an EXP or an EXPAM, got PGD"):
        learned_distribution(PGD(TinyClassifier()), images, labels)
    with pytest.raises(ValueError, match="attack must have the target 'none'"):
        learned_distribution(EXP(TinyClassifier(), target="given"), images, labels)
    with pytest.raises(ValueError, match=r"images must be finite, in \[0, 1\]"):
        learned_distribution(EXP(TinyClassifier()), images * 255, labels)
    with pytest.raises(ValueError, match="labels must be in"):
        learned_distribution(EXP(TinyClassifier()), images, labels + 4)


# ---- The command -----------------------------------------------------------------------------------------------------
SMALL = ["--epochs", "1", "--train-limit", "64", "--test-limit", "20", "--device", "cpu"]
QUICK = ["--test-limit", "20", "--tried", "20", "--shown", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of adt-exp, with options of its own, and of adt-exp-am."""
    folder = tmp_path_factory.mktemp("runs")
    exp = ["--steps", "2", "--samples", "3", "--step-size", "0.4", "--entropy-weight", "0.02"]
    for method, options in {"adt-exp": exp, "adt-exp-am": ["--generator-width", "8"], "standard": []}.items():
        assert cli.main(["train", "--method", method, "--output", str(folder / method), *options, *SMALL]) == 0
    return folder


def seen(runs, tmp_path, monkeypatch, *arguments):
    """What :func:`learned_distribution` is called with, and gives, for a command."""
    calls = []

    def spy(*given, **options):
        calls.append((given, options, learned_distribution(*given, **options)))
        return calls[0][2]

    monkeypatch.setattr("adt_fast.commands.distribution.learned_distribution", spy)
    monkeypatch.setattr(DistributionPicture, "draw", lambda self, figure: None)  # which takes its time
    run, *flags = arguments
    assert cli.main(["distribution", str(runs / run), *QUICK, "--output", str(tmp_path / "out"), *flags]) == 0
    return calls[0]


def test_the_command_takes_the_options_of_the_training(runs, tmp_path, monkeypatch):
    (attack, images, labels), _, found = seen(runs, tmp_path, monkeypatch, "adt-exp", "--image", "0", "7")
    assert isinstance(attack, EXP)
    assert (attack.steps, attack.samples, attack.step_size, attack.entropy_weight) == (2, 3, 0.4, 0.02)
    test = load_dataset("digits", "test")
    assert torch.equal(images.cpu(), test.images[[0, 7]] / 255) and torch.equal(labels.cpu(), test.labels[[0, 7]])
    assert found.epsilon == 0.15 and found.class_names == tuple("0123456789") and found.samples == 20
    assert json.loads((tmp_path / "out" / "data.json").read_text())["misclassified"] == found.misclassified.tolist()


def test_flags_go_before_the_training(runs, tmp_path, monkeypatch):
    (attack, *_), _, found = seen(runs, tmp_path, monkeypatch, "adt-exp", "--steps", "4", "--epsilon", "0.05",
                                  "--recipe", "paper")  # fmt: skip
    assert (attack.steps, attack.samples, attack.recipe.clamp) == (4, 3, False) and found.epsilon == 0.05


@pytest.mark.parametrize("run, flags", [("standard", []), ("adt-exp-am", ["--attack", "exp"])])
def test_where_the_training_had_no_exp_it_is_the_papers(runs, tmp_path, monkeypatch, run, flags):
    (attack, *_), *_ = seen(runs, tmp_path, monkeypatch, run, *flags)
    assert isinstance(attack, EXP)
    assert (attack.steps, attack.samples, attack.step_size, attack.entropy_weight) == (7, 5, 0.3, 0.01)


def test_a_run_with_a_generator_shows_what_that_gives(runs, tmp_path, monkeypatch):
    (attack, *_), *_ = seen(runs, tmp_path, monkeypatch, "adt-exp-am")
    assert isinstance(attack, EXPAM)
    saved = load_state(runs / "adt-exp-am" / "maximizer.safetensors", "joint_training", "networks")[0]["generator"]
    trained = attack.generator.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in saved["network"].items())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["adt-exp", "--attack", "exp-am"], "attack must be exp for"),
        (["adt-exp", "--attack", "pgd"], "attack must be one of 'exp', 'exp-am', got 'pgd'"),
        (["adt-exp-am", "--steps", "3"], "steps must not be given with exp-am"),
        (["adt-exp", "--image", "20"], "image must be in [0, 19], got 20"),
        (["adt-exp", "--shown", "21"], "shown must be in [1, 20], got 21"),
        (["adt-exp", "--tried", "0"], "tried must be in"),
        (["adt-exp", "--norm", "l2"], "norm must be linf for this analysis"),
        (["adt-exp", "--recipe", "mine"], "recipe must be one of 'published', 'paper'"),
    ],
)
def test_bad_flags(runs, tmp_path, capsys, arguments, message):
    run, *flags = arguments
    assert cli.main(["distribution", str(runs / run), *QUICK, "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
