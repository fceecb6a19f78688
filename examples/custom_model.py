"""A model of your own: any nn.Module that takes images in [0, 1], normalises inside and gives logits.

    python examples/custom_model.py                      # scikit-learn's digits
    python examples/custom_model.py --data-dir DIR       # CIFAR-10, in DIR/cifar-10-batches-py

The network is residual, with GroupNorm, and decides in Python how often it pools, which torch.fx cannot follow. ADT
trains it all the same: what does not suit the engine of inner gradients is left out of it, and
`input_gradient.explain()` says what, and why. Printed are the epochs, that explanation, and the accuracy under attacks.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from adt_fast import ADTExpTrainer
from adt_fast.data import BatchLoader, load_dataset
from adt_fast.evaluation import accuracy_table, evaluate


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class OwnNetwork(nn.Module):
    def __init__(self, mean, std, num_classes=10, width=32, depth=3):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.stem = nn.Conv2d(len(mean), width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):  # [B, C, H, W] in [0, 1]
        x = self.stem((images - self.mean) / self.std)  # an attack's ball is around images, so this belongs in here
        for block in self.blocks:
            x = block(x)
            if x.shape[-1] > 4:
                x = F.avg_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of CIFAR-10; default: the digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-images", type=int, default=2000, help="the first so many")
    parser.add_argument("--test-images", type=int, default=300)
    parser.add_argument("--attacks", default="fgsm,pgd-20,cw-30", help="see docs/attacks.md")
    options = parser.parse_args()

    name, epsilon = ("cifar10", 8 / 255) if options.data_dir else ("digits", 0.15)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = load_dataset(name, "train", data_dir=options.data_dir, limit=options.train_images)
    test = load_dataset(name, "test", data_dir=options.data_dir, limit=options.test_images)

    torch.manual_seed(0)
    model = OwnNetwork(train.mean, train.std).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    loader = BatchLoader(train, 64, device=device, shuffle=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=options.epochs * len(loader))
    trainer = ADTExpTrainer(model, optimizer, epsilon=epsilon, steps=7, samples=5)

    def report(result):
        print(f"epoch {result.epoch}: loss {result.loss:.3f}, robust accuracy {result.accuracy:.1%}", flush=True)

    trainer.fit(loader, epochs=options.epochs, scheduler=scheduler, schedule_every="step", callbacks=[report])
    print(f"\n{trainer.method.maximizer.input_gradient.explain()}\n")
    print(accuracy_table(evaluate(model, test, options.attacks, epsilon=epsilon).accuracies()))


if __name__ == "__main__":
    main()
