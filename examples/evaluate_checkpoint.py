"""Somebody else's checkpoint, attacked with the paper's set, and an HTML report of what withstands it.

    python examples/evaluate_checkpoint.py                                          # makes a checkpoint first
    python examples/evaluate_checkpoint.py --own-code                               # of a network of your own code
    python examples/evaluate_checkpoint.py --checkpoint FILE.pt --data-dir DIR      # yours, on CIFAR-10

`load_model` reads a file in a layout of others (docs/checkpoints.md) and tells what it recognised; the mean and std of
the normalisation, which such files seldom have, are to be given. A network that adt_fast does not know is an nn.Module,
loaded as you always do. Without --checkpoint, one is made: {"state_dict": ..., "epoch": ...} with DataParallel's names.
Printed are what was recognised, the accuracies, what a reviewer would ask about, and where the report is.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from adt_fast import Trainer, evaluate
from adt_fast.checkpoint import load_model
from adt_fast.checkpoint_layouts import to_foreign
from adt_fast.data import BatchLoader, load_dataset
from adt_fast.evaluation import accuracy_table
from adt_fast.methods import create_method
from adt_fast.models import Normalize, create_model


class OwnNetwork(nn.Sequential):
    """Takes normalised images."""

    def __init__(self, channels):
        width = 32
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, 2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 10))


def make_checkpoint(path, options, data, epsilon):
    """Stands in for training elsewhere, here adversarial training with PGD."""
    torch.manual_seed(0)
    settings = {"in_channels": len(data.mean), "mean": data.mean, "std": data.std}
    network = OwnNetwork(len(data.mean))
    model = nn.Sequential(Normalize(data.mean, data.std), network)
    if not options.own_code:
        model = create_model("wrn-10-1", **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(model, optimizer, create_method("at-pgd", model, epsilon=epsilon))
    trainer.fit(BatchLoader(data, 64, shuffle=True), epochs=options.epochs)
    state = network.state_dict()
    if not options.own_code:
        state = to_foreign(model.state_dict(), "wrn-10-1", settings, "wrn", normalization="drop").tensors
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": state, "epoch": options.epochs}, path)


def load(path, options, data):
    """The classifier of images in [0, 1], whoever trained it."""
    if not options.own_code:
        # Without mean and std where the file has them, or the network takes images in [0, 1] as they are.
        model, metadata = load_model(path, mean=data.mean, std=data.std)
        print(f"{path} is a {metadata['model_name']}: {json.dumps(metadata['extra']['source'])}")
        return model
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = OwnNetwork(len(data.mean))
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return nn.Sequential(Normalize(data.mean, data.std), network).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: one is made, in --output")
    parser.add_argument("--own-code", action="store_true", help="the checkpoint is of OwnNetwork, above")
    parser.add_argument("--data-dir", help="folder of CIFAR-10; default: the digits")
    parser.add_argument("--attacks", default="paper", help="see docs/attacks.md")
    parser.add_argument("--output", type=Path, default=Path("runs/evaluate_checkpoint"))
    parser.add_argument("--epochs", type=int, default=10, help="of the checkpoint that is made")
    parser.add_argument("--train-images", type=int, default=2000, help="for it, the first so many")
    parser.add_argument("--test-images", type=int, default=300)
    options = parser.parse_args()

    name, epsilon = ("cifar10", 8 / 255) if options.data_dir else ("digits", 0.15)
    train = load_dataset(name, "train", data_dir=options.data_dir, limit=options.train_images)
    test = load_dataset(name, "test", data_dir=options.data_dir, limit=options.test_images)
    if options.checkpoint is None:
        options.output.mkdir(parents=True, exist_ok=True)
        options.checkpoint = options.output / "theirs.pt"
        make_checkpoint(options.checkpoint, options, train, epsilon)

    model = load(options.checkpoint, options, train).to("cuda" if torch.cuda.is_available() else "cpu")
    report = evaluate(model, test, options.attacks, epsilon=epsilon, progress=None)
    print(accuracy_table(report.accuracies()))
    for warning in report.warnings:
        print(f"warning: {warning}")
    print(f"saved {', '.join(map(str, report.save(options.output)))}")


if __name__ == "__main__":
    main()
