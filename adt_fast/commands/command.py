"""What a command is, and how it ends early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Protocol

import torch

from ..config import TrainConfig

INTERRUPTED = 130
"""The exit status after Ctrl-C."""


class Command(Protocol):
    """Settings, and what is done with them."""

    def __call__(self) -> None:
        """Does it, and prints what it found.

        Raises:
            ValueError, OSError, ImportError: for a bad setting, or missing files; before anything is begun.
            CommandFailed: if it went wrong later.
        """


class CommandFailed(Exception):
    """A command that had begun and cannot go on.

    Args:
        message: for people.
        status: the exit status of the process.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def train_config(command: TrainConfig) -> TrainConfig:
    """The settings of training of a command that has others besides."""
    return TrainConfig(**{field.name: getattr(command, field.name) for field in fields(TrainConfig)})


@contextmanager
def begun(interrupted: str = "interrupted") -> Iterator[None]:
    """From here on, what goes wrong is a failure of the run and not of its settings.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    try:
        yield
    except (FloatingPointError, torch.OutOfMemoryError, OSError) as error:
        raise CommandFailed(str(error)) from error
    except KeyboardInterrupt:
        raise CommandFailed(interrupted, INTERRUPTED) from None
