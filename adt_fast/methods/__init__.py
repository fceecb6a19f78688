"""Training methods: each is a maximizer, which perturbs a minibatch, and an outer loss, which is trained on."""

from .describe import describe_method
from .fit_generator import fit_generator
from .generators import exp_am, imp_am, l2l
from .joint import JointTraining, reverse_gradient
from .method import Method, MethodSpec, Perturbed
from .outer_losses import CrossEntropy, HalfClean, OuterLoss, OuterResult, Trades
from .registry import check_options, create_method, method_names, method_spec

__all__ = [
    "CrossEntropy",
    "HalfClean",
    "JointTraining",
    "Method",
    "MethodSpec",
    "OuterLoss",
    "OuterResult",
    "Perturbed",
    "Trades",
    "check_options",
    "create_method",
    "describe_method",
    "exp_am",
    "fit_generator",
    "imp_am",
    "l2l",
    "method_names",
    "method_spec",
    "reverse_gradient",
]
