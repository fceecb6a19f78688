"""Reads the pickles that image data sets are published in, and nothing else that a pickle can do.

A pickle is a program: it may call any function that it can name. This reader resolves names to stand-ins of its own,
for the few that an array of numbers needs, and refuses all others. So even a hostile file calls no foreign code,
NumPy's included: the bytes of an array are checked against its shape and dtype here before NumPy sees them.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from .._support.checks import LONGEST_REASON

# A published file holds a handful of tuples (shapes and states). Hashing one that is nested a million times overflows
# the stack of Python itself.
_MOST_TUPLES = 1000


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        code = _text(code)
        if not re.fullmatch("[iuf][1248]|b1", code):
            raise pickle.UnpicklingError(f"holds an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = _text(state[1])
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for numpy.ndarray and for the function that makes an empty one, to be filled by __setstate__."""

    def __init__(self, array_type: type, shape: tuple[int, ...], code: bytes) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        dtype = dtype.dtype
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("holds an array whose contents are not bytes")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"holds an array of shape {shape}")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError(f"holds {len(data)} bytes for an array of shape {shape} and dtype {dtype}")
        self.array = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


class _Latin1(bytes):
    """Stands in for _codecs.encode, by which Python 3 writes bytes into pickles for Python 2."""

    def __new__(cls, text: str, encoding: str) -> _Latin1:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"asks for the encoding {encoding!r}")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: object) -> None:
        # Without this method a pickle could set attributes of the class.
        raise pickle.UnpicklingError("gives a state to bytes")


_STAND_INS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # NumPy 2
    ("_codecs", "encode"): _Latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which arrays and lists do not need")
        return _STAND_INS[module, name]


def load_dict(pickled: bytes) -> dict[str, Any]:
    """The dict in `pickled`: plain values, and read-only NumPy arrays of numbers, by their names.

    Strings written by Python 2 come as bytes, except the dict's own keys, which are str.
    Raises pickle.UnpicklingError where the bytes are no such pickle; no function that they name is called. The message
    reads on from the file's name: "data_batch_1" + " holds a list, not a dict".
    """
    try:
        _check_program(pickled)
        content = _Unpickler(io.BytesIO(pickled), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"holds a {type(content).__name__}, not a dict")
        return {_text(key): value.array if isinstance(value, _Array) else value for key, value in content.items()}
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(str(error)[:LONGEST_REASON]) from error
    except Exception as error:  # a damaged pickle raises nearly anything: EOFError, KeyError, MemoryError, ...
        what = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        raise pickle.UnpicklingError(f"is damaged, or no pickle ({what})") from error


def _check_program(pickled: bytes) -> None:
    """Refuse, without running it, a program that would exhaust the stack or the memory of the unpickler."""
    tuples = 0
    steps: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(pickled)
    for count, (operation, argument, _position) in enumerate(steps):
        tuples += "TUPLE" in operation.name
        if tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"holds more than {_MOST_TUPLES} tuples")
        # The unpickler allocates its memo up to the highest index named, and an honest writer counts up from 0 or 1.
        if operation.name.endswith("PUT") and int(argument) > count:
            raise pickle.UnpicklingError(f"names the memo's place {argument} in its operation {count}")


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
