"""Prefetching: every minibatch arrives, in order, on the device, from loaders that know nothing of it."""

import contextlib

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
def test_on_a_gpu_a_loader_may_fill_its_pinned_memory_again():
    device, buffer = torch.device("cuda", torch.cuda.current_device()), torch.empty(2**24).pin_memory()
    refilled = ((buffer.fill_(number), torch.tensor(number)) for number in range(5))
    seen = [images.clone() for images, _ in prefetched(refilled, device)]
    assert [(images.min().item(), images.max().item()) for images in seen] == [(number, number) for number in range(5)]


class LateStream:
    """A stream as slow as can be: its copies are made when somebody waits for them, or at the end."""

    def __init__(self):
        self.copies, self.waits = [], 0

    def synchronize(self):
        self.waits += 1
        self.finish()

    def finish(self):
        while self.copies:
            target, source = self.copies.pop(0)
            target.copy_(source)

    def wait_stream(self, other):
        """Work of this one, which has not begun either."""

    device = torch.device("cuda", 0)


class HostTensor(torch.Tensor):
    """One whose copies to the GPU are made by the stream."""

    stream = None
    pinned = False

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        return host_tensor(self.as_subclass(torch.Tensor).clone(), self.stream, pinned=True)

    def to(self, device, non_blocking):
        assert device.type == "cuda" and non_blocking and self.pinned
        target = torch.full(self.shape, -1.0)
        self.stream.copies.append((target, self.as_subclass(torch.Tensor)))
        return target


def host_tensor(values, stream, *, pinned):
    tensor = values.as_subclass(HostTensor)
    tensor.stream, tensor.pinned = stream, pinned
    return tensor


@pytest.mark.parametrize("pinned", [True, False])
def test_a_loader_may_fill_its_memory_again(pinned, monkeypatch):
    stream = LateStream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: LateStream())
    buffer = torch.empty(3)
    refilled = ((host_tensor(buffer.fill_(number), stream, pinned=pinned), "label") for number in range(4))
    seen = [images for images, _ in prefetched(refilled, torch.device("cuda", 0))]
    assert stream.waits == (4 if pinned else 0), "PyTorch keeps what is pinned here"
    stream.finish()
    assert [images.tolist() for images in seen] == [[number] * 3 for number in range(4)]


@pytest.mark.cuda
def test_what_is_on_the_gpu_already_stays_as_it_is():
    device = torch.device("cuda", torch.cuda.current_device())
    batch = (torch.ones(2, 3, device=device), "labels")
    (received,) = prefetched([batch], device)
    assert received[0] is batch[0] and received[1] == "labels"
