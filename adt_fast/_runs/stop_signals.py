"""Stopping at a moment of one's own choice after Ctrl-C, or after the SIGTERM of a cluster that wants its node back."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def postponed_stop(quiet: bool = False) -> Iterator[Callable[[], bool]]:
    """Inside, the first of these signals interrupts nothing: the function given tells whether it has come.

    The second one acts as ever. So do all of them in other threads than the main one, where Python takes no handlers;
    signals that are ignored stay so. With ``quiet`` nothing is said, which is for all processes of a run but one.
    """
    came = False
    replaced: dict[signal.Signals, Any] = {}

    def put_back() -> None:
        while replaced:
            signal.signal(*replaced.popitem())

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = True
        put_back()
        if not quiet:
            print("\nstopping after this minibatch; once more stops at once", file=sys.stderr, flush=True)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: of a library in C, which Python cannot put back
                replaced[number] = handler
                signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        put_back()
