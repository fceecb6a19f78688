"""Who takes part in the benchmark of whole training steps.

``Published`` is the published algorithm in plain PyTorch at library defaults, ``Strongest`` is plain PyTorch at its
best, ``Ours`` is adt_fast. All train the same objective: the published recipe of ADT-EXP, AT-PGD from a random start,
or standard training.
"""

from .entries import FEATURES, GROUPS, HEADLINE, OURS, PUBLISHED, STRONGEST, Entry, choose, entries
from .ours import Ours
from .published import Published
from .strongest import FORMS, Form, Strongest
from .task import ADT_EXP, AT_PGD, OBJECTIVES, PRECISIONS, STANDARD, Contestant, Found, Noise, Task

__all__ = [
    "ADT_EXP",
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
    "Strongest",
    "Task",
    "choose",
    "entries",
]
