"""Hostile files of every kind that adt_fast reads, without end, and what reading one must come to.

Run as ``python hostile_files.py FOLDER`` it reads them in processes of their own, which a file may kill, and tells what
became of them; case I of a kind is always the same file. A case is refused by a documented exception whose message
names the file, or is read, and then holds what was saved.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch
from plain_adt import TinyClassifier, tiny_batch

from adt_fast import NoiseStream, experiment
from adt_fast._runs.checkpoint import RunCheckpoint
from adt_fast._runs.data import load_run_data
from adt_fast._runs.folder import RunFolder
from adt_fast._runs.folder_lock import LOCK_NAME
from adt_fast.checkpoint import digest, load_checkpoint, load_model, pack_state, save_checkpoint, save_model
from adt_fast.config import TrainConfig
from adt_fast.config_files import config_names, load_config_file
from adt_fast.data import BatchLoader, ImageData, load_dataset, load_npz
from adt_fast.evaluation.outcomes import Outcomes
from adt_fast.methods import create_method
from adt_fast.methods.joint import JointTraining
from adt_fast.models import create_model
from adt_fast.trainer import Trainer

SECONDS_A_CASE = 2.0
MEMORY = 1 << 30
"""Bytes of address space that reading files of a few kilobytes may take beyond what the process has."""
EXECUTED = "executed"
"""Appears in the folder where a pickle was executed."""

Case = tuple[str, bytes]
"""What was done to a whole file, and the hostile one."""


@dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    name: str
    """Of the file in the folder."""
    make: Callable[[Random], Case]
    read: Callable[[Path], Any]
    """What is under test: gives what it has read, or raises."""
    accepted: Callable[[str, Any], bool] = lambda done, value: True
    """Whether what was read from a file with that done to it may be read from it."""
    named: str = ""
    """A pattern that an error's message must have besides the file's name, or instead of it after "|"."""


# ---- Bytes -------------------------------------------------------------------------------------------------------

_HOSTILE_INTEGERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63,
                     2**64 - 1)  # fmt: skip


def damaged(rng: Random, content: bytes, other: bytes = b"") -> Case:
    """A file with bits flipped, bytes changed, parts cut out, doubled, or taken from another file."""
    done = rng.choice(("truncated", "bits flipped", "bytes set", "integer set", "cut", "inserted", "doubled",
                       "spliced"))
    spoiled = bytearray(content)
    # Most of a file is numbers, where damage is one of a kind: half of the cases are at its beginning or end.
    ends = [rng.randrange(min(400, len(content))), len(content) - 1 - rng.randrange(min(400, len(content)))]
    at = rng.choice([*ends, rng.randrange(len(content)), rng.randrange(len(content))])
    length = rng.choice((1, 2, 7, 40, 300))
    if done == "truncated":
        del spoiled[at:]
    elif done == "bits flipped":
        for _ in range(rng.choice((1, 1, 3))):
            spoiled[at] ^= 1 << rng.randrange(8)
            at = (at + rng.randrange(50)) % len(spoiled)
    elif done == "bytes set":
        spoiled[at : at + length] = bytes([rng.choice((0, 0xFF, 0x80, 0x7F, rng.randrange(256)))]) * length
    elif done == "integer set":
        size = rng.choice((1, 2, 4, 8))
        number = rng.choice(_HOSTILE_INTEGERS) % 256**size
        spoiled[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    elif done == "cut":
        del spoiled[at : at + length]
    elif done == "inserted":
        spoiled[at:at] = rng.randbytes(length)
    elif done == "doubled":
        spoiled[at:at] = spoiled[at : at + length] * rng.choice((1, 1, 20))
    else:
        other = other or content[::-1]
        spoiled[at : at + length] = other[(start := rng.randrange(len(other))) : start + length]
    return done, bytes(spoiled)


# ---- Structures --------------------------------------------------------------------------------------------------


def hostile_value(rng: Random) -> Any:
    """A plain value that nobody has saved there."""
    if rng.random() < 0.15:
        return rng.choice((None, True, False))
    return rng.choice((
        lambda: rng.choice((0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400)),
        lambda: rng.choice((0.5, -1e-9, 1e308, math.nan, math.inf, -math.inf)),
        lambda: rng.choice(("", "0", "model", "tensor", "\0", "../../x", "x" * 2000, "1e400", "\ud800")),
        lambda: rng.choice(([], {}, [[]], [0] * 300, [None], {"tensor": "nothing"}, {"list": 3}, {"dict": [[1]]},
                            {"dict": [[[], 1]]}, {"tensor": ["x"]}, {"list": [], "dict": []})),
        lambda: nested(rng.choice((5, 90, 3000)), rng.choice(("list", "dict"))),
    ))()  # fmt: skip


def nested(depth: int, kind: str) -> Any:
    value: Any = {} if kind == "dict" else []
    for _ in range(depth):
        value = {"a": value} if kind == "dict" else [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in nested dicts and lists, but for what is deeper than anyone saves."""
    if path:
        yield path
    if len(path) > 20:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def altered(rng: Random, value: Any, hostile: Callable[[Random], Any] = hostile_value) -> tuple[str, Any]:
    """Nested dicts and lists with something replaced, left out, swapped, doubled or added."""
    value = copied(value)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        ways = list(places(value))
        if not ways:
            break
        # By depth first, for most of what there is lies deep.
        depth = rng.choice(sorted({len(way) for way in ways}))
        *way, key = rng.choice([way for way in ways if len(way) == depth])
        parent = value
        for step in way:
            parent = parent[step]
        deed = rng.choice(("replaced", "replaced", "replaced", "left out", "swapped", "added"))
        if deed == "replaced":
            parent[key] = hostile(rng)
        elif deed == "left out":
            del parent[key]
        elif deed == "swapped":
            other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[key], parent[other] = parent[other], parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice(("", "more", "0", "tensor", "\0"))] = hostile(rng)
        else:
            parent.insert(key, hostile(rng))
        done.append(deed)
    return done[0] if len(set(done)) == 1 else "several deeds", value


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, (list, tuple)) else value


# ---- Files of safetensors ----------------------------------------------------------------------------------------


def sealed(tensors: dict[str, torch.Tensor], metadata: Any, **entry: Any) -> bytes:
    """A checkpoint of ours with whatever metadata, and the checksum that belongs to it."""
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    try:
        entry = {"format_version": 1, "sha256": digest(tensors, metadata), "metadata": metadata} | entry
        return safetensors.torch.save(tensors, {"adt_fast": json.dumps(entry)})
    except (RecursionError, UnicodeEncodeError):  # beyond what JSON can hold: something else is hostile enough
        return sealed(tensors, {"nothing": None})


_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U16",
           "X9", "", "f32", 3, None)  # fmt: skip


