"""Single operators in a project of your own: nothing of adt_fast but `ops` and `NoiseStream` touches the model.

    python examples/one_operator.py                      # scikit-learn's digits
    python examples/one_operator.py --data-dir DIR       # CIFAR-10, in DIR/cifar-10-batches-py

A network is trained in plain PyTorch, and attacked twice. `distribution` finds, for each image, a distribution of
perturbations that mislead the network when the image is also shifted by a pixel in a random direction (an expectation
over transformations): torch.optim.Adam on (mu, rho), with autograd through the sampler. `pgd` is projected gradient
ascent with the fused start and step. Printed are the expected loss and the entropy when Adam begins and ends, and the
accuracy on images as they are, in uniform noise, and attacked; without a shift, and the mean of the four.
"""

import argparse

import torch
import torch.nn.functional as F

from adt_fast import NoiseStream, ops
from adt_fast.data import load_dataset
from adt_fast.models import create_model

SHIFTS = [(1, -1), (-1, -1), (1, -2), (-1, -2)]  # right, left, down, up


def shifted(images):
    """By a pixel, all in one random direction."""
    return images.roll(*SHIFTS[torch.randint(4, ())])


def distribution(model, images, labels, epsilon, steps, k=8, entropy_weight=0.01):
    """(mu, rho), like images each, of x_adv = clamp(x + epsilon tanh(mu + softplus(rho) r), 0, 1), r ~ N(0, 1)."""
    mu, rho = (torch.zeros_like(images, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([mu, rho], lr=0.1, maximize=True)
    noise = NoiseStream(seed=0, device=images.device)
    for step in range(steps):
        x_adv, neg_log_density = ops.tanh_gaussian_sample(images, mu, rho, noise.state, samples=k, epsilon=epsilon)
        noise.advance()  # other numbers in the next step; what backward needs is kept
        logits = model(shifted(x_adv.flatten(0, 1)))  # [k, B, C, H, W] as one batch, without a copy
        loss = F.cross_entropy(logits, labels.repeat(k))
        entropy = neg_log_density.mean() / images[0].numel()  # nats an element
        optimizer.zero_grad()
        (len(images) * (loss + entropy_weight * entropy)).backward()  # a sum over images
        optimizer.step()
        if step in (0, steps - 1):
            print(f"distribution: step {step + 1}, loss {loss:.3f}, entropy {entropy:.3f}", flush=True)
    return mu.detach(), rho.detach()


def pgd(model, images, labels, epsilon, steps, step_size):
    x_adv = ops.uniform_start_(torch.empty_like(images), images, NoiseStream(0, images.device).state, epsilon=epsilon)
    for _ in range(steps):
        loss = F.cross_entropy(model(x_adv.requires_grad_()), labels)
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = ops.linf_step_(x_adv.detach(), grad, images, step_size=step_size, epsilon=epsilon)
    return x_adv


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of CIFAR-10; default: the digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="of each attack")
    parser.add_argument("--train-images", type=int, default=2000, help="the first so many")
    parser.add_argument("--test-images", type=int, default=200)
    options = parser.parse_args()

    name, epsilon = ("cifar10", 8 / 255) if options.data_dir else ("digits", 0.15)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = load_dataset(name, "train", data_dir=options.data_dir, limit=options.train_images)
    test = load_dataset(name, "test", data_dir=options.data_dir, limit=options.test_images)

    torch.manual_seed(0)
    model = create_model("wrn-10-1", in_channels=len(train.mean), mean=train.mean, std=train.std).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(train)).split(64):
            images = shifted(train.images[chosen].to(device) / 255)
            optimizer.zero_grad()
            F.cross_entropy(model(images), train.labels[chosen].to(device)).backward()
            optimizer.step()

    model.eval().requires_grad_(False)
    images, labels = test.images.to(device) / 255, test.labels.to(device)
    mu, rho = distribution(model, images, labels, epsilon, options.steps)
    fresh = NoiseStream(seed=1, device=device).state
    tried = {
        "as they are": images,
        "uniform noise": ops.uniform_start_(torch.empty_like(images), images, fresh, epsilon=epsilon),
        "distribution": ops.tanh_gaussian_sample(images, mu, rho, fresh, epsilon=epsilon, density=False)[0][0],
        "pgd": pgd(model, images, labels, epsilon, options.steps, step_size=epsilon / 4),
    }
    for name, x_adv in tried.items():
        moved = [x_adv, *(x_adv.roll(*shift) for shift in SHIFTS)]
        right = [(model(x).argmax(1) == labels).double().mean().item() for x in moved]
        size = float((x_adv - images).abs().max() / epsilon)
        print(f"{name}: accuracy {right[0]:.1%}, shifted {sum(right[1:]) / 4:.1%}, perturbed by {size:.3f} epsilon")


if __name__ == "__main__":
    main()
