"""The commands of the command line: one file each, a dataclass of its settings that can be called."""

from .configs import Configs
from .convert import Convert
from .evaluate import Evaluate
from .info import Info
from .methods import Methods
from .train import Train

COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "convert": Convert,
    "methods": Methods,
    "configs": Configs,
    "info": Info,
}
"""By name, in the order of the help text."""

__all__ = ["COMMANDS", "Configs", "Convert", "Evaluate", "Info", "Methods", "Train"]