def with_hostile_header(rng: Random, content: bytes) -> Case:
    """A file of safetensors whose header is well-formed JSON or nearly so, and says something else."""
    length = int.from_bytes(content[:8], "little")
    header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    done = rng.choice(("shape", "dtype", "offsets", "overlap", "metadata", "length", "deep", "duplicate", "structure",
                       "many"))  # fmt: skip
    text = None
    if done in ("shape", "dtype", "offsets", "overlap") and names:
        entry = header[rng.choice(names)]
        if done == "shape":
            sizes = (0, 1, -1, 2**31, 2**32, 2**62, 2**63, 2**64, 1.5, None, "3", True)
            entry["shape"] = rng.choice((
                [rng.choice(sizes) for _ in range(rng.randrange(4))], entry["shape"][::-1], [*entry["shape"], 1],
                [1] * 5000, [0, 2**62], [2**32, 2**32, 0], {}, 7,
            ))  # fmt: skip
        elif done == "dtype":
            entry["dtype"] = rng.choice(_DTYPES)
        elif done == "offsets":
            entry["data_offsets"] = rng.choice((
                [0, len(numbers)], [len(numbers), 0], [0, 2**63], [2**64 - 1, 2**64 - 1], [-8, 8], [0], [], "0", None,
                [0, len(numbers) + 8], [0.0, 4.0], [entry["data_offsets"][0] + 1, entry["data_offsets"][1] + 1],
            ))  # fmt: skip
        else:
            entry.update(copy.deepcopy(header[rng.choice(names)]))
    elif done == "metadata":
        header["__metadata__"] = rng.choice((
            {}, None, [], "x", 3, {"adt_fast": 3}, {"adt_fast": None}, {"adt_fast": ["x"]}, {"adt_fast": "[" * 5000},
            {"adt_fast": "{}"}, {"adt_fast": '{"format_version": 2}'}, {"adt_fast": '{"format_version": 1e999}'},
            {"adt_fast": '{"format_version": 1, "metadata": {}, "sha256": null}'}, {"adt_fast": '"x"'},
            {"adt_fast": '{"format_version": 1, "metadata": NaN, "sha256": ""}'}, {"adt_fast": "9" * 5000},
            {"format": "pt"}, {"format": 7}, {"a": {"b": "c"}},
        ))  # fmt: skip
    elif done == "duplicate" and names:
        one = json.dumps(header)
        text = one[:-1] + ", " + one[1:] if rng.random() < 0.5 else one[:-1] + f', "__metadata__": {{}}, {one[1:]}'
    elif done == "deep":
        depth = rng.choice((100, 130, 2000, 100_000))
        text = rng.choice(("[" * depth, '{"a":' * depth, '{"__metadata__":' + "[" * depth + "]" * depth + "}"))
    elif done == "many":
        header |= {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(2000)}
    elif done == "structure":
        _, header = altered(rng, header)
    try:
        encoded = (text if text is not None else json.dumps(header)).encode()
    except (RecursionError, UnicodeEncodeError):
        encoded = b"{}"
    if done == "length":
        length = rng.choice((0, 1, 7, len(encoded) - 1, len(encoded) + 1, len(content), 10**8, 2**32, 2**63, 2**64 - 1))
        return done, length.to_bytes(8, "little") + encoded + numbers
    return done, len(encoded).to_bytes(8, "little") + encoded + numbers


def hostile_checkpoint(rng: Random, wholes: tuple[bytes, ...], structure: Callable[[], Any]) -> Case:
    """Damage, another header, or other metadata and tensors under a checksum that is right."""
    content = rng.choice(wholes)
    share = rng.random()
    if share < 0.3:
        return damaged(rng, content, rng.choice(wholes))
    if share < 0.5:
        return with_hostile_header(rng, content)
    tensors, metadata = structure()
    if share < 0.85:
        done, metadata = altered(rng, metadata)
        return f"sealed: {done}", sealed(tensors, metadata if isinstance(metadata, dict) else {"x": metadata})
    done, tensors = other_tensors(rng, tensors)
    return f"sealed: {done}", sealed(tensors, metadata)


def other_tensors(rng: Random, tensors: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """Tensors of which one is another, or is not there."""
    tensors, name = dict(tensors), rng.choice(list(tensors))
    done = rng.choice(("tensor left out", "tensors swapped", "tensor added", "other tensor", "not finite"))
    if done == "tensor left out":
        del tensors[name]
    elif done == "tensors swapped":
        other = rng.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
    elif done == "tensor added":
        tensors[rng.choice(("more", "", "0.", "1.checksum", "-1.x", f"{10**12}.labels", "99999.natural", "examples.",
                            "x" * 500))] = hostile_tensor(rng, tensors[name])  # fmt: skip
    elif done == "not finite":
        if tensors[name].is_floating_point():
            tensors[name] = torch.full_like(tensors[name], rng.choice((math.nan, math.inf)))
    else:
        tensors[name] = hostile_tensor(rng, tensors[name])
    return done, tensors


def hostile_tensor(rng: Random, tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return rng.choice((
        lambda: tensor.to(rng.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8))),
        lambda: flat.clone(), lambda: flat[:0].clone(), lambda: tensor[None].clone(), lambda: torch.zeros(0, 3),
        lambda: torch.zeros(()), lambda: torch.full((3,), -1), lambda: torch.tensor(2**62),
        lambda: torch.zeros(5, dtype=torch.uint8), lambda: flat.new_zeros(1, 1, 1, 1),
    ))()  # fmt: skip


# ---- Checkpoints -------------------------------------------------------------------------------------------------


@cache
def plain_checkpoint() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"a": torch.linspace(0, 1, 7), "b/c": torch.arange(6).view(2, 3), "empty": torch.zeros(0, 4),
               "half": torch.ones(3, dtype=torch.bfloat16), "flag": torch.tensor(True)}  # fmt: skip
    return tensors, {"epoch": 3, "lr": 0.1, "name": "x", "list": [1, [2, None]], "dict": {"deep": {"er": True}}}


