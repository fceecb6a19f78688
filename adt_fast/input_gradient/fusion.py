"""Rewrites a classifier in eval mode into one that does less: batch norms folded away, elementwise passes merged.

In eval mode a batch norm is ``scale * x + shift`` per channel, with ``scale = weight / sqrt(running_var + eps)`` and
``shift = bias - running_mean * scale``. After a convolution it goes into the convolution's weights and bias; elsewhere,
as in pre-activation networks, it stays an affine map, in one pass with the ReLU after it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..models import Normalize
from ..models.sync_batch_norm import BATCH_NORMS, SyncBatchNorm
from .layers import CONVOLUTIONS, ChannelAffine, Float32Linear, FoldedConvolution, WinogradConvolution

_RELU_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
_ADD_FUNCTIONS = (operator.add, operator.iadd, torch.add)


def affine_maps(modules: Mapping[str, nn.Module], names: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The (scale, shift) of batch norms and normalisations, by name."""
    chosen = {name: modules[name] for name in names}
    norms = {name: module for name, module in chosen.items() if not isinstance(module, Normalize)}
    maps = {name: _normalize_map(module) for name, module in chosen.items() if isinstance(module, Normalize)}
    return maps | dict(zip(norms, _batch_norm_maps(list(norms.values()))))


def _normalize_map(module: Normalize) -> tuple[Tensor, Tensor]:
    scale = module.std.flatten().reciprocal()
    return scale, -module.mean.flatten() * scale


def _batch_norm_maps(norms: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """A few kernels for all batch norms together."""
    if not norms:
        return []
    means, variances = ([getattr(norm, name) for norm in norms] for name in ("running_mean", "running_var"))
    weights = [torch.ones_like(norm.running_var) if norm.weight is None else norm.weight for norm in norms]
    biases = [torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias for norm in norms]
    scales = torch._foreach_add(variances, [norm.eps for norm in norms])
    torch._foreach_sqrt_(scales)
    scales = torch._foreach_div(weights, scales)
    shifts = torch._foreach_sub(biases, torch._foreach_mul(means, scales))
    return list(zip(scales, shifts))


def fuse(model: nn.Module, *, native: bool, winograd: bool) -> fx.GraphModule:
    """The model, which must be in eval mode, rewritten; its modules are shared, their weights not yet loaded.

    Args:
        native: use the library's own operators, not only PyTorch's.
        winograd: use :class:`WinogradConvolution` where it can be.

    Raises whatever ``torch.fx`` does where the model's graph depends on its input.
    """
    graph = _Tracer().trace(model)
    return _Rewriter(fx.GraphModule(model, graph), native, winograd).rewrite()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (Normalize, SyncBatchNorm)) or super().is_leaf_module(module, name)

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Of a leaf, too, the hooks are run, which nothing would call otherwise: they are the traced pass's own."""
        name = self.path_of_module(module)
        hooked = module._forward_hooks or module._forward_pre_hooks
        if not hooked or "forward" in vars(module) or not self.is_leaf_module(module, name):
            return super().call_module(module, forward, args, kwargs)
        module.forward = lambda *args, **kwargs: self.create_proxy("call_module", name, args, kwargs)
        try:
            return forward(*args, **kwargs)
        finally:
            del module.forward


class _Rewriter:
    """Rewrites the graph of a classifier node by node, in the order they run."""

    def __init__(self, traced: fx.GraphModule, native: bool, winograd: bool) -> None:
        self.winograd = winograd
        self.traced = traced
        self.graph = traced.graph
        self.native = native
        self.modules = dict(traced.named_modules())
        self.calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        self.bypassed: set[fx.Node] = set()

    def rewrite(self) -> fx.GraphModule:
        for node in list(self.graph.nodes):
            module = None if node in self.bypassed else self._module(node)
            if isinstance(module, CONVOLUTIONS):
                self._fold(node)
            elif _is_constant_norm(module) or isinstance(module, Normalize):
                self._make_affine(node, module)
            elif type(module) is nn.Linear and any(user.op == "output" for user in node.users):
                self._replace_module(node, Float32Linear(module))
        for node in self.graph.nodes:
            self._add_in_place(node)
        self.graph.lint()
        self.traced.delete_all_unused_submodules()
        self.traced.recompile()
        return self.traced

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if no other node calls it and it is of a plain class."""
        if node.op != "call_module" or self.calls[node.target] != 1:
            return None
        module = self.modules[node.target]
        return module if type(module) in (*CONVOLUTIONS, *BATCH_NORMS, Normalize, nn.Linear) else None

    def _fold(self, node: fx.Node) -> None:
        norm = self._only_user(node)
        if norm is None or not _is_constant_norm(self._module(norm)):
            norm = None
        else:
            self._bypass(norm)
        relu = self._take_relu(node)
        norm_source = None if norm is None else _name(norm)
        convolution: Any = self.modules[_name(node)]
        winograd = self.winograd and WinogradConvolution.can_be(convolution)
        layer = WinogradConvolution if winograd else FoldedConvolution
        self._replace_module(node, layer(convolution, _name(node), norm_source, relu))

    def _make_affine(self, node: fx.Node, module: Any) -> None:
        like = module.mean if isinstance(module, Normalize) else module.running_mean
        self._replace_module(node, ChannelAffine(_name(node), like, self._take_relu(node), self.native))

    def _take_relu(self, node: fx.Node) -> bool:
        """Removes the ReLU that is the node's only user; whether there was one."""
        user = self._only_user(node)
        if user is None or not self._is_relu(user):
            return False
        self._bypass(user)
        return True

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.modules[node.target]) is nn.ReLU
        return (node.op == "call_function" and node.target in _RELU_FUNCTIONS) or (
            node.op == "call_method" and node.target in ("relu", "relu_")
        )

    def _add_in_place(self, node: fx.Node) -> None:
        """``shortcut + out`` into the memory of ``out``, if that is a convolution's output that nobody else reads, and
        where it fits."""
        if node.op != "call_function" or node.target not in _ADD_FUNCTIONS or node.kwargs or len(node.args) != 2:
            return
        for out, other in (node.args, reversed(node.args)):
            if not (isinstance(out, fx.Node) and isinstance(other, fx.Node)):
                continue
            if self._is_convolution(out) and self._only_user(out) is node:
                node.target, node.args = _sum_into, (out, other)
                return

    def _is_convolution(self, node: fx.Node) -> bool:
        """Whether the node's output comes straight from a convolution: a ReLU's is needed by its backward."""
        module = self.traced.get_submodule(_name(node)) if node.op == "call_module" else None
        return isinstance(module, (FoldedConvolution, WinogradConvolution)) and not module.relu

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _bypass(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)
        self.bypassed.add(node)

    def _replace_module(self, node: fx.Node, module: nn.Module) -> None:
        self.traced.set_submodule(_name(node), module)


def _sum_into(out: Tensor, other: Any) -> Tensor:
    """The sum, in the memory of ``out`` unless it is larger, for shapes are not known before the graph runs."""
    return out.add_(other) if out.shape == getattr(other, "shape", out.shape) else out + other


def _name(node: fx.Node) -> str:
    """Of the module that the node calls."""
    return str(node.target)


def _is_constant_norm(module: nn.Module | None) -> bool:
    """A batch norm that uses its running statistics."""
    return isinstance(module, BATCH_NORMS) and not module.training and module.running_mean is not None
