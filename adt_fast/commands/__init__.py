"""The commands of the command line: one file each, a dataclass of its settings that can be called."""

from .configs import Configs
from .convergence import Convergence
from .convert import Convert
from .curvature import Curvature
from .distribution import Distribution
from .entropy_sweep import EntropySweep
from .epoch_time import EpochTime
from .evaluate import Evaluate
from .info import Info
from .landscape import Landscape
from .methods import Methods
from .train import Train
from .transfer import Transfer

COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "distribution": Distribution,
    "landscape": Landscape,
    "curvature": Curvature,
    "convergence": Convergence,
    "transfer": Transfer,
    "entropy-sweep": EntropySweep,
    "epoch-time": EpochTime,
    "convert": Convert,
    "methods": Methods,
    "configs": Configs,
    "info": Info,
}
"""By name, in the order of the help text."""

__all__ = [
    "COMMANDS",
    "Configs",
    "Convergence",
    "Convert",
    "Curvature",
    "Distribution",
    "EntropySweep",
    "EpochTime",
    "Evaluate",
    "Info",
    "Landscape",
    "Methods",
    "Train",
    "Transfer",
]
