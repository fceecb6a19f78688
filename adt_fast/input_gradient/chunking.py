"""How many examples go through a classifier at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..models.sync_batch_norm import BATCH_NORMS

_GPU_MEMORY_SHARE = 0.5
_CPU_BYTES = 64 * 2**20
"""What a chunk's activations may take on a CPU. Beyond a few times its cache, every pass goes to memory: a WRN-16-4 in
float32 takes 7% longer for 80 images of 32x32 at once than 16 at a time, and as much longer for 5 at a time."""
_FEWEST_ON_CPU = 8


def norm_of_the_batch(model: nn.Module) -> str:
    """The name of a batch norm whose statistics are of the batch in eval mode too; an empty string if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            return name or "itself"
    return ""


def activation_bytes(model: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """The bytes that autograd keeps per example between forward and backward; ``example`` is ``[1, C, H, W]``."""
    one, two = (_saved_bytes(model, example.expand(n, -1, -1, -1)) for n in (1, 2))
    return max(two - one, 1)  # what does not grow with the batch is weights


def automatic_chunk(bytes_per_example: int, device: torch.device) -> int:
    """As many examples as fit: half of a GPU's free memory; on a CPU, what its cache can help with."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += _unused(device)
        return max(1, int(free * _GPU_MEMORY_SHARE) // bytes_per_example)
    return max(_FEWEST_ON_CPU, _CPU_BYTES // bytes_per_example)


def _unused(device: torch.device) -> int:
    """The bytes that PyTorch holds on a GPU and does not use, but for what is set apart for CUDA graphs, which nobody
    else can have."""
    try:
        segments = torch.cuda.memory_snapshot()
    except RuntimeError:  # an allocator that keeps no list
        return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return sum(
        segment["total_size"] - segment["active_size"]
        for segment in segments
        if segment["device"] == device.index and segment["segment_pool_id"] == (0, 0)
    )


def _saved_bytes(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(x)  # kept alive, so that no address is used twice
        del logits
    return sum(kept.values())