def written(save: Callable[[Path], None]) -> bytes:
    """What a function writes into a file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        save(path)
        return path.read_bytes()


@cache
def whole_checkpoints() -> tuple[bytes, ...]:
    tensors, metadata = plain_checkpoint()
    return (written(lambda path: save_checkpoint(path, tensors, metadata)),
            written(lambda path: save_checkpoint(path, {}, {"nothing": None})),
            safetensors.torch.save(tensors))  # fmt: skip


@cache
def whole_digests() -> set[str]:
    return {digest(*plain_checkpoint()), digest({}, {"nothing": None})}


MODEL_NAME, MODEL_OPTIONS = "wrn-10-1", {"num_classes": 2, "in_channels": 1, "mean": [0.5], "std": [0.2]}


@cache
def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(MODEL_NAME, **MODEL_OPTIONS).half().eval()


@cache
def whole_models() -> tuple[bytes, ...]:
    model = small_model()
    return (written(lambda path: save_model(path, model, model_name=MODEL_NAME, model_kwargs=MODEL_OPTIONS)),)


def model_parts() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    metadata = {"model_name": MODEL_NAME, "model_kwargs": dict(MODEL_OPTIONS), "extra": {}}
    return small_model().state_dict(), metadata


def hostile_model(rng: Random) -> Case:
    if rng.random() < 0.15:  # sizes that no file of this size can have
        tensors, metadata = model_parts()
        name = rng.choice(("wrn-999999994-1", "wrn-10-99999999", "wrn-100000000000000000000-1", "wrn-60004-1",
                           "preactresnet-18", "wrn-10-1\n", "WRN-10-1"))  # fmt: skip
        return "sealed: model name", sealed(tensors, metadata | {"model_name": name})
    return hostile_checkpoint(rng, whole_models(), model_parts)


def same_model(done: str, loaded: tuple[torch.nn.Module, dict[str, Any]]) -> bool:
    if done.startswith("sealed"):
        return True
    mine, theirs = small_model().state_dict(), loaded[0].state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def foreign_model(rng: Random) -> Case:
    state = small_model().state_dict()
    content = safetensors.torch.save(state)
    share = rng.random()
    if share < 0.35:
        return damaged(rng, content)
    if share < 0.65:
        return with_hostile_header(rng, content)
    done, state = other_tensors(rng, state)
    if done == "tensor left out" and rng.random() < 0.5:
        state["block1.layer.99999999999.conv1.weight"] = torch.zeros(1)
    return done, safetensors.torch.save(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    )


# ---- Pickles -----------------------------------------------------------------------------------------------------

_CALLS = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cposix\nsystem\n", b"csubprocess\nrun\n", b"cbuiltins\nexec\n",
          b"ctorch\nload\n", b"ctorch.serialization\n_get_restore_location\n", b"cbuiltins\ngetattr\n",
          b"cnumpy\nload\n")  # fmt: skip
_ADMITTED = (b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
             b"ctorch._utils\n_rebuild_parameter\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n",
             b"cnumpy.core.multiarray\n_reconstruct\n", b"ctorch\nfloat32\n", b"ctorch\nSize\n",
             b"ctorch\ndevice\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
             b"ctorch.nn.parameter\nParameter\n")  # fmt: skip
_VALUES = (b"N", b"\x88", b"\x89", b"K\x00", b"K\x07", b"J\xff\xff\xff\xff", b"M\xff\xff",
           b"\x8a\x05\xff\xff\xff\xff\x7f",
           b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"X\x01\x00\x00\x00a", b"X\x04\x00\x00\x00data", b"U\x01a", b"]",
           b"}", b")",
           b"I99999999999999999999\n", b"L1L\n", b"F1e999\n", b"Vx\n", b"S'x'\n", b"B\x03\x00\x00\x00abc", b"C\x02xx",
           b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8d\x00\x00\x00\x00\x00\x00\x00\x01", b"B\xff\xff\xff\xff",
           b"U\x06latin1", b"U\x02u1", b"U\x01O", b"\x8f", b"\x96\x04\x00\x00\x00\x00\x00\x00\x00abcd")  # fmt: skip
_DEEDS = (b"(", b"t", b"l", b"d", b"R", b"b", b"o", b"a", b"e", b"s", b"u", b"0", b"1", b"2", b"\x85", b"\x86", b"\x87",
          b"\x81", b"\x92", b"\x90", b"\x91", b"q\x00", b"h\x00", b"r\xff\xff\xff\x7f", b"j\x00\x00\x00\x00",
          b"p9999999\n",
          b"g0\n", b"\x94", b"\x93", b"Q", b"Pid\n", b"\x82\x01", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
          b".")  # fmt: skip


def hostile_program(rng: Random, executed: str) -> bytes:
    """A pickled program: calls that would leave a mark, names that are admitted, and anything at all."""
    touch = f"touch {executed}".encode()
    calls = (b"(" + b"V" + touch + b"\ntR", b"X" + struct.pack("<I", len(touch)) + touch + b"\x85R")
    share = rng.random()
    if share < 0.3:
        body = rng.choice(_CALLS) + rng.choice(calls)
    elif share < 0.4:
        body = b"(V" + touch + b"\nios\nsystem\n"
    elif share < 0.5:
        body = rng.choice((b"\x85" * 5000, b"]" * 5000 + b"a" * 4999, b"(" * 3000, b"2" * 20000, b"\x8f(" * 300,
                           b"K\x01" * 9000 + b"t", b"}" * 400 + b"K\x00" * 400)) + b"0"  # fmt: skip
    else:
        pieces = (_VALUES, _VALUES, _DEEDS, _DEEDS, _ADMITTED)
        body = b"".join(rng.choice(rng.choice(pieces)) for _ in range(rng.choice((3, 8, 25))))
    start = rng.choice((b"\x80\x02", b"\x80\x04", b"\x80\x02", b"", b"\x80\xff"))
    wrapped = rng.choice((body, b"}X\x05\x00\x00\x00model" + body + b"s", b"}" + body + b"K\x01s"))
    return start + wrapped + b"."


@cache
def whole_torch_files() -> tuple[bytes, bytes, bytes]:
    """Of torch.save: zip, legacy, and a small one, whose parts are mostly program."""
    state = {name: tensor.clone() for name, tensor in small_model().state_dict().items()}
    small = {"state_dict": {"block1.layer.0.conv1.weight": torch.ones(2, 3), "x": torch.arange(3)}, "epoch": 3}

    def saved(value: Any, zipped: bool) -> bytes:
        target = io.BytesIO()
        torch.save(value, target, _use_new_zipfile_serialization=zipped)
        return target.getvalue()

    return saved(state, True), saved(state, False), saved(small, True)


def hostile_torch_zip(rng: Random) -> Case:
    whole = rng.choice((whole_torch_files()[0], *[whole_torch_files()[2]] * 4))
    share = rng.random()
    if share < 0.4:
        return damaged(rng, whole, whole_torch_files()[2])
    target = io.BytesIO()
    done = rng.choice(("program", "program damaged", "record gone", "record damaged", "names", "bomb", "twice"))
    with zipfile.ZipFile(io.BytesIO(whole)) as source, warnings.catch_warnings(action="ignore"):
        names = source.namelist()
        chosen = rng.choice(names)
        method = zipfile.ZIP_DEFLATED if done == "bomb" else zipfile.ZIP_STORED
        with zipfile.ZipFile(target, "w", method, compresslevel=1) as archive:
            for name in names:
                content = source.read(name)
                if done == "program" and name.endswith("data.pkl"):
                    content = hostile_program(rng, EXECUTED)
                elif done == "program damaged" and name.endswith("data.pkl"):
                    content = damaged(rng, content)[1]
                elif done == "record damaged" and name == chosen:
                    content = damaged(rng, content or b"x")[1]
                elif done == "bomb" and name == chosen:
                    content = bytes(10**6)
                elif name == chosen and done == "record gone":
                    continue
                if done == "names" and name == chosen:
                    name = rng.choice(("../../" + EXECUTED, "/" + EXECUTED, "archive/data.pkl", "x/data.pkl",
                                       "a" * 999))
                archive.writestr(name, content)
                if done == "twice" and name == chosen:
                    archive.writestr(name, damaged(rng, content or b"x")[1])
    return done, target.getvalue()


def hostile_torch_legacy(rng: Random) -> Case:
    whole = whole_torch_files()[1]
    if rng.random() < 0.5:
        return damaged(rng, whole, whole_torch_files()[2])
    # Magic number, version and system, then the program.
    target = io.BytesIO()
    torch.save(1, target, _use_new_zipfile_serialization=False)
    start = target.getvalue().index(b"\x80\x02K\x01.")
    return "program", target.getvalue()[:start] + hostile_program(rng, EXECUTED) + rng.choice((b"", b"\x80\x02]."))


def hostile_pickle(rng: Random) -> Case:
    program = hostile_program(rng, EXECUTED)
    return "program", program if program.startswith(b"\x80") else b"\x80\x02" + program


# ---- States ------------------------------------------------------------------------------------------------------


def tiny_trainer(method: str = "adt-exp", **options: Any) -> Trainer:
    model = TinyClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {"steps": 1, "samples": 1} | options if method == "adt-exp" else options
    method = create_method(method, model, epsilon=0.1, noise=NoiseStream(3), **options)
    return Trainer(model, optimizer, method)


def tiny_data() -> BatchLoader:
    images, labels = tiny_batch(6)
    data = ImageData((images * 255).to(torch.uint8), labels, 4, "tiny", (0.5,) * 3, (0.2,) * 3)
    return BatchLoader(data, 2, shuffle=True, seed=1)


class _Stop(Exception):
    pass


def state_within_a_fit(trainer: Trainer) -> dict[str, Any]:
    """Between the second and the third minibatch of the second epoch."""
    states: list[dict[str, Any]] = []

    def note() -> None:
        states.append(copy.deepcopy(trainer.state_dict()))
        if len(states) == 4:
            raise _Stop

    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2)
    settings = dict(epochs=2, scheduler=scheduler, schedule_every="step", progress=False)
    with suppress(_Stop):
        trainer.fit(tiny_data(), between_steps=note, **settings)
    return states[-1]


@cache
def run_parts() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = {"config": {"seed": 1}, "trainer": state_within_a_fit(tiny_trainer()), "agreements_logged": 0,
             "extra_checksum": 7, "metrics_length": 12}  # fmt: skip
    tensors, structure = pack_state(state)
    return tensors, {"training_run": structure, "versions": {"adt_fast": "0.1.0", "torch": "2", "python": "3"}}


@cache
def whole_runs() -> tuple[bytes, ...]:
    return (written(lambda path: save_checkpoint(path, *run_parts())),)


def read_run(path: Path) -> Any:
    return RunCheckpoint(path.parent).load()


@cache
def joint_training() -> JointTraining:
    torch.manual_seed(0)
    method = create_method("adt-imp-am", TinyClassifier(), epsilon=0.1, noise=NoiseStream(3), image_shape=(3, 6, 5),
                           generator_width=2)  # fmt: skip
    return method.joint


@cache
def joint_parts() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    for network in joint_training().networks.values():
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
    joint_training().step()
    tensors, structure = pack_state(joint_training().state_dict())
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, {"joint_training": structure,
    "extra": {"epochs": 1}}


@cache
def whole_joints() -> tuple[bytes, ...]:
    return (written(lambda path: save_checkpoint(path, *joint_parts())),)


def read_joint(path: Path) -> Any:
    joint_training().load(path)
    joint_training().step()  # what was loaded is what an optimizer can go on with
    return None


@cache
def whole_state() -> dict[str, Any]:
    return state_within_a_fit(tiny_trainer())


def hostile_leaf(rng: Random) -> Any:
    if rng.random() < 0.6:
        return hostile_value(rng)
    return hostile_tensor(rng, torch.linspace(-1, 1, 6).view(2, 3))


def hostile_state(rng: Random) -> Case:
    """A trainer's state, as the file that `read_state` makes of it again."""
    done, state = altered(rng, whole_state(), hostile_leaf)
    try:
        return done, pickle.dumps(state)
    except RecursionError:
        return "no state", pickle.dumps(nested(20, "list"))


