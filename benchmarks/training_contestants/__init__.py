"""Who takes part in the benchmark of whole training steps.

``Published`` is the published algorithm in plain PyTorch at library defaults, ``Strongest`` is plain PyTorch at its
best, ``Ours`` is adt_fast. All train the same objective: the published recipe of ADT-EXP, or of ADT with a generator,
AT-PGD from a random start, or standard training.
"""

from .entries import FEATURES, GROUPS, HEADLINE, OURS, PUBLISHED, STRONGEST, Entry, choose, entries
from .networks import amortized_networks, default_generator_width
from .ours import Ours
from .published import Published, PublishedAmortized, build_published
from .strongest import FORMS, Form, Strongest
from .strongest_amortized import StrongestAmortized
from .task import (
    ADT_EXP,
    ADT_EXP_AM,
    ADT_IMP_AM,
    AMORTIZED,
    AT_PGD,
    OBJECTIVES,
    PRECISIONS,
    STANDARD,
    Contestant,
    Found,
    Noise,
    Task,
)

__all__ = [
    "ADT_EXP",
    "ADT_EXP_AM",
    "ADT_IMP_AM",
    "AMORTIZED",
    "AT_PGD",
    "FEATURES",
    "FORMS",
    "GROUPS",
    "HEADLINE",
    "OBJECTIVES",
    "OURS",
    "PRECISIONS",
    "PUBLISHED",
    "STANDARD",
    "STRONGEST",
    "Contestant",
    "Entry",
    "Form",
    "Found",
    "Noise",
    "Ours",
    "Published",
    "PublishedAmortized",
    "Strongest",
    "StrongestAmortized",
    "Task",
    "amortized_networks",
    "build_published",
    "choose",
    "default_generator_width",
    "entries",
]
