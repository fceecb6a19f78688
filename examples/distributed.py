"""Several processes train one model, through the Python API; without torchrun, one process does the same.

    python examples/distributed.py
    torchrun --nproc-per-node 2 examples/distributed.py
    torchrun --nproc-per-node 8 examples/distributed.py --data-dir DIR --device cuda      # CIFAR-10, on 8 GPUs

Each process has its share of every minibatch, so the batch size is that of all of them together. With common batch
norms and --precision fp32, the result is that of one process but for the order of sums. The first process prints the
epochs, the accuracy on the test images, whose batches the processes have attacked in turn, and whether all of them have
the same weights.
"""

import argparse
import hashlib

import torch
from torch.nn.parallel import DistributedDataParallel

from adt_fast import ADTExpTrainer, evaluate
from adt_fast.data import BatchLoader, load_dataset
from adt_fast.input_gradient import EngineOptions
from adt_fast.models import convert_sync_batchnorm, create_model
from adt_fast.processes import Processes, end_process, local_device


def checksum(model):
    sha256 = hashlib.sha256()
    for tensor in model.state_dict().values():
        sha256.update(tensor.cpu().numpy().tobytes())
    return sha256.hexdigest()[:12]


def train(options, processes, device):
    """Gives the exit status."""
    name, epsilon = ("cifar10", 8 / 255) if options.data_dir else ("digits", 0.15)
    data = load_dataset(name, "train", data_dir=options.data_dir, limit=options.train_images)
    test = load_dataset(name, "test", data_dir=options.data_dir, limit=options.test_images)

    torch.manual_seed(0)
    model = create_model("wrn-10-1", in_channels=len(data.mean), mean=data.mean, std=data.std).to(device)
    if processes.size > 1:
        model = convert_sync_batchnorm(model)
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    engine = EngineOptions(precision=options.precision)
    trainer = ADTExpTrainer(model, optimizer, epsilon, seed=0, engine=engine)  # one seed: each image has its own noise
    loader = BatchLoader(data, 64, device=device, shuffle=True, num_replicas=processes.size, rank=processes.rank)

    def report(result):  # of the images of all processes
        if processes.is_first:
            print(f"epoch {result.epoch}: loss {result.loss:.4f}, robust accuracy {result.accuracy:.1%}", flush=True)

    trainer.fit(loader, epochs=options.epochs, callbacks=[report])
    found = evaluate(trainer.trained_model, test, "pgd-10", epsilon=epsilon, batch_size=64, processes=processes)

    checksums = processes.gather(checksum(trainer.trained_model))  # by rank; None but on the first
    if not processes.is_first:
        return 0
    print(f"natural {found.natural_accuracy}, PGD-10 {found.robust_accuracy}")
    agree = len(set(checksums)) == 1
    print(f"{processes.size} process(es), weights {'agree' if agree else 'DIFFER'}: {', '.join(checksums)}")
    return 0 if agree else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of CIFAR-10; default: the digits")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU each")
    parser.add_argument("--precision", default="auto", help="of attack and training: auto, fp32, bf16")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-images", type=int, default=1400, help="the first so many")
    parser.add_argument("--test-images", type=int, default=300)
    options = parser.parse_args()
    device = local_device(torch.device(options.device))
    with Processes.from_torchrun(device) as processes:
        status = train(options, processes, device)
    end_process(status)


if __name__ == "__main__":
    main()