_TRAINER: list[Any] = []


def read_state(path: Path) -> Any:
    """Loads a state into a trainer and goes on; what is refused has changed nothing."""
    state = pickle.loads(path.read_bytes())  # of our own making; states themselves have no file
    if not _TRAINER:
        trainer = tiny_trainer()
        _TRAINER[:] = [trainer, copy.deepcopy(trainer.state_dict())]
    trainer, before = _TRAINER
    _TRAINER.clear()
    try:
        trainer.load_state_dict(state)
    except (TypeError, ValueError):
        assert same(trainer.state_dict(), before), "what was refused has changed the trainer"
        _TRAINER[:] = [trainer, before]
        raise
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2)
    settings = dict(epochs=2, scheduler=scheduler, schedule_every="step", progress=False)
    try:
        trainer.fit(tiny_data(), **settings)
    except FloatingPointError as error:  # NaN among the weights is a state like others
        raise ValueError(f"state: {error}") from error
    return None


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(value, other[key]) for key,
        value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# ---- Runs --------------------------------------------------------------------------------------------------------

RUN_SETTINGS = dict(
    dataset="digits", method="adt-exp", model="wrn-10-1", steps=1, samples=1, train_limit=24, test_limit=4,
    validation_images=8, validation_attack="fgsm", batch_size=8, epochs=2, ema_decay=0.9, seed=1, device="cpu",
)  # fmt: skip


@cache
def run_data() -> Any:
    return load_run_data(TrainConfig(**RUN_SETTINGS).resolved())


def run_in(folder: Path, **options: Any) -> experiment.TrainingRun:
    """The run whose folder that is; its images are read once."""
    read, experiment.load_run_data = experiment.load_run_data, lambda config: run_data()
    try:
        return experiment.TrainingRun(TrainConfig(**RUN_SETTINGS, output=folder), **options)
    finally:
        experiment.load_run_data = read


@cache
def whole_run_folder(is_finished: bool) -> dict[str, bytes]:
    """The files of a run that has one minibatch to go, or none and is tested."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name) / "run", 0
        run = run_in(folder, save_every=0)
        save = run._save

        def save_and_stop() -> None:
            nonlocal steps
            save()
            steps += 1
            if steps == 3 and not is_finished:
                raise _Stop

        run._save = save_and_stop
        with suppress(_Stop):
            run.train(progress=False)
            run.evaluate()
        run.close()
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@cache
def run_states() -> tuple[dict[str, Any], ...]:
    """Of the run with one minibatch to go: as one process saves it, and as three do."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "last.safetensors"
        path.write_bytes(whole_run_folder(False)[path.name])
        state = RunCheckpoint(path.parent).load()
    shared = copied(state)
    shared["trainer"]["processes"] *= 3
    return state, shared


