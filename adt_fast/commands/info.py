"""``adt-fast info``"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._operators.native import build_info


@dataclass(frozen=True)
class Info:
    """Say what was built, what is in use on this machine, and why any fast path is off."""

    def __call__(self) -> None:
        info = build_info()
        width = max(map(len, info))
        for name, value in info.items():
            print(f"{name.replace('_', ' '):<{width}}  {_readable(value)}")


def _readable(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value) or "-"
