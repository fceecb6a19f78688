"""The paper's analyses: each a function whose result is data and a figure (docs/analysis.md)."""

from .convergence import Convergence, exp_convergence
from .curvature import Curvature, hessian_curvature
from .distribution import DistributionPicture, learned_distribution
from .entropy import Entropy, distribution_entropy
from .epoch_time import EpochTimes, epoch_times
from .landscape import Landscape, loss_landscape
from .result import AnalysisResult, SavedResult
from .sweep import EntropyPoint, EntropySweep, entropy_sweep, sweep_methods
from .transfer import AttackFactory, TransferMatrix, transfer_accuracy, transfer_attacks

__all__ = [
    "AnalysisResult",
    "AttackFactory",
    "Convergence",
    "Curvature",
    "DistributionPicture",
    "Entropy",
    "EntropyPoint",
    "EntropySweep",
    "EpochTimes",
    "Landscape",
    "SavedResult",
    "TransferMatrix",
    "distribution_entropy",
    "entropy_sweep",
    "epoch_times",
    "exp_convergence",
    "hessian_curvature",
    "learned_distribution",
    "loss_landscape",
    "sweep_methods",
    "transfer_accuracy",
    "transfer_attacks",
]