UNFIT: tuple[tuple[tuple[Any, ...], Any], ...] = (
    (("trainer", "fit"), None), (("trainer", "average"), None), (("trainer", "average", "steps"), -1),
    (("trainer", "processes"), []), (("trainer", "processes"), None), (("trainer", "processes", 0, "engine"), None),
    (("trainer", "fit", "scheduler"), None), (("trainer", "fit", "scheduler", "last_epoch"), "x"),
    (("trainer", "fit", "progress", "settings", "epochs"), 3), (("trainer", "fit", "progress", "sums", "batches"), 2),
    (("trainer", "optimizer", "state", "state", 0), {}),
    (("trainer", "optimizer", "state", "param_groups", 0, "maximize"), None), (("validation",), None),
    (("validation", "best", "natural", "total"), 0), (("validation", "best", "robust", "correct"), 9),
    (("metrics_length",), -1), (("metrics_length",), 1), (("metrics_length",), 10**6), (("agreements_logged",), -1),
    (("config",), None), (("config", "seed"), 2), (("config", "seed"), torch.ones(2)),
)  # fmt: skip
"""Places in a run's state, and what nothing can go on from there."""


def hostile_run_state(rng: Random) -> Case:
    """Another state of the run, under a checksum that is right."""
    if rng.random() < 0.4:
        state = copied(rng.choice(run_states()))
        (*way, key), value = rng.choice(UNFIT)
        reduce(getitem, way, state)[key] = value
        tensors, structure = pack_state(state)
        return "unfit", sealed(tensors, {"training_run": structure, "versions": {}})
    done, state = altered(rng, rng.choice(run_states()), hostile_leaf)
    with suppress(RecursionError, TypeError):
        tensors, structure = pack_state(state)
        return f"sealed: {done}", sealed(tensors, {"training_run": structure, "versions": {}})
    return "sealed: nothing", sealed({}, {"training_run": None, "versions": {}})


def hostile_best(rng: Random) -> Case:
    whole = whole_run_folder(True)["best.safetensors"]
    if rng.random() < 0.2:
        return damaged(rng, whole)
    header = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["adt_fast"])
    tensors, metadata = safetensors.torch.load(whole), header["metadata"]
    if rng.random() < 0.3:
        done, metadata["extra"] = altered(rng, metadata["extra"])
    else:
        done, metadata["extra"]["validation"] = altered(rng, metadata["extra"]["validation"])
    return f"sealed: {done}", sealed(tensors, metadata)


def hostile_tests(rng: Random) -> Case:
    lines = whole_run_folder(True)["metrics.jsonl"].splitlines(keepends=True)
    if rng.random() < 0.3:
        return damaged(rng, b"".join(lines))
    done, event = altered(rng, json.loads(lines[-1]))
    with suppress(RecursionError, UnicodeEncodeError):
        lines[-1] = json.dumps(event).encode() + b"\n"
    return done, b"".join(lines)


def read_run_folder(path: Path) -> Any:
    """Resumes the run of which a file is another one, and goes on to its end; what is refused has changed no file."""
    hostile, is_finished = path.read_bytes(), path.name != "last.safetensors"
    folder = path.parent / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in (whole_run_folder(is_finished) | {path.name: hostile}).items():
        (folder / name).write_bytes(content)
    (folder / "last.previous.safetensors").unlink(missing_ok=True)  # it would stand in for one that is damaged
    before = contents(folder)
    try:
        run = run_in(folder, resume=True)
    except (OSError, ValueError):
        assert contents(folder) == before, "what was refused has changed the folder"
        raise
    with suppress(FloatingPointError):  # NaN among the weights is a state like others
        run.train(progress=False)
        if not is_finished:
            run.evaluate()
    run.close()
    return None


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK_NAME}


@cache
def outcome_parts() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {"examples.natural": torch.zeros(2, 1, 3, 3)}
    for batch in range(2):
        for name in ("natural", "pgd-20"):
            tensors[f"{batch}.{name}"] = torch.tensor([1, 0, 1], dtype=torch.int8)
        tensors |= {f"{batch}.labels": torch.tensor([0, 1, 2]), f"{batch}.checksum": torch.tensor(7)}
    return tensors, {"outcomes": {"attacks": ["pgd-20"], "epsilon": 0.1}}


@cache
def whole_outcomes() -> tuple[bytes, ...]:
    return (written(lambda path: save_checkpoint(path, *outcome_parts())),)


def read_outcomes(path: Path) -> Any:
    outcomes = Outcomes(path, {"attacks": ["pgd-20"], "epsilon": 0.1})
    outcomes.resume()
    for name in ("natural", "pgd-20", "labels"):
        outcomes.joined(name)
    return outcomes


# ---- Settings and metrics ----------------------------------------------------------------------------------------


@cache
def whole_configs() -> tuple[bytes, ...]:
    texts = [(Path(sys.modules["adt_fast"].__file__).parent / "configs" / f"{name}.yaml").read_bytes()
             for name in config_names()]  # fmt: skip
    return (*texts, b"seed: 3\nepochs: 2\nepsilon: 8/255\nmethod: adt-exp\nsteps: 3\n" * 1)


_SCALARS = (
    "~", "true", "off", "0", "-1", "1.5", ".nan", ".inf", "-.inf", "1e999", "8/255", "1/0", "0x" + "f" * 5000,
    "9" * 5000,
    "1:1:1:1", "2001-99-99", "2001-01-01", "2001-01-01 99:99:99", "0o9", "08", "!!int x", "!!float x", "!!bool maybe",
    "!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "!!binary '???'", "!!set {a, b}",
    "!!timestamp x", "!!omap [a: 1]", "!!null x", '"\\0"', '"\\ud800"', '"\\x00.yaml"', "*nowhere", "&a x", "[]", "{}",
    "[1, [2]]", "{a: 1}", "? [1]\n  : 2", "|\n  text", ">-\n  text", "'", '"', "@", "`", "%", "- a", "<<", "=",
    "x" * 9000,
    "digits", "cifar10", "adt-exp", "one-cycle", "cuda:99", "../../../etc/passwd", "/dev/null", "\t", "1_000", "+1",
    "''",
)  # fmt: skip
_KEYS = ("seed", "epochs", "epsilon", "method", "dataset", "steps", "samples", "precision", "graph", "chunk", "device",
         "model", "norm", "schedule", "learning_rate", "momentum", "batch_size", "data_dir", "output", "compile",
         "train_limit", "extends", "config", "versions", "nonsense", "1", "~", "[1]", "{a: b}", "2001-01-01", "<<",
         "!!python/name:os.system", ".nan", "true", "''", "recipe", "entropy_weight", "model_mode")  # fmt: skip


