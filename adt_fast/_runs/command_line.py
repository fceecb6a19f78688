"""The command that runs, for the record of what it makes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def command_line(words: Sequence[str]) -> Iterator[None]:
    """Inside, ``adt-fast WORDS`` is the command that runs."""
    token = _command.set(shlex.join(["adt-fast", *words]))
    try:
        yield
    finally:
        _command.reset(token)


def running_command() -> str | None:
    """The command line, as a shell takes it; None in a program that calls the library."""
    return _command.get()
