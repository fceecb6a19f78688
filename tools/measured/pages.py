"""Blocks of measured numbers on the pages: found, and filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

_MARKER = re.compile(r"<!-- (/?)measured(?:: ([\w.]+))? -->")


def pages() -> list[Path]:
    """README.md and all of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page_blocks(text: str) -> list[tuple[str, int, int]]:
    """The blocks of a page: the name, and where its content begins and ends.

    Raises:
        ValueError: a marker without its counterpart, one in another block, or a block in a sentence that begins a line.
    """
    blocks, open_marker = [], None
    for marker in _MARKER.finditer(text):
        closes, name = marker.groups()
        if bool(closes) == (open_marker is None) or bool(closes) == bool(name):
            raise ValueError(f"line {_line(text, marker)}: {marker[0]} is not where a block can be")
        if not closes:
            open_marker = marker
            continue
        start, end = open_marker.end(), marker.start()
        inline = not text.startswith("\n", start)
        begins_a_line = not text[text.rfind("\n", 0, open_marker.start()) + 1 : open_marker.start()].strip()
        if inline == begins_a_line:
            raise ValueError(
                f"line {_line(text, open_marker)}: {open_marker[0]} must have a line for itself, or words before it"
            )
        blocks.append((open_marker[2], start, end))
        open_marker = None
    if open_marker is not None:
        raise ValueError(f"line {_line(text, open_marker)}: {open_marker[0]} has no end")
    return blocks


def updated(text: str, blocks: Mapping[str, str]) -> str:
    """The page with the blocks' present content.

    Raises:
        ValueError: as :func:`page_blocks`, or a block that there is not, or one of several lines in a sentence.
    """
    parts, done = [], 0
    for name, start, end in page_blocks(text):
        if name not in blocks:
            raise ValueError(f"no block {name!r}; there are {', '.join(sorted(blocks))}")
        content = blocks[name]
        if text.startswith("\n", start):
            content = f"\n\n{content}\n\n"  # tables want an empty line before them in some dialects
        elif "\n" in content:
            raise ValueError(f"{name} has several lines, and so needs the lines between its markers for itself")
        parts += [text[done:start], content]
        done = end
    return "".join([*parts, text[done:]])


def _line(text: str, marker: re.Match[str]) -> int:
    return text.count("\n", 0, marker.start()) + 1