def bombs(rng: Random) -> str:
    """Texts that stand for far more than they are."""
    levels = rng.choice((9, 30))
    many = ", ".join(["*l{0}"] * rng.choice((2, 10)))
    start = rng.choice(("&l0 [x, x]", "&l0 {x: 1}"))
    if start.endswith("}"):
        rows = [f"l{level + 1}: &l{level + 1} {{<<: [{many.format(level)}]}}" for level in range(levels)]
    else:
        rows = [f"l{level + 1}: &l{level + 1} [{many.format(level)}]" for level in range(levels)]
    name = rng.choice(("seed", "epsilon", "extends", "output", "config", "method"))
    return "\n".join([f"l0: {start}", *rows, f"{name}: *l{levels}"]) if rng.random() < 0.5 else "\n".join(
        [f"versions:\n  l0: {start}", *(f"  {row}" for row in rows), f"config: {{{name}: *l{levels}}}"])  # fmt: skip


def hostile_config(rng: Random) -> Case:
    share = rng.random()
    if share < 0.3:
        return damaged(rng, rng.choice(whole_configs()), rng.choice(whole_configs()))
    if share < 0.4:
        return "bomb", bombs(rng).encode()
    if share < 0.5:
        depth = rng.choice((50, 400, 20_000))
        return "deep", rng.choice((
            f"seed: {'[' * depth}", f"seed: {'[' * depth}{']' * depth}", f"{'{a: ' * depth}", f"seed: {'- ' * depth}",
            "\n".join(" " * level + "a:" for level in range(min(depth, 400))), f"{'? ' * depth}",
        )).encode()  # fmt: skip
    if share < 0.6:
        return "binary", rng.choice((
            b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbfseed: 1", rng.randbytes(50), b"seed: \xff", b"\xfe\xffs\0",
            b"---\n---\n",
            b"%YAML 9.9\n---\nseed: 1", b"seed: 1\n...\nseed: 2", b"\x80\x02}.", b"null", b"[]", b"3", b"seed", b"'",
            b"!!set {a}",
        ))  # fmt: skip
    if share < 0.65:
        extended = rng.choice(("case.yaml", "./case.yaml", "../case.yaml", "digits", "nowhere", "nowhere.yaml",
                               "a" * 5000, "/",
                               ".", '"\\0.yaml"', "/dev/zero.yaml", "[case.yaml]", "{a: 1}", "/etc"))  # fmt: skip
        return "extends", f"extends: {extended}\nseed: 1\n".encode()
    lines = [f"{rng.choice(_KEYS)}: {rng.choice(_SCALARS)}" for _ in range(rng.choice((1, 1, 2, 5)))]
    if rng.random() < 0.2:
        lines = ["config:", *(f"  {line}" for line in lines), "versions: {torch: 1}"]
    return "grammar", "\n".join(lines).encode()


class InSettings(ValueError):
    """An error of the settings in a file, whose message names the setting."""


def read_config(path: Path) -> Any:
    """The settings of a file; what is wrong with one of them, and not with the file, is told by its name alone."""
    file = load_config_file(str(path))
    try:
        return file.config().resolved()
    except (OSError, ValueError) as error:
        names = "|".join([*file.settings, "file", "dataset", "method"])
        if re.search(rf"\b({names})\b", str(error)):
            raise InSettings(f"{path} {error}") from error
        raise


@cache
def whole_metrics() -> tuple[bytes, ...]:
    lines = [{"time": "2026", "event": "epoch", "loss": 1.5}, {"time": "2026", "event": "test", "natural": {"a": 1}}]
    return ("".join(json.dumps(line) + "\n" for line in lines).encode() * 2,)


def hostile_metrics(rng: Random) -> Case:
    if rng.random() < 0.5:
        return damaged(rng, whole_metrics()[0])
    lines = [rng.choice(("", "[]", "{}", "null", "3", '"event"', '{"event": []}', "[" * 5000, '{"event": NaN}',
                         "9" * 5000, "\0",
                         '{"event": "epoch"}', "{'event': 1}", '{"event"', "\ud800")) for _ in range(3)]  # fmt: skip
    return "lines", "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"


def read_metrics(path: Path) -> Any:
    folder = RunFolder.__new__(RunFolder)
    folder.path = path.parent
    return [folder.events(name) for name in ("epoch", "test")]


# ---- Data sets ---------------------------------------------------------------------------------------------------


@cache
def whole_cifar() -> tuple[bytes, ...]:
    images = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    batch = {b"data": images, b"labels": [3, 9], b"batch_label": b"testing batch 1 of 1", b"filenames": [b"a", b"b"]}
    small = {"data": images[:1], "labels": [0]}
    return pickle.dumps(batch, protocol=2), pickle.dumps(batch, protocol=4), pickle.dumps(small, protocol=2)


def hostile_cifar(rng: Random) -> Case:
    whole = rng.choice(whole_cifar())
    share = rng.random()
    if share < 0.5:
        return damaged(rng, whole, rng.choice(whole_cifar()))
    if share < 0.6:
        at = rng.randrange(60)
        return "program inserted", whole[:at] + hostile_program(rng, EXECUTED)[2:-1] + whole[at:]
    return "program", hostile_program(rng, EXECUTED)


def read_cifar(path: Path) -> Any:
    return load_dataset("cifar10", "test", data_dir=path.parent, verify=False)


def read_cifar_archive(path: Path) -> Any:
    return load_dataset("cifar10", "test", data_dir=path.parent, verify=False)


def has_valid_data(done: str, data: Any) -> bool:
    return data.images.dtype == torch.uint8 and len(data.images) == len(data.labels) and bool((data.labels < 10).all())


_MEMBER = "cifar-10-batches-py/test_batch"


