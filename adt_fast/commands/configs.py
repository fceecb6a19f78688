"""``adt-fast configs``"""

from __future__ import annotations

from dataclasses import dataclass

from ..config_files import config_names, config_summary


@dataclass(frozen=True)
class Configs:
    """List the settings that come with adt_fast, for `adt-fast train --config NAME`."""

    def __call__(self) -> None:
        width = max(map(len, config_names()))
        for name in config_names():
            print(f"{name:<{width}}  {config_summary(name)}")
