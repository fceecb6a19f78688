"""Error messages for names that do not exist: the nearest one that does, and all of them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST_NAME = 200
"""Characters that are compared and shown; in a hostile file a name may be a book."""


def unknown_name_message(kind: str, given: object, known: Iterable[str], *, compared: str | None = None) -> str:
    """ "unknown model 'wrn-28-1O'; did you mean 'wrn-28-10'? Known: small-cnn, wrn-28-10"

    kind: what the name is a name of, for the reader ("model", "dataset").
    known: the names that exist; the nearest one is found whatever the case of `given`.
    compared: what is compared with them, where it is not `given` itself.
    """
    if not isinstance(given, str):
        return f"{kind} must be a name, got {type(given).__name__}. Known: {', '.join(known)}"
    known, given = list(known), given[:_LONGEST_NAME]
    by_lower_case = {name.lower(): name for name in known}
    nearest = get_close_matches((compared or given).lower(), by_lower_case, n=1)
    question = f"; did you mean {by_lower_case[nearest[0]]!r}?" if nearest else "."
    return f"unknown {kind} {given!r}{question} Known: {', '.join(known)}"
