"""The command line: ``adt-fast COMMAND``; the commands are in :mod:`adt_fast.commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

import tyro

from ._runs.command_line import command_line
from ._runs.folder import recorded_config
from .commands import COMMANDS, EntropySweep, EpochTime, Train
from .commands.command import Command, CommandFailed
from .config_files import ConfigFile, load_config_file
from .methods import method_names
from .processes import end_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 1 if a run failed, 2 for a bad setting, 130 after Ctrl-C.

    Args:
        arguments: the words of the command line; default: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = _parse(arguments, _config_file(arguments))
        with command_line(arguments):
            command()
    except SystemExit as leaving:  # --help, or words that do not parse; tyro has said what there is to say
        return int(leaving.code or 0)
    except (ValueError, OSError, ImportError) as error:
        return _fail(error, 2)
    except CommandFailed as error:
        return _fail(error, error.status)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


def _config_file(arguments: Sequence[str]) -> ConfigFile | None:
    """The file that gives the other flags their defaults and so is read before them: of ``--config``, or of the run
    that ``train --resume`` is to go on with."""
    source = _value_of("--config", arguments)
    if source is None and arguments[:1] == ["train"] and "--resume" in arguments:
        output = _value_of("--output", arguments)
        source = None if output is None else str(recorded_config(Path(output)))
    return None if source is None else load_config_file(source)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The word that follows a flag."""
    for word, next_word in zip(arguments, [*arguments[1:], ""]):
        if word == flag and next_word:
            return next_word
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _parse(arguments: Sequence[str], file: ConfigFile | None) -> Command:
    if file is None:
        return _parse_with({}, arguments)
    command = _parse_with(file.settings, arguments)
    # Once more, for it is the command that says whose options of the file are meant.
    if isinstance(command, (Train, EntropySweep)) and command.method in method_names():
        return _parse_with(file.settings_for(command.method), arguments)
    return command


def _parse_with(settings: dict[str, Any], arguments: Sequence[str]) -> Command:
    """What the arguments say, with these settings as the defaults of training."""
    trainings: tuple[type[Command], ...] = (Train, EntropySweep, EpochTime)
    defaults: dict[type, dict[str, Any]] = {command: {"default": command(**settings)} for command in trainings}
    commands = (
        Annotated[command, tyro.conf.subcommand(name, **defaults.get(command, {}))]
        for name, command in COMMANDS.items()
    )
    any_of_them: Any = reduce(or_, commands)
    command: Command = tyro.cli(
        any_of_them, prog="adt-fast", description="Adversarial distributional training.", args=arguments
    )
    return command


def _fail(error: Exception | str, status: int) -> int:
    print(f"adt-fast: error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    end_process(main())
