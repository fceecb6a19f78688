"""The bytes of a file of torch.save or safetensors -> the tensors and plain containers in it, and nothing executed.

torch.load(weights_only=True) runs no function but the few that tensors need. What it leaves open is closed here: an
archive that unpacks to more than the file has, and tuples nested so deep that hashing one overflows the stack.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable
from typing import Any

import safetensors.torch
import torch

from .layouts import UnknownCheckpoint

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_DEEPEST_TUPLE = 100
_LEGACY_PICKLES = 5
"""A file of torch.save before PyTorch 1.6: magic number, version, system, contents, names of the storages."""
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")


def is_torch_file(content: bytes) -> bool:
    """Whether the content of a file begins as the files of torch.save and pickle do.

    The length that a safetensors file begins with may have the same bytes; what follows it is then JSON.
    """
    return content.startswith((_ZIP, _PICKLE)) and content[8:9] != b"{"


def read_file(content: bytes) -> Any:
    """What was saved in a file of this content: for safetensors a dict of tensors, for torch.save whatever it was, all
    of it on the CPU.

    Raises UnknownCheckpoint where that needs more than tensors and plain containers, or the file is damaged.
    """
    if not is_torch_file(content):
        try:
            return safetensors.torch.load(content)
        except Exception as error:  # the reader's own error, and struct, JSON and dtype errors beside it
            raise UnknownCheckpoint(f"is no safetensors file, or is damaged or cut short ({error})") from error
    try:
        for program in _pickles(content):
            _check_depth(program)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True, mmap=False)
    except UnknownCheckpoint:
        raise
    except Exception as error:  # a damaged file raises nearly anything: RuntimeError, IndexError, MemoryError, ...
        raise UnknownCheckpoint(_describe(error)) from error


def _describe(error: Exception) -> str:
    if refused := _REFUSED.search(str(error)):
        return (
            f"holds an object of {refused[1]}, and only tensors and plain containers are read from a pickle. "
            "Where you trust the file, load it with the code it came from, and save the model's state dict alone"
        )
    text = str(error).strip().splitlines()
    return (
        "is damaged, or is no file of torch.save with tensors and plain containers alone "
        f"({type(error).__name__}: {text[0][:200] if text else ''})"
    )


def _pickles(content: bytes) -> list[io.BytesIO]:
    """The pickled programs that torch.load would run; a legacy file's are one after another."""
    if not content.startswith(_ZIP):
        return [io.BytesIO(content)]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(record.file_size for record in archive.infolist()) > len(content):
            raise UnknownCheckpoint("unpacks to more than its own size, which files of torch.save never do")
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        return [io.BytesIO(archive.read(name)) for name in names]


def _check_depth(programs: io.BytesIO) -> None:
    """Refuse programs that would nest tuples too deep, following what is on the unpickler's stack without making it."""
    size = programs.getbuffer().nbytes
    for _ in range(_LEGACY_PICKLES):
        if programs.tell() == size:
            return
        stack: list[int | None] = []  # how many tuples deep each value is; None for a mark
        memo: dict[int, int] = {}
        steps: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(programs)
        for operation, argument, _position in steps:
            taken = _take(stack, operation)
            if operation.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument)])
            elif operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                place = len(memo) if argument is None else int(argument)
                memo[place] = taken[0] if taken else stack[-1] or 0
                stack += taken
            elif operation.name == "MARK":
                stack.append(None)
            elif operation.name == "DUP":
                stack += taken * 2
            elif "TUPLE" in operation.name:
                depth = 1 + max(taken, default=0)
                stack.append(depth)
                if depth > _DEEPEST_TUPLE:
                    raise UnknownCheckpoint(f"nests tuples more than {_DEEPEST_TUPLE} deep")
            else:
                stack += [0] * len(operation.stack_after)


def _take(stack: list[int | None], operation: pickletools.OpcodeInfo) -> list[int]:
    """What an operation takes from the stack: a number of values, or all down to a mark and a number below it."""
    names = [str(value) for value in operation.stack_before]
    taken = []
    if "mark" in names:
        while (value := stack.pop()) is not None:
            taken.append(value)
    below = names.index("mark") if "mark" in names else len(names)
    return taken + [stack.pop() or 0 for _ in range(below)]
