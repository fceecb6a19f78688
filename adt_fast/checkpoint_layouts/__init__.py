"""How others name the tensors of the networks that adt_fast has: their state dicts into ours, and back.

Pure functions. `files.py` reads what is in a file, `find.py` finds the network in it, `layouts.py` has the names,
`importing.py` and `exporting.py` translate.
"""

from .exporting import Exported, Normalization, to_foreign
from .files import is_torch_file, read_file
from .importing import ForeignModel, from_foreign
from .layouts import LAYOUTS, UnknownCheckpoint

__all__ = [
    "LAYOUTS",
    "Exported",
    "ForeignModel",
    "Normalization",
    "UnknownCheckpoint",
    "from_foreign",
    "is_torch_file",
    "read_file",
    "to_foreign",
]
