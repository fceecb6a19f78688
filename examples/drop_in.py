"""Drop-in: adversarial distributional training in a PyTorch loop that is there already.

    python examples/drop_in.py                      # scikit-learn's digits
    python examples/drop_in.py --data-dir DIR       # CIFAR-10, in DIR/cifar-10-batches-py

One loop stands here three times: as it was, with ADTExpTrainer, and with the published script's adt_loss. Each trains
the same network on the same minibatches. Printed are the loss of every epoch (of adversarial images in the second and
third) and the accuracy on test images, as they are and under PGD-20.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from adt_fast import ADTExpTrainer
from adt_fast.attacks import PGD
from adt_fast.compat import adt_loss
from adt_fast.data import load_dataset
from adt_fast.evaluation import evaluate_accuracy
from adt_fast.models import create_model


def train_as_it_was(model, loader, optimizer, scheduler, epochs, epsilon):
    for epoch in range(epochs):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        scheduler.step()
        print(f"as it was: epoch {epoch + 1}, loss {total / len(loader.dataset):.3f}", flush=True)


def train_with_trainer(model, loader, optimizer, scheduler, epochs, epsilon):
    trainer = ADTExpTrainer(model, optimizer, epsilon=epsilon, steps=7, samples=5)  # new
    for epoch in range(epochs):
        total = 0.0
        for images, labels in loader:
            result = trainer.step(images, labels)  # instead of zero_grad, forward, backward, step
            total += result.loss * len(labels)
        scheduler.step()
        print(f"trainer: epoch {epoch + 1}, loss {total / len(loader.dataset):.3f}", flush=True)


def train_with_adt_loss(model, loader, optimizer, scheduler, epochs, epsilon):
    settings = {"learning_rate": 0.3, "epsilon": epsilon, "perturb_steps": 7, "num_samples": 5, "lbd": 0.01}  # new
    for epoch in range(epochs):
        total = 0.0
        for images, labels in loader:
            loss = adt_loss(model, images, labels, optimizer, **settings)  # instead of zero_grad, forward
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        scheduler.step()
        print(f"adt_loss: epoch {epoch + 1}, loss {total / len(loader.dataset):.3f}", flush=True)


LOOPS = {"as it was": train_as_it_was, "trainer": train_with_trainer, "adt_loss": train_with_adt_loss}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of CIFAR-10; default: the digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-images", type=int, default=2000, help="the first so many")
    parser.add_argument("--test-images", type=int, default=500)
    options = parser.parse_args()

    name, epsilon = ("cifar10", 8 / 255) if options.data_dir else ("digits", 0.15)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = load_dataset(name, "train", data_dir=options.data_dir, limit=options.train_images).to(device)
    test = load_dataset(name, "test", data_dir=options.data_dir, limit=options.test_images)
    dataset = TensorDataset(train.images.float() / 255, train.labels)  # images in [0, 1]: the model normalises inside

    for loop, train_with in LOOPS.items():
        torch.manual_seed(0)
        model = create_model("wrn-10-1", in_channels=len(train.mean), mean=train.mean, std=train.std).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
        loader = DataLoader(dataset, batch_size=64, shuffle=True)
        train_with(model, loader, optimizer, scheduler, options.epochs, epsilon)
        natural = evaluate_accuracy(model, test)
        robust = evaluate_accuracy(model, test, PGD(model, epsilon, steps=20))
        print(f"{loop}: natural {natural}, PGD-20 {robust}", flush=True)


if __name__ == "__main__":
    main()
