"""Synchronised batch norm: several processes are one with all their images; alone, it is an ordinary batch norm."""

import copy

import pytest
import torch
import torch.distributed as dist
from spawned import spawned
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adt_fast.checkpoint import load_model, save_model
from adt_fast.input_gradient import FLOAT32, InputGradient
from adt_fast.models import convert_sync_batchnorm, create_model
from adt_fast.models.sync_batch_norm import SyncBatchNorm

PROCESSES, STEPS = 2, 3
SHARES = [[3, 4], [0, 7], [6, 1]]  # of 7 images, step by step


def network(norms=nn.BatchNorm2d, momentum=0.1, affine=True):
    """Off centre, so that sums of squares would cancel; the branch makes two norms see one tensor."""
    torch.manual_seed(0)
    first, second = norms(4, momentum=momentum, affine=affine), norms(4, momentum=momentum, affine=affine)
    layers = [nn.Conv2d(3, 4, 3), first, nn.SiLU(), nn.Conv2d(4, 4, 2), second, nn.SiLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 5)).double()


def images(step):
    return 3 + torch.randn(7, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def train(model, step, own=slice(None)):
    """Output and gradients of one minibatch; the gradients are summed over the images, not averaged."""
    x = images(step)[own].to(memory_format=torch.channels_last if step % 2 else torch.contiguous_format)
    x.requires_grad_()
    model.zero_grad()
    out = model(x)
    weights = torch.linspace(-1, 1, 35, dtype=torch.float64).view(7, 5)[own]
    (out.sin() * weights).sum().backward()
    return out.detach(), x.grad


def run_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    for options in ({}, {"momentum": None}, {"affine": False}):
        agrees_with_one_process(rank, options)
    in_sixteen_bits(rank)
    with_ddp(rank)
    of_a_group(rank)
    refuses_one_value(rank)
    dist.destroy_process_group()


def agrees_with_one_process(rank, options):
    one, model = network(**options), convert_sync_batchnorm(network(**options))
    assert isinstance(model[1], SyncBatchNorm)
    for step, shares in enumerate(SHARES):
        own = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
        (expected, expected_grad), (out, grad) = train(one, step), train(model, step, own)
        close(out, expected[own])
        close(grad, expected_grad[own])
        for parameter, wanted in zip(model.parameters(), one.parameters()):
            dist.all_reduce(parameter.grad)
            close(parameter.grad, wanted.grad)
            with torch.no_grad():
                parameter -= 0.1 * wanted.grad
                wanted -= 0.1 * wanted.grad
        for buffer, wanted in zip(model.buffers(), one.buffers(), strict=True):
            close(buffer, wanted)
    assert model[1].num_batches_tracked == STEPS
    close(model.eval()(images(9)), one.eval()(images(9)))


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def in_sixteen_bits(rank):
    x = (3 + torch.randn(8, 4, 6, 5)).bfloat16()
    dist.broadcast(x, 0)
    x = x.to(memory_format=torch.channels_last)
    one, norm = nn.BatchNorm2d(4), convert_sync_batchnorm(nn.BatchNorm2d(4))
    results = []
    for module, part in ((one, x), (norm, x[4 * rank : 4 * rank + 4])):
        part = part.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(part)
        out.float().sin().sum().backward()
        results.append((out, part.grad))
    (expected, expected_grad), (out, grad) = results
    assert out.dtype == grad.dtype == torch.bfloat16 and norm.running_var.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    own = slice(4 * rank, 4 * rank + 4)
    torch.testing.assert_close(out, expected[own], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grad, expected_grad[own], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norm.running_var, one.running_var, rtol=1e-5, atol=1e-6)


def with_ddp(rank):
    """DistributedDataParallel takes it, and averages its weights' gradients; both have the same statistics, bit for
    bit."""
    model = DistributedDataParallel(convert_sync_batchnorm(network()))
    one = network()
    train(one, 0)
    train(model, 0, slice(0, 3) if rank == 0 else slice(3, None))
    for parameter, wanted in zip(model.parameters(), one.parameters()):
        close(parameter.grad * PROCESSES, wanted.grad)
    theirs = [buffer.clone() for buffer in model.buffers()]
    for buffer, their in zip(model.buffers(), theirs):
        dist.broadcast(their, 0)
        assert torch.equal(buffer, their)


def of_a_group(rank):
    """A deep copy is of the same processes: of one alone, here."""
    groups = [dist.new_group([process]) for process in range(PROCESSES)]
    model = convert_sync_batchnorm(network(), groups[rank])
    duplicate = copy.deepcopy(model)
    assert duplicate[1].process_group is groups[rank] and duplicate[1].weight is not model[1].weight
    if rank == 0:  # nobody else comes
        close(train(duplicate, 0)[0], train(network(), 0)[0])
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(network(), groups[rank]).eval()
    assert "2 batch norms folded" in explained(theirs.float())


def refuses_one_value(rank):
    norm = convert_sync_batchnorm(nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="more than 1 value per channel in all processes together"):
        norm(torch.ones(1 - rank, 4, 1, 1))
    assert norm(torch.tensor([1.0, -1.0])[rank].expand(1, 4, 1, 1)).abs().min() > 0.99


def explained(model, labels=5):
    x = torch.rand(4, 3, 6, 5)
    engine = InputGradient(model, options=FLOAT32)
    engine(x, torch.arange(4) % labels)
    return engine.explain()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_are_one_with_all_images(tmp_path):
    spawned(run_two, (str(tmp_path),), PROCESSES)


def trained(name="wrn-10-1"):
    """A model whose running statistics are those of nothing in particular, in eval mode."""
    torch.manual_seed(0)
    model = create_model(name, mean=[0.5] * 3, std=[0.2] * 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("convert", [convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm])
@pytest.mark.parametrize("name", ["wrn-10-1", "preactresnet-18"])
def test_attacks_of_a_converted_model_are_those_of_the_model(convert, name, one_thread):
    model = trained(name)
    converted = convert(copy.deepcopy(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    images, labels = torch.rand(4, 3, 12, 12), torch.arange(4)
    before, after = InputGradient(model, options=FLOAT32), InputGradient(converted, options=FLOAT32)
    for expected, found in zip(before(images, labels), after(images, labels)):
        assert expected is found or torch.equal(torch.as_tensor(expected), torch.as_tensor(found))
    assert after.explain() == before.explain()
    assert "on, fused" in after.explain()


def test_checkpoints_of_a_converted_model_are_those_of_the_model(tmp_path):
    model = trained()
    converted = convert_sync_batchnorm(copy.deepcopy(model))
    kwargs = {"mean": [0.5] * 3, "std": [0.2] * 3}
    for name, saved in (("plain", model), ("converted", converted)):
        save_model(tmp_path / name, saved, model_name="wrn-10-1", model_kwargs=kwargs)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "converted").read_bytes()
    fresh = convert_sync_batchnorm(create_model("wrn-10-1", **kwargs))
    fresh.load_state_dict(load_model(tmp_path / "plain")[0].state_dict())
    assert torch.equal(fresh.bn1.running_var, model.bn1.running_var)


def test_conversion_keeps_tensors_modes_and_shared_modules():
    norm = nn.BatchNorm2d(3, eps=0.1, momentum=None)
    model = nn.Sequential(norm, nn.Sequential(nn.BatchNorm1d(2, affine=False, track_running_stats=False)), norm).eval()
    names = list(model.state_dict())
    assert convert_sync_batchnorm(model) is model
    assert model[0] is model[2] and (model[0].eps, model[0].momentum, model[0].training) == (0.1, None, False)
    assert model[0].weight is norm.weight and model[0].running_mean is norm.running_mean
    assert model[1][0].weight is None and model[1][0].running_mean is None
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model.train()[1](torch.ones(4, 2)), torch.zeros(4, 2))  # one process: as ever


def test_on_other_devices_than_the_cpu_it_is_pytorchs_own():
    assert type(convert_sync_batchnorm(nn.BatchNorm2d(3, device="meta"))) is nn.SyncBatchNorm


class OwnNorm(nn.BatchNorm2d):
    pass


def hooked():
    norm = nn.BatchNorm2d(3)
    norm.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(("norm", "message"), [(OwnNorm(3), "got OwnNorm"), (hooked(), "not have hooks")])
def test_what_would_be_lost_is_refused(norm, message):
    model = nn.Sequential(nn.BatchNorm2d(3), norm)
    with pytest.raises(TypeError, match=f"^1 must .*{message}"):
        convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d
