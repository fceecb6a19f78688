"""Training methods: each is a maximizer, which perturbs a minibatch, and an outer loss, which is trained on."""

from .method import Method, MethodSpec
from .outer_losses import OuterLoss, OuterResult, cross_entropy
from .registry import create_method, method_names, method_spec

__all__ = [
    "Method",
    "MethodSpec",
    "OuterLoss",
    "OuterResult",
    "create_method",
    "cross_entropy",
    "method_names",
    "method_spec",
]
