"""Fast, dependable Adversarial Distributional Training (Dong et al., 2020) for PyTorch."""

__version__ = "0.1.0"

from . import ops
from ._operators.native import NativeUnavailableWarning, build_info
from .distributions import TanhNormal
from .evaluation import RobustReport, evaluate
from .noise import NoiseStream
from .trainer import ADTExpTrainer, EpochResult, StepResult, Trainer

__all__ = [
    "ADTExpTrainer",
    "EpochResult",
    "NativeUnavailableWarning",
    "NoiseStream",
    "RobustReport",
    "StepResult",
    "TanhNormal",
    "Trainer",
    "__version__",
    "build_info",
    "evaluate",
    "ops",
]
