"""What is in a MATLAB 5 file is looked at here before SciPy reads it, whose reader a damaged file can crash."""

from __future__ import annotations

import math
import struct
import zlib

_HEADER_BYTES = 128
_COMPRESSED, _MATRIX = 15, 14
_FLAGS, _DIMENSIONS, _NAME = 6, 5, 1  # the types of a matrix's first three parts
_NUMBER_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # by the type of the fourth
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x08
_LARGEST_MATRIX = 2**29  # bytes, unpacked; the largest that was published has 225 MB


def plain_file(content: bytes) -> bytes:
    """The same file with its matrices unpacked, each of them dense, real and numeric, and of the size it claims.

    Raises ValueError where there is anything else in it.
    """
    if content[124:128] != b"\x00\x01IM":
        raise ValueError("its header is not of a little-endian MATLAB 5 file")
    elements, start = [content[:_HEADER_BYTES]], _HEADER_BYTES
    while start < len(content):
        kind, size = _tag(content, start)
        element = content[start : start + 8 + size]
        if len(element) < 8 + size:
            raise ValueError("it is cut short")
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            element = unpacker.decompress(element[8:], _LARGEST_MATRIX)
            if not unpacker.eof:
                raise ValueError(f"a matrix in it is cut short, or unpacks to more than {_LARGEST_MATRIX} bytes")
        _check_matrix(element)
        elements.append(element)
        start += 8 + size
    return b"".join(elements)


def _check_matrix(element: bytes) -> None:
    kind, size = _tag(element, 0)
    if kind != _MATRIX or size != len(element) - 8:
        raise ValueError("it holds something else than whole matrices")
    parts, start = [], 8
    while start < len(element):
        kind, size = _tag(element, start)
        if kind >> 16:  # up to 4 bytes, in the tag itself
            kind, size, first, end = kind & 0xFFFF, kind >> 16, start + 4, start + 8
            whole = size <= 4
        else:
            first = start + 8
            end = first + size + -size % 8
            whole = end <= len(element)
        if not whole:
            raise ValueError("a part of a matrix in it is longer than the matrix")
        parts.append((kind, element[first : first + size]))
        start = end
    if [kind for kind, _ in parts[:3]] != [_FLAGS, _DIMENSIONS, _NAME] or len(parts) != 4:
        raise ValueError("it holds something else than matrices of real numbers")
    (_, flags), (_, dimensions), _, (kind, numbers) = parts
    if len(flags) != 8 or flags[0] not in _NUMERIC_CLASSES or flags[1] & _COMPLEX or kind not in _NUMBER_BYTES:
        raise ValueError("it holds something else than matrices of real numbers")
    if len(dimensions) % 4 or not 8 <= len(dimensions) <= 128:
        raise ValueError("a matrix in it has no dimensions")
    shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
    if min(shape) < 0 or math.prod(shape) * _NUMBER_BYTES[kind] != len(numbers):
        raise ValueError(f"a matrix in it is of shape {list(shape)} and has {len(numbers)} bytes")


def _tag(content: bytes, start: int) -> tuple[int, int]:
    """Type and size of what begins there."""
    if start + 8 > len(content):
        raise ValueError("it is cut short")
    return struct.unpack_from("<II", content, start)
