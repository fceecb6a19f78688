"""For code that is there already: change an import, keep the rest.

``from adt_fast.compat import adt_loss`` replaces the function of the paper's published script,
``adt_fast.compat.torchattacks`` and ``adt_fast.compat.foolbox`` take the place of those packages for the attacks that
adt_fast has.
"""

from .published import adt_loss

__all__ = ["adt_loss"]