def tar_header(name: bytes, size: bytes, kind: bytes, link: bytes = b"") -> bytes:
    """512 bytes with a checksum that is right."""
    header = bytearray(512)
    header[:100] = name[:100].ljust(100, b"\0")
    header[100:108], header[108:116], header[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    header[124:136] = size[:12].ljust(12, b"\0")
    header[136:148], header[148:156], header[156:157] = b"00000000000\0", b" " * 8, kind
    header[157:257] = link[:100].ljust(100, b"\0")
    header[257:265] = b"ustar\00000"
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def tar_record(rng: Random) -> bytes:
    """A member, of any type and with any size, and what follows it."""
    content = rng.choice(whole_cifar())
    honest = f"{len(content):011o}".encode()
    name = rng.choice((_MEMBER, _MEMBER, "../" + EXECUTED, "/" + EXECUTED, "./" + _MEMBER, "", "a" * 100)).encode()
    kind = rng.choice((b"0", b"0", b"1", b"2", b"5", b"L", b"K", b"x", b"g", b"S", b"X", b"7", b"\0", b"Z"))
    size = rng.choice((honest, honest, honest, b"00000000000", b"77777777777", b"-0000000001",
                       b"\x80" + b"\0" * 3 + b"\1" * 8,
                       b"\xff" * 12, b"\xff" * 10 + b"\xfc\x00", b"\xff" * 9 + b"\xf0\0\0", b"zzzzzzzzzzz",
                       b"\x80" * 12,
                       b""))  # fmt: skip
    if kind in b"xgX":
        records = rng.choice(("size=-1", f"size={10**13}", "path=" + _MEMBER, "path=../x", "GNU.sparse.map=0,1,x",
                              "GNU.sparse.major=1\n", f"GNU.sparse.size={10**12}", "GNU.sparse.numblocks=-1",
                              "mtime=nan",
                              "size=" + "9" * 5000, "hdrcharset=BINARY", "GNU.sparse.realsize=1e9", "=x",
                              "size=-1024"))  # fmt: skip
        line = f" {records}\n"
        prefix = rng.choice((str(len(line) + len(str(len(line) + 2))), "0", "-1", "99999", "9" * 5000, "x"))
        content = (prefix + line).encode()
        size = f"{len(content):011o}".encode() if rng.random() < 0.7 else size
    return tar_header(name, size, kind, rng.choice((b"", _MEMBER.encode(), b"/etc/passwd"))) + content + bytes(
        -len(content) % 512)  # fmt: skip


@cache
def whole_tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in (("cifar-10-batches-py/readme.html", b"x"), (_MEMBER, whole_cifar()[0])):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def hostile_archive(rng: Random) -> Case:
    share = rng.random()
    if share < 0.25:
        return damaged(rng, gzip.compress(whole_tar(), 1))
    if share < 0.4:
        done, tar = damaged(rng, whole_tar()[:9000])
        return f"tar {done}", gzip.compress(tar, 1)
    if share < 0.45:
        chain = tar_header(b"x", b"00000000001", rng.choice((b"L", b"x", b"K"))) + b"\0" * 512
        return "chain", gzip.compress(chain * 3000, 1)
    if share < 0.5:
        sparse = bytearray(tar_header(_MEMBER.encode(), b"00000000000", b"S"))
        sparse[386:410] = b"00000000000\0" * 2
        sparse[483:495] = b"\x80\0\0\0\0\0\0\x7f" + b"\0" * 4  # 545 GB, of which nothing is there
        sparse[148:156] = b" " * 8
        sparse[148:156] = f"{sum(sparse):06o}\0 ".encode()
        return "sparse", gzip.compress(bytes(sparse) + bytes(1024), 1)
    if share < 0.52:
        huge = tar_header(_MEMBER.encode(), f"{rng.choice((2**31, 2**32)):011o}".encode(), b"0")
        return "bomb", gzip.compress(huge, 1) + bomb_of_zeros()
    records = b"".join(tar_record(rng) for _ in range(rng.choice((1, 2, 4))))
    return "records", gzip.compress(records + bytes(rng.choice((0, 512, 1024))), 1)


@cache
def bomb_of_zeros() -> bytes:
    return gzip.compress(bytes(1 << 26), 1) * 32


NPZ_IMAGES, NPZ_LABELS = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3), np.array([0, 9, 4])


@cache
def npz_like() -> ImageData:
    return ImageData(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), torch.tensor([0]), 10, "like", (0.5,) * 3, (0.2,) * 3)


@cache
def whole_npz() -> tuple[bytes, ...]:
    files = []
    for save in (np.savez, np.savez_compressed):
        save(target := io.BytesIO(), image=NPZ_IMAGES, label=NPZ_LABELS, more=np.zeros(3))
        files.append(target.getvalue())
    return tuple(files)


def hostile_npz(rng: Random) -> Case:
    """Damage; headers and members under zip's checksum; sizes that are not there."""
    if rng.random() < 0.4:
        return damaged(rng, rng.choice(whole_npz()), rng.choice(whole_npz()))
    members = {"image.npy": npy_bytes(NPZ_IMAGES), "label.npy": npy_bytes(NPZ_LABELS)}
    name, array = rng.choice((("image.npy", NPZ_IMAGES), ("label.npy", NPZ_LABELS)))
    done = rng.choice(("header", "array", "member", "gone", "twice", "pickle", "bomb", "claim"))
    if done == "header":
        shape = rng.choice((array.shape, array.shape[::-1], (2**40, *array.shape[1:]), (-3,), (3.0,), (2**64,) * 3, (),
                            (True,), "x" * 9000, None, (1,) * 3000))  # fmt: skip
        descr = rng.choice(("|u1", "<i8", ">i8", "|O", "<f8", "<U9", "|V7", ("|u1", (2**30,)), [("a", "|u1")], "m8[s]",
                            array.dtype.str, array.dtype.str, "?", None, 3))  # fmt: skip
        text = repr({"descr": descr, "fortran_order": rng.choice((False, False, True, 3)), "shape": shape}).encode()
        text = rng.choice((text, text, text, b"__import__('os').system('touch executed')", b"(" * 5000, b"-" * 9000))
        size = rng.choice((len(text), len(text), len(text), 0, 2**16 - 1)) % 2**16
        members[name] = b"\x93NUMPY\x01\0" + struct.pack("<H", size) + text + array.tobytes()
    elif done == "array":
        members[name] = npy_bytes(rng.choice((
            array[:-1], array[None], array / 7, np.full(array.shape, math.nan), array.astype(np.int16), array[:0],
            np.array([2**64 - 1] * 3, np.uint64), array + 1, array.astype(np.int64) - 10, array.astype(">i4"),
            array > 3, np.array(["x"] * 3), np.uint8(3), np.asfortranarray(array),
        )))  # fmt: skip
    elif done == "member":
        members[name] = damaged(rng, members[name])[1]
    elif done == "gone":
        del members[name]
    elif done == "pickle":
        program = hostile_program(rng, EXECUTED)
        header = repr({"descr": "|O", "fortran_order": False, "shape": array.shape}).encode()
        members[name] = rng.choice((
            program, b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + program))  # fmt: skip
    elif done == "bomb":
        members[name] += bytes(1 << 21)
    target = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(target, "w", method, compresslevel=1) as archive, warnings.catch_warnings(action="ignore"):
        for member, content in members.items():
            archive.writestr(member, content)
            if done == "twice" and member == name:
                archive.writestr(member, damaged(rng, content)[1])
    content = bytearray(target.getvalue())
    if done == "claim":  # sizes in the archive's directory
        entry = content.rfind(b"PK\x01\x02", 0, content.rfind(name.encode()))
        for place in rng.choice(((20,), (24,), (20, 24), (42,))):
            struct.pack_into("<I", content, entry + place, rng.choice((0, 1, 2**20, 2**31, 3 * 10**9, 2**32 - 1)))
    return done, bytes(content)


def npy_bytes(array: Any) -> bytes:
    np.save(target := io.BytesIO(), array)
    return target.getvalue()


def read_npz(path: Path) -> ImageData:
    return load_npz(path, npz_like())


