"""``adt-fast methods``"""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import describe_method, method_names


@dataclass(frozen=True)
class Methods:
    """List the training methods: maximizer, outer loss, and options with their defaults."""

    def __call__(self) -> None:
        for name in method_names():
            print(describe_method(name) + "\n")
