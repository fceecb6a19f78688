"""Prefetching: every minibatch arrives, in order, on the device, from loaders that know nothing of it."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from adt_fast.data.prefetch import prefetched


def loader(pin_memory=False, batches=5):
    images = torch.arange(batches * 2.0).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
    return DataLoader(TensorDataset(images, torch.arange(batches * 2)), batch_size=2, pin_memory=pin_memory)


def test_on_a_cpu_the_loaders_own_batches_come_through():
    batches = [(object(), object()), (torch.ones(1), torch.ones(1))]
    assert list(prefetched(batches, torch.device("cpu"))) == batches
    assert list(prefetched([], torch.device("cpu"))) == []


@pytest.mark.cuda
@pytest.mark.parametrize("pin_memory", [False, True])
def test_on_a_gpu_every_batch_arrives_in_order(pin_memory):
    device = torch.device("cuda", torch.cuda.current_device())
    seen = []
    for images, labels in prefetched(loader(pin_memory), device):
        assert images.device == labels.device == device
        torch.cuda._sleep(1_000_000)  # the copies run ahead of the work
        seen.append((images.clone(), labels.clone()))
    for (images, labels), (expected, expected_labels) in zip(seen, loader(), strict=True):
        assert torch.equal(images.cpu(), expected) and torch.equal(labels.cpu(), expected_labels)
    assert list(prefetched([], device)) == []


@pytest.mark.cuda
def test_what_is_on_the_gpu_already_stays_as_it_is():
    device = torch.device("cuda", torch.cuda.current_device())
    batch = (torch.ones(2, 3, device=device), "labels")
    (received,) = prefetched([batch], device)
    assert received[0] is batch[0] and received[1] == "labels"
