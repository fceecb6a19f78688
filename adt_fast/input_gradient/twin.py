"""AttackTwin: a frozen copy of a classifier, made to be differentiated with respect to its input, again and again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .._support.layout import to_channels_last
from .fusion import affine_maps, fuse
from .layers import FUSED, KEEPS_PRECISION, ChannelAffine, WinogradConvolution

_PLAIN = (bool, int, float, str, type(None))


class TwinUnavailable(Exception):
    """The classifier cannot be copied; the message says why."""


class AttackTwin:
    """A copy of a classifier in eval mode: frozen, channels_last, fused where its graph can be read, maybe in 16 bits.

    The classifier itself is never changed, and nothing of it is shared. :meth:`refresh` copies its weights anew.

    Args:
        model: the classifier, without wrappers.
        dtype: of convolutions and matrix products; None for the classifier's own.
        compile: run it through ``torch.compile``.
        winograd: on a CPU, compute 3x3 convolutions by Winograd's algorithm.
        probe: a few images ``[n, C, H, W]``, on which the rewritten copy must agree with the plain one.

    Raises:
        TwinUnavailable: if the classifier has hooks, which a copy would run on values of its own, or cannot be copied.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype | None, *, compile: bool, winograd: bool, probe: Tensor
    ) -> None:
        self._structure = structure_of(model)
        plain = _copy_of(model)
        self.unfused_because = ""
        self.module = self._fused(plain, probe, native=not compile, winograd=winograd and not compile) or plain
        for module in self.module.modules():
            if dtype is not None and not isinstance(module, KEEPS_PRECISION):
                _cast(module, dtype)
            if isinstance(module, nn.Conv2d):
                to_channels_last(module)
        self._fused_modules = _fused_modules(self.module)
        self._plain_tensors = _plain_tensors(self.module, of=model)
        self.refresh(model)
        self.run: nn.Module | Any = torch.compile(self.module, dynamic=False) if compile else self.module

    def fits(self, model: nn.Module) -> bool:
        """Whether the model still is what was copied, but for the values of its tensors."""
        return structure_of(model) == self._structure

    @torch.no_grad()
    def refresh(self, model: nn.Module) -> None:
        """Takes over the weights and running statistics that the model has now."""
        _load(self._fused_modules, model)
        if self._plain_tensors:
            originals = dict(_named_tensors(model))
            torch._foreach_copy_(list(self._plain_tensors.values()), [originals[name] for name in self._plain_tensors])

    @property
    def folded(self) -> int:
        """How many batch norms are in the weights of a convolution."""
        return sum(getattr(part, "norm_source", None) is not None for part in self._fused_modules)

    @property
    def winograd(self) -> int:
        """How many convolutions are computed by Winograd's algorithm."""
        return sum(isinstance(part, WinogradConvolution) for part in self._fused_modules)

    @property
    def affine(self) -> int:
        """How many batch norms and normalisations are a single pass, with the ReLU after them."""
        return sum(isinstance(module, ChannelAffine) for module in self._fused_modules)

    def _fused(self, plain: nn.Module, probe: Tensor, *, native: bool, winograd: bool) -> nn.Module | None:
        """The rewritten copy; None, and the reason kept, where it cannot be had or does not compute the same."""
        try:
            self.unfused_because = _difference(plain, probe, native)
            if self.unfused_because:
                return None
            return fuse(copy.deepcopy(plain), native=native, winograd=winograd).requires_grad_(False)
        except Exception as error:  # the user's model may do anything; it is run as it is then
            self.unfused_because = f"its graph cannot be read ({_one_line(error)})"
            return None


def _difference(plain: nn.Module, probe: Tensor, native: bool) -> str:
    """How rewriting changes what a model computes; an empty string if it does not.

    In float64, where rounding cannot be taken for a wrong graph: a ReLU that flips in float32 changes gradients by a
    percent. A model that does not run in float64 is compared in its own dtype.
    """
    try:
        return _difference_in(torch.float64, 1e-6, plain, probe, native)
    except Exception:
        return _difference_in(probe.dtype, 3e-2, plain, probe, native)


def _difference_in(dtype: torch.dtype, tolerance: float, plain: nn.Module, probe: Tensor, native: bool) -> str:
    plain = copy.deepcopy(plain).to(dtype)
    fused = fuse(copy.deepcopy(plain), native=native, winograd=False).requires_grad_(False)
    with torch.no_grad():
        _load(_fused_modules(fused), plain)
    expected, found = (_logits_and_gradient(module, probe.to(dtype)) for module in (plain, fused))
    for what, a, b in zip(("logits", "gradients"), expected, found):
        if not bool((a - b).norm() <= tolerance * a.norm()):  # nor where one is NaN
            return f"the rewritten graph gave {what} that differ"
    return ""


def structure_of(model: nn.Module) -> list[Any]:
    """What a copy depends on besides the values of tensors: classes, plain attributes, and the tensors' metadata."""
    modules = [(name, type(module), _plain_attributes(module)) for name, module in model.named_modules()]
    return modules + [(name, t.shape, t.dtype, t.device) for name, t in _named_tensors(model)]


def hooked_module(model: nn.Module) -> str:
    """The name of a module with forward or backward hooks; an empty string where there is none."""
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks):
            return name or "itself"
    return ""


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    known = (*_PLAIN, tuple, Tensor)
    attributes = {name: _described(value) for name, value in vars(module).items() if isinstance(value, known)}
    attributes.pop("training", None)
    return attributes


def _described(value: Any) -> Any:
    """What can be compared in the place of an attribute."""
    if isinstance(value, tuple):
        return tuple(map(_described, value))
    # A tensor that is no parameter and no buffer is a constant to the copy: it must be the same one, and unchanged.
    if isinstance(value, Tensor):
        return id(value), _version(value)
    return value if isinstance(value, _PLAIN) else id(value)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _copy_of(model: nn.Module) -> nn.Module:
    if hooked := hooked_module(model):
        raise TwinUnavailable(f"the model has hooks (on {hooked})")
    # Process groups cannot be copied, and in eval mode PyTorch's batch norm has no use for its own.
    groups = [module.process_group for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    try:
        return copy.deepcopy(model, {id(group): None for group in groups}).eval().requires_grad_(False)
    except Exception as error:  # tensors with a graph, locks, open files: whatever a user's module holds
        raise TwinUnavailable(f"the model cannot be copied ({_one_line(error)})") from error


def _logits_and_gradient(module: nn.Module, probe: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = probe.detach().clone().requires_grad_()
        logits = module(x)
        (grad,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), grad


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """The module's own floating-point tensors, not those of its children."""
    for tensors in (module._parameters, module._buffers):
        for tensor in tensors.values():
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _fused_modules(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, FUSED)]


def _plain_tensors(module: nn.Module, of: nn.Module) -> dict[str, Tensor]:
    """The tensors that are the classifier's own by name: all but those of fused modules, and the constants that tracing
    found in its ``forward``."""
    fused = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, FUSED))
    known = {name for name, _ in _named_tensors(of)}
    return {name: t for name, t in _named_tensors(module) if name in known and not name.startswith(fused)}


def _load(fused: list[Any], model: nn.Module) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    names = [part.source if isinstance(part, ChannelAffine) else part.norm_source for part in fused]
    maps = affine_maps(modules, {name: None for name in names if name is not None})
    for part, name in zip(fused, names):
        if isinstance(part, ChannelAffine):
            part.load(*maps[name])
        else:
            part.load(modules[part.source], *maps.get(name, (None, None)))


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]
