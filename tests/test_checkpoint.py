"""Checkpoints: what is saved comes back, damage is an error, and a killed writer harms nothing."""

import json
import math
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import adt_fast._support.atomic_file
from adt_fast._support.atomic_file import atomic_file
from adt_fast.checkpoint import (
    FORMAT_VERSION,
    CheckpointError,
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_model,
)
from adt_fast.models import create_model

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
TENSORS = {
    "layer.weight": torch.arange(12.0).reshape(3, 4) / 7,
    "count": torch.tensor(41),
    "empty": torch.empty(0, 3),
    "half": torch.tensor([1.5, -0.0, math.inf], dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
}
METADATA = {"step": 12, "noise": {"seed": 2**63 - 1, "offset": 0}, "name": "naïve €", "list": [1e-300, None, True]}


def assert_equal(loaded, saved):
    """The same names, dtypes, shapes and bits."""
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert loaded[name].is_contiguous()
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (loaded[name], tensor.detach().cpu())]
        assert torch.equal(*bits), name


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "model.safetensors"


# --- round trips ---


def test_what_is_saved_comes_back(path):
    save_checkpoint(path, TENSORS, METADATA)
    tensors, metadata = load_checkpoint(path)
    assert_equal(tensors, TENSORS)
    assert metadata == METADATA
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]
    tensors["layer.weight"].add_(1)  # theirs to change


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (2, 3, 5)], ids=str)
def test_every_dtype_and_shape(path, dtype, shape):
    saved = {"t": torch.randint(0, 2, shape).to(dtype) if dtype == torch.bool else (torch.randn(shape) * 50).to(dtype)}
    save_checkpoint(path, saved, {})
    assert_equal(load_checkpoint(path)[0], saved)


