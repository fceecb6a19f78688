"""d loss / d input of a classifier, and nothing else: the hot path of every attack and every method.

``engine.py`` is the way in, and gives a ``session.py`` for each minibatch. It runs a frozen ``twin.py`` of the
classifier, rewritten by ``fusion.py``, in the precision of ``options.py`` that ``guard.py`` watches over, in chunks of
the size that ``chunking.py`` chooses; on CUDA ``graph.py`` captures the loop around it.
"""

from .engine import InputGradient
from .guard import Agreement, PrecisionWarning
from .options import FLOAT32, EngineOptions, Precision
from .session import GradientSession, InputGradients, Loop

__all__ = [
    "FLOAT32",
    "Agreement",
    "EngineOptions",
    "GradientSession",
    "InputGradient",
    "InputGradients",
    "Loop",
    "Precision",
    "PrecisionWarning",
]
