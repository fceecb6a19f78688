"""Jointly trained networks under DistributedDataParallel: equal in all processes, and as one process has them."""

import copy

import pytest
import torch
import torch.distributed as dist
from plain_adt import TinyClassifier, tiny_batch
from spawned import spawned
from torch.nn.parallel import DistributedDataParallel

from adt_fast import NoiseStream
from adt_fast.input_gradient import FLOAT32
from adt_fast.methods import create_method
from adt_fast.trainer import Trainer

PROCESSES, STEPS = 2, 3


def in_one_of_two(rank, folder):
    """Each process has weights of its own for the generator, other images, and other noise."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    model = DistributedDataParallel(TinyClassifier().double())
    method = create_method(
        "adt-imp-am", model, image_shape=(3, 6, 5), generator_width=4, noise=NoiseStream(rank), engine=FLOAT32
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, method)
    start = copy.deepcopy(method.joint.state_dict())
    images, labels = tiny_batch(6, seed=rank)
    for _ in range(STEPS):
        trainer.step(images.double(), labels)
    end = {name: dict(network.named_parameters()) for name, network in method.joint.networks.items()}
    grads = {name: [p.grad for p in network.parameters()] for name, network in method.joint.networks.items()}
    torch.save({"start": start, "end": end, "grads": grads, "model": model.module.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_networks_are_equal_in_all_processes(tmp_path):
    spawned(in_one_of_two, (str(tmp_path),), PROCESSES)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES))
    assert first["start"].keys() == {"generator", "encoder"}
    for name in first["start"]:
        torch.testing.assert_close(first["start"][name], second["start"][name], rtol=0, atol=0)
    torch.testing.assert_close(first["grads"], second["grads"], rtol=0, atol=0)
    torch.testing.assert_close(first["end"], second["end"], rtol=0, atol=0)
    moved = first["end"]["generator"]["stem.0.weight"] - first["start"]["generator"]["network"]["stem.0.weight"]
    assert moved.abs().max() > 0