def test_strided_shared_and_tracked_tensors(path):
    base = torch.randn(2, 3, 4, 5, requires_grad=True)
    saved = {
        "base": base,
        "same": base,
        "view": base[0],
        "transposed": base.transpose(1, 3),
        "every other": base.detach()[..., ::2],
        "expanded": torch.ones(1).expand(4, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "lazily negated": torch.randn(3, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    save_checkpoint(path, saved, {})
    loaded, _ = load_checkpoint(path)
    assert_equal(loaded, saved)
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == len(saved)
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_metadata_comes_back_as_json_has_it(path):
    unchanged = {"inf": -math.inf, "empty": {}, "big": 2**80, "": ""}
    save_checkpoint(path, {}, {**unchanged, "tuple": (1, (2.5, "x")), "nan": math.nan, "numpy": np.float64(0.1)})
    tensors, loaded = load_checkpoint(path)
    assert tensors == {} and math.isnan(loaded.pop("nan"))
    assert loaded == {**unchanged, "tuple": [1, [2.5, "x"]], "numpy": 0.1}


def test_a_file_is_a_function_of_its_contents_and_ordinary_safetensors(tmp_path):
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, TENSORS, METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert_equal(safetensors.torch.load_file(tmp_path / "a"), TENSORS)


@pytest.mark.cuda
def test_tensors_on_a_gpu_are_saved(path):
    save_checkpoint(path, {name: tensor.cuda() for name, tensor in TENSORS.items()}, METADATA)
    assert_equal(load_checkpoint(path)[0], TENSORS)


# --- models ---

MODEL_KWARGS = {"num_classes": 7, "in_channels": 1, "mean": (0.3,), "std": (0.4,)}


@pytest.mark.parametrize("name", ["small-cnn", "wrn-10-1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_model_comes_back(path, name, dtype):
    model = create_model(name, **MODEL_KWARGS).to(dtype).to(memory_format=torch.channels_last)
    for buffer in model.buffers():
        buffer.add_(1)
    save_model(path, model, model_name=name, model_kwargs=MODEL_KWARGS, extra={"accuracy": 0.5})
    loaded, metadata = load_model(path)
    assert_equal(loaded.state_dict(), {name: t.contiguous() for name, t in model.state_dict().items()})
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.rand(2, 1, 8, 8, dtype=dtype)
    torch.testing.assert_close(loaded(images), model.eval()(images))
    assert metadata["extra"] == {"accuracy": 0.5} and metadata["model_name"] == name
    assert metadata["model_kwargs"] == {"num_classes": 7, "in_channels": 1, "mean": [0.3], "std": [0.4]}


def test_saving_and_loading_leave_the_random_state_alone(path):
    model = create_model("small-cnn")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    save_model(path, model, model_name="small-cnn")
    load_model(path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("small-cnn", MODEL_KWARGS | {"num_classes": 9}, ValueError, "2 entries .* the first is 'fc.bias'"),
        ("small-cnn", {"num_classes": 7, "in_channels": 1}, ValueError, "2 entries .* the first is 'normalize.mean'"),
        ("wrn-10-1", MODEL_KWARGS, ValueError, "model is not what"),
        ("smallcnn", MODEL_KWARGS, ValueError, "unknown model"),
        ("small-cnn", MODEL_KWARGS | {"depth": 3}, TypeError, "depth"),
        ("small-cnn", MODEL_KWARGS | {"mean": torch.tensor([0.3])}, TypeError, r"metadata\['model_kwargs'\]\['mean'\]"),
    ],
)
def test_arguments_that_do_not_make_the_model_are_refused(path, name, kwargs, error, message):
    model = create_model("small-cnn", **MODEL_KWARGS)
    save_model(path, model, model_name="small-cnn", model_kwargs=MODEL_KWARGS)
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        save_model(path, model, model_name=name, model_kwargs=kwargs)
    assert path.read_bytes() == before


def test_a_wrapped_model_is_refused(path):
    wrapped = torch.nn.Sequential(create_model("small-cnn"))
    with pytest.raises(ValueError, match="without wrappers"):
        save_model(path, wrapped, model_name="small-cnn")
    assert not path.exists()


def test_checkpoints_that_are_no_model(path):
    save_checkpoint(path, TENSORS, METADATA)
    with pytest.raises(CheckpointError, match=r"not of a model alone: read it with load_checkpoint"):
        load_model(path)
    state = create_model("small-cnn").state_dict()
    kwargs = {"model_name": "small-cnn", "model_kwargs": {}, "extra": {}}
    for tensors, metadata in [
        (TENSORS, kwargs),
        (dict(list(state.items())[:-1]), kwargs),
        (state | {"more": torch.zeros(1)}, kwargs),
        (state, kwargs | {"model_kwargs": {"num_classes": 3}}),
        (state, kwargs | {"model_kwargs": {"unheard": 3}}),
        (state, kwargs | {"model_kwargs": 3}),
        (state, kwargs | {"model_name": "of-the-future"}),
        (state, kwargs | {"model_name": 3}),
    ]:
        save_checkpoint(path, tensors, metadata)
        with pytest.raises(CheckpointError, match=r"model\.safetensors holds a model that this version cannot build"):
            load_model(path)


# --- bad arguments ---


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"a": [1.0]}, {}, TypeError, r"tensors\['a'\] must be a torch.Tensor, got list"),
        ({1: torch.zeros(1)}, {}, TypeError, "tensors must have str names, got 1"),
        ({"__metadata__": torch.zeros(1)}, {}, ValueError, "__metadata__"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, {}, TypeError, r"tensors\['a'\] .*complex64"),
        ({"a": torch.zeros(2, 2).to_sparse()}, {}, TypeError, r"tensors\['a'\] .*sparse"),
        ({"a": torch.zeros(2, device="meta")}, {}, TypeError, r"tensors\['a'\] .*on meta"),
        ({}, [1], TypeError, "metadata must be a dict, got list"),
        ({}, {"a": {1: 2}}, TypeError, r"metadata\['a'\] must have str keys, got 1"),
        ({}, {"a": [0, torch.zeros(1)]}, TypeError, r"metadata\['a'\]\[1\] must be .* got Tensor"),
        ({}, {"a": np.float32(1)}, TypeError, r"metadata\['a'\] must be .* got float32"),
        ({}, {"a": {1, 2}}, TypeError, r"metadata\['a'\] must be .* got set"),
        ({}, {"a": Path("x")}, TypeError, r"metadata\['a'\]"),
        ({}, {"a": b"x"}, TypeError, r"metadata\['a'\]"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(path, tensors, metadata, error, message):
    with pytest.raises(error, match=message):
        save_checkpoint(path, tensors, metadata)
    assert not path.parent.exists()


# --- damaged and foreign files ---


def test_a_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_checkpoint(path)


def test_every_flipped_bit_of_a_small_file_is_found(path):
    tensors, metadata = {"w": torch.tensor([1.0, -2.0]), "n": torch.tensor(3)}, {"epoch": 1, "loss": 0.25}
    save_checkpoint(path, tensors, metadata)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_checkpoint(path)


def test_every_truncation_is_found(path):
    save_checkpoint(path, TENSORS, METADATA)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_random_damage_never_crashes_nor_changes_what_is_read(path):
    save_checkpoint(path, TENSORS, METADATA)
    whole = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 20)):
            at = generator.randrange(len(damaged))
            match generator.randrange(3):
                case 0:
                    damaged[at] = generator.randrange(256)
                case 1:
                    del damaged[at : at + generator.randint(1, 50)]
                case 2:
                    damaged[at:at] = generator.randbytes(generator.randint(1, 50))
            if not damaged:
                break
        path.write_bytes(damaged)
        try:
            tensors, metadata = load_checkpoint(path)
            assert_equal(tensors, TENSORS)
            assert metadata == METADATA
        except CheckpointError:
            refused += 1
    assert refused > 950


@pytest.mark.parametrize(
    ("original", "altered"),
    [
        (b'"layer.weight":{"dtype":"F32"', b'"layer.weight":{"dtype":"I32"'),
        (b'"shape":[3,4]', b'"shape":[4,3]'),
        (b'"mask"', b'"task"'),
    ],
)
def test_a_header_that_tells_another_tale_is_found(path, original, altered):
    """Well-formed files with the same bytes of data, under another dtype, shape or name."""
    save_checkpoint(path, TENSORS, METADATA)
    whole = path.read_bytes()
    assert whole.count(original) == 1
    path.write_bytes(whole.replace(original, altered))
    assert len(safetensors.torch.load_file(path)) == len(TENSORS)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


def with_entry(path, entry):
    """A well-formed safetensors file with this text in place of our entry."""
    content = safetensors.torch.save({"w": torch.zeros(2)}, {"adt_fast": entry})
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "x",
        "[]",
        "3",
        '"x"',
        "{}",
        '{"metadata": {}}',
        "[" * 100_000,
        '{"format_version": null}',
        json.dumps({"format_version": FORMAT_VERSION}),
        json.dumps({"format_version": FORMAT_VERSION, "metadata": {}}),
        json.dumps({"format_version": FORMAT_VERSION, "metadata": 3, "sha256": "0" * 64}),
        json.dumps({"format_version": FORMAT_VERSION, "metadata": {}, "sha256": ["0" * 64]}),
    ],
)
def test_strange_entries_are_errors(path, entry):
    with_entry(path, entry)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(path)


