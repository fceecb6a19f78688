"""Images of your own, in each of the three ways in which they may come.

    python examples/custom_data.py                       # scikit-learn's digits stand in for your images
    python examples/custom_data.py --data-dir DIR        # CIFAR-10 does, from DIR/cifar-10-batches-py
    python examples/custom_data.py --ways npz            # one way alone

dataset: a torch Dataset of pictures uint8 [H, W, C], as image libraries give them, and its DataLoader. arrays: all of
them in memory, for the BatchLoader, which shuffles and augments on the device. npz: the arrays `image` and `label` of a
file, here as extra images, half of each minibatch. A network is trained each way; printed are the loss of the first and
the last epoch, and the accuracy on the same test images, as they are and under PGD-10.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from adt_fast import ADTExpTrainer, evaluate
from adt_fast.data import BatchLoader, ImageData, channel_statistics, load_dataset, load_npz
from adt_fast.models import create_model


class OwnDataset(Dataset):
    """Of arrays uint8 [N, H, W, C] and integers [N]; one that reads a file for each picture would do as well."""

    def __init__(self, pictures, classes):
        self.pictures, self.classes = pictures, classes

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index], int(self.classes[index])


def collate(examples):
    """What trainer and evaluation take: float32 [B, C, H, W] in [0, 1] and int64 [B].

    Not normalised, for the model does that: what your data set has normalised, it has to leave out or undo here. Floats
    in [0, 1], as torchvision's ToTensor gives, [C, H, W] each, need no more than torch.stack.
    """
    pictures, classes = zip(*examples)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return images.float() / 255, torch.tensor(classes)


def as_image_data(pictures, classes):
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    mean, std = channel_statistics(images)  # for the model's normalisation
    return ImageData(images, torch.from_numpy(classes), num_classes=10, name="mine", mean=mean, std=std)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of CIFAR-10; default: the digits")
    parser.add_argument("--ways", nargs="+", choices=["dataset", "arrays", "npz"], default=["dataset", "arrays", "npz"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-images", type=int, default=1400, help="the first so many")
    parser.add_argument("--test-images", type=int, default=300)
    options = parser.parse_args()

    # Stand-ins for your own: arrays uint8 [N, H, W, C] and int64 [N].
    name, epsilon = ("cifar10", 8 / 255) if options.data_dir else ("digits", 0.15)
    loaded = load_dataset(name, "train", data_dir=options.data_dir, limit=options.train_images)
    pictures, classes = loaded.images.permute(0, 2, 3, 1).numpy(), loaded.labels.numpy()
    loaded = load_dataset(name, "test", data_dir=options.data_dir, limit=options.test_images)
    test = OwnDataset(loaded.images.permute(0, 2, 3, 1).numpy(), loaded.labels.numpy())

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, half = as_image_data(pictures, classes), len(pictures) // 2
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "extra.npz"
        np.savez_compressed(file, image=pictures[half:], label=classes[half:])
        extra = load_npz(file, like=data)
    loaders = {
        "dataset": DataLoader(OwnDataset(pictures, classes), 64, shuffle=True, collate_fn=collate),
        "arrays": BatchLoader(data, 64, device=device, shuffle=True),  # photographs: crop_padding=4, flip=True
        "npz": BatchLoader(data.subset(half), 64, device=device, shuffle=True, extra=extra, extra_fraction=0.5),
    }
    for way in options.ways:
        torch.manual_seed(0)
        model = create_model("wrn-10-1", in_channels=len(data.mean), mean=data.mean, std=data.std).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
        results = ADTExpTrainer(model, optimizer, epsilon).fit(loaders[way], epochs=options.epochs)
        report = evaluate(model, DataLoader(test, 100, collate_fn=collate), "pgd-10", epsilon=epsilon)
        accuracies = f"natural {report.natural_accuracy}, PGD-10 {report.robust_accuracy}"
        print(f"{way}: loss {results[0].loss:.3f} to {results[-1].loss:.3f}, {accuracies}", flush=True)


if __name__ == "__main__":
    main()