def has_whole_images(done: str, data: ImageData) -> bool:
    """What is damaged is under zip's checksum; other arrays are such images at least."""
    if data.images.shape[1:] != (3, 4, 5) or data.images.dtype != torch.uint8 or data.labels.dtype != torch.int64 or \
            len(data.images) != len(data.labels) or not ((data.labels >= 0) & (data.labels < 10)).all():  # fmt: skip
        return False
    altered_on_purpose = done in ("header", "array", "member", "twice")
    return altered_on_purpose or (
        np.array_equal(data.images.permute(0, 2, 3, 1), NPZ_IMAGES) and data.labels.tolist() == NPZ_LABELS.tolist()
    )


def hostile_matlab(rng: Random) -> Case:
    whole = rng.choice(whole_matlab())
    return damaged(rng, whole, rng.choice(whole_matlab()))


@cache
def whole_matlab() -> tuple[bytes, ...]:
    from scipy.io import savemat

    files = []
    for compressed in (False, False, True):
        target = io.BytesIO()
        images = np.arange(32 * 32 * 3 * 2).astype(np.uint8).reshape(32, 32, 3, 2)
        savemat(target, {"X": images, "y": np.array([[10], [3]], np.uint8)}, do_compression=compressed)
        files.append(target.getvalue())
    return tuple(files)


def read_matlab(path: Path) -> Any:
    return load_dataset("svhn", "test", data_dir=path.parent, verify=False)


# ---- All of them -------------------------------------------------------------------------------------------------


def whole_content(done: str, loaded: Any) -> bool:
    return done.startswith("sealed") or digest(*loaded) in whole_digests()


KINDS = {
    "checkpoint": Kind(
        "case.safetensors", lambda rng: hostile_checkpoint(rng, whole_checkpoints(), plain_checkpoint), load_checkpoint,
        whole_content,
    ),
    "model": Kind("case.safetensors", hostile_model, load_model, same_model),
    "foreign model": Kind("case.safetensors", foreign_model, load_model),
    "torch zip": Kind("case.pt", hostile_torch_zip, load_model),
    "torch legacy": Kind("case.pt", hostile_torch_legacy, load_model),
    "pickle": Kind("case.pt", hostile_pickle, load_model),
    "run": Kind("last.safetensors", lambda rng: hostile_checkpoint(rng, whole_runs(), run_parts), read_run),
    "resumed run": Kind("last.safetensors", hostile_run_state, read_run_folder,
                        lambda done, value: done != "unfit", named="|metrics.jsonl"),
    "best model": Kind("best.safetensors", hostile_best, read_run_folder),
    "logged tests": Kind("metrics.jsonl", hostile_tests, read_run_folder),
    "joint training": Kind(
        "maximizer.safetensors", lambda rng: hostile_checkpoint(rng, whole_joints(), joint_parts), read_joint
    ),
    "trainer state": Kind("case.state", hostile_state, read_state, named="|state|must|fit"),
    "outcomes": Kind("case.safetensors", lambda rng: hostile_checkpoint(rng, whole_outcomes(), outcome_parts),
    read_outcomes),
    "config": Kind("case.yaml", hostile_config, read_config),
    "metrics": Kind("metrics.jsonl", hostile_metrics, read_metrics),
    "cifar": Kind("test_batch", hostile_cifar, read_cifar, has_valid_data),
    "cifar archive": Kind("cifar-10-python.tar.gz", hostile_archive, read_cifar_archive, has_valid_data),
    "npz": Kind("case.npz", hostile_npz, read_npz, has_whole_images),
    "svhn": Kind("test_32x32.mat", hostile_matlab, read_matlab, has_valid_data),
}  # fmt: skip


class TooLong(BaseException):
    """A case took more than its time."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"more than {SECONDS_A_CASE:g} seconds")

    signal.signal(signal.SIGPROF, stop)  # of its own time: others may use the machine
    signal.setitimer(signal.ITIMER_PROF, SECONDS_A_CASE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def case_of(kind: str, index: int) -> Case:
    return KINDS[kind].make(Random(f"{kind} {index}"))


def verdict(kind: Kind, done: str, path: Path) -> str:
    """ "read" or "refused"; anything else is a finding."""
    try:
        with time_limit():
            value = kind.read(path)
    except TooLong as error:
        return f"hangs: {error}"
    except AssertionError as error:
        return f"assertion: {error}"
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, TypeError) and "state" not in kind.name:
            return f"TypeError: {error}"
        message = str(error)
        if "MemoryError" in message or "allocate memory" in message:
            return f"allocates: {message[:300]}"
        names_file = isinstance(error, OSError) and error.filename  # or another that was to be read, as by `extends`
        if not names_file and not re.search(rf"{re.escape(path.name)}{kind.named}", message):
            return f"{type(error).__name__} that names no file: {message[:300]}"
        return "refused" if len(message) < 5000 or names_file else f"message of {len(message)} characters"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "read" if kind.accepted(done, value) else "read, but holds something else than was saved"


def sweep(name: str, first: int, count: int, folder: Path) -> dict[str, Any]:
    """Reads so many cases of a kind, with little memory from here on."""
    kind, path = KINDS[name], folder / KINDS[name].name
    progress = os.open(folder / "progress", os.O_WRONLY | os.O_CREAT)
    os.chdir(folder)
    # The whole files are made, and PyTorch has started what it needs, before memory and time are short.
    path.write_bytes(case_of(name, 0)[1])
    with suppress(Exception):
        create_model(MODEL_NAME)
        kind.read(path)
    _TRAINER.clear()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    counts: Counter[str] = Counter()
    findings = []
    start = time.perf_counter()
    for index in range(first, first + count):
        os.pwrite(progress, b"%-12d" % index, 0)
        done, content = case_of(name, index)
        path.write_bytes(content)
        found = verdict(kind, done, path)
        if (folder / EXECUTED).exists():
            found = "executed"
            (folder / EXECUTED).unlink()
        counts[f"{done}: {found}" if found in ("read", "refused") else f"{done}: FINDING"] += 1
        if found not in ("read", "refused"):
            findings.append([index, done, found])
    return {"counts": counts, "findings": findings[:200], "seconds": time.perf_counter() - start}


def forked(name: str, first: int, count: int, folder: Path) -> dict[str, Any]:
    """The same in a process of its own. One that dies or does not come to its end is a finding of its last case."""
    folder.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            (folder / "result.json").write_text(json.dumps(sweep(name, first, count, folder)))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60 + count / 10
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    elif ended[1] == 0:
        return json.loads((folder / "result.json").read_text())
    progress = folder / "progress"
    last = progress.read_text().strip() if progress.exists() else "before the first"
    end = "does not end" if ended == (0, 0) else f"the process died with status {os.waitstatus_to_exitcode(ended[1])}"
    return {"counts": {}, "findings": [[last, "last of the process", end]], "seconds": 0.0}


def main(folder: Path) -> None:
    """Sweeps what stdin has, a JSON list of [kind, first, count], and prints as many results, a line each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    jobs = json.load(sys.stdin)
    for number, job in enumerate(jobs):
        print(json.dumps(forked(*job, folder / str(number))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