def test_a_newer_format_says_so(path):
    with_entry(path, json.dumps({"format_version": FORMAT_VERSION + 1, "metadata": {}, "sha256": ""}))
    with pytest.raises(CheckpointError, match=rf"version {FORMAT_VERSION + 1}, .* reads {FORMAT_VERSION}.*newer"):
        load_checkpoint(path)


class Executes:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_pickles_are_refused_and_not_executed(path):
    path.parent.mkdir()
    marker = path.parent / "executed"
    for save in (torch.save, lambda obj, file: torch.save(obj, file, _use_new_zipfile_serialization=False)):
        save({"w": torch.zeros(2), "x": Executes(marker)}, path)
        with pytest.raises(CheckpointError, match=r"torch\.save or pickle.*weights_only=True"):
            load_checkpoint(path)
    path.write_bytes(pickle.dumps(Executes(marker)))
    with pytest.raises(CheckpointError, match="pickle"):
        load_checkpoint(path)
    assert not marker.exists()


def test_foreign_safetensors_are_named(path):
    path.parent.mkdir()
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata)
        with pytest.raises(CheckpointError, match=r"adt_fast did not write.*safetensors\.torch\.load_file"):
            load_checkpoint(path)


# --- atomic files ---


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    save_checkpoint(path, TENSORS, METADATA)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(adt_fast._support.atomic_file.os, function, lambda *arguments: full(0))
            save_checkpoint(path, {"other": torch.zeros(9)}, {})
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
        assert path.read_bytes() == before


def test_an_interrupted_write_leaves_the_old_file(path):
    for before in (None, b"old"):
        if before:
            path.write_bytes(before)
        with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt
        assert [entry.read_bytes() for entry in path.parent.iterdir()] == [before] * bool(before)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to tell files from folders")
def test_the_file_is_on_disk_before_it_takes_the_name(path, monkeypatch):
    """The order that survives a power cut: contents synced, name replaced, folder synced."""
    calls = []
    original = {name: getattr(os, name) for name in ("fsync", "replace")}

    def fsync(descriptor):
        calls.append("fsync " + ("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"))
        original["fsync"](descriptor)

    def replace(source, target):
        calls.append("replace")
        assert Path(source).read_bytes() == b"new" and Path(source).parent == path.parent
        original["replace"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic_file(path) as file:
        file.write(b"new")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_permissions_are_those_of_an_ordinary_file(path):
    path.parent.mkdir()
    (path.parent / "ordinary").write_bytes(b"")
    save_checkpoint(path, {}, {})
    assert path.stat().st_mode == (path.parent / "ordinary").stat().st_mode


def test_only_what_killed_writers_left_of_this_file_is_removed(path):
    path.parent.mkdir()
    hours_ago = time.time() - 7200
    for name in (".model.safetensors.0f.tmp", ".other.0f.tmp", "model.safetensors.0f.tmp", ".model.safetensors.bak"):
        (path.parent / name).write_bytes(b"")
        os.utime(path.parent / name, (hours_ago, hours_ago))
    (path.parent / ".model.safetensors.1f.tmp").write_bytes(b"a living writer's")
    with atomic_file(path) as file:
        file.write(b"new")
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        ".model.safetensors.1f.tmp", ".model.safetensors.bak", ".other.0f.tmp", "model.safetensors",
        "model.safetensors.0f.tmp",
    ]  # fmt: skip


WRITER = """
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
for number in itertools.count():
    with atomic.atomic_file(sys.argv[2]) as file:
        for _ in range(64):
            file.write(number.to_bytes(8, "little") * 4096)
    if number == 0:
        print(flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(path):
    """SIGKILL at 20 random moments of a process that does nothing but save."""
    generator = random.Random(0)
    in_mid_save = 0
    for _ in range(20):
        arguments = [sys.executable, "-c", WRITER, adt_fast._support.atomic_file.__file__, str(path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(generator.random() * 0.05)
            writer.kill()
        content = path.read_bytes()
        assert len(content) == 64 * 4096 * 8
        assert content == content[:8] * (64 * 4096)
        leftovers = list(path.parent.glob(".*.tmp"))
        in_mid_save += bool(leftovers)
        for leftover in leftovers:
            leftover.unlink()
    assert in_mid_save >= 5
