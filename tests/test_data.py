"""Data sets in their published files, hostile and damaged files, downloads, and the batch loader."""

import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import os
import pickle
import random
import struct
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from adt_fast.data import (
    BatchLoader,
    DataError,
    ImageData,
    augment,
    channel_statistics,
    cifar,
    dataset_names,
    download,
    load_dataset,
    svhn,
)
from adt_fast.data.restricted_pickle import load_dict

REAL_DATA = Path(os.environ.get("ADT_FAST_DATA") or Path(__file__).parents[2] / "shared" / "data")
needs_real_cifar10 = pytest.mark.skipif(
    not (REAL_DATA / "cifar-10-batches-py").is_dir(),
    reason=f"CIFAR-10 is not in {REAL_DATA}; name its folder in the environment variable ADT_FAST_DATA",
)


# --- files in the published layout, made here ---


def python2_pickle(entries):
    """As Python 2 and NumPy 1 wrote it: a dict of names and lists of ints or uint8 matrices, with strings of bytes."""

    def string(value):
        return b"T" + struct.pack("<I", len(value)) + value

    def integer(value):
        return b"J" + struct.pack("<i", value)

    def matrix(array):
        shape = b"(" + b"".join(map(integer, array.shape)) + b"t"
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        empty += integer(0) + b"\x85" + string(b"b") + b"tR"
        dtype = b"cnumpy\ndtype\n(" + string(b"u1") + integer(0) + integer(1) + b"tR"
        dtype += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
        return empty + b"(" + integer(1) + shape + dtype + b"\x89" + string(array.tobytes()) + b"tb"

    def value(content):
        return matrix(content) if isinstance(content, np.ndarray) else b"](" + b"".join(map(integer, content)) + b"e"

    return b"\x80\x02}(" + b"".join(string(name.encode()) + value(item) for name, item in entries.items()) + b"u."


def python3_pickle(entries):
    return pickle.dumps(entries, protocol=2)


def random_batch(count, num_classes, seed):
    generator = np.random.RandomState(seed)
    return generator.randint(0, 256, (count, 3072)).astype(np.uint8), generator.randint(0, num_classes, count).tolist()


def write_cifar10(folder, to_pickle=python2_pickle, batches=5, count=6):
    """Six files of `count` images each; the (images [N, 3072], labels) of each split."""
    folder.mkdir(parents=True)
    splits = {"train": [], "test": []}
    for index in range(batches + 1):
        images, labels = random_batch(count, 10, seed=index)
        name, split = (f"data_batch_{index + 1}", "train") if index < batches else ("test_batch", "test")
        (folder / name).write_bytes(to_pickle({"data": images, "labels": labels}))
        splits[split].append((images, labels))
    return {split: joined(batches) for split, batches in splits.items()}


def joined(batches):
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), list(itertools.chain(*labels))


def write_archive(path, folder, reverse=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(folder.iterdir(), reverse=reverse):
            tar.add(file, arcname=f"{folder.name}/{file.name}")


def assert_holds(data, images, labels):
    assert data.images.dtype == torch.uint8 and data.labels.dtype == torch.int64
    assert data.images.is_contiguous()
    # Pixel (channel c, row i, column j) is element 1024 c + 32 i + j of the published row.
    for n, c, i, j in [(0, 0, 0, 0), (len(images) // 2, 2, 3, 4), (len(images) - 1, 1, 31, 30)]:
        assert data.images[n, c, i, j] == images[n, 1024 * c + 32 * i + j]
    assert np.array_equal(data.images.reshape(len(images), -1).numpy(), images)
    assert data.labels.tolist() == labels


# --- CIFAR ---


@needs_real_cifar10
@pytest.mark.parametrize(
    ("split", "count", "files"),
    [
        ("train", 50000, [f"data_batch_{i}" for i in range(1, 6)]),
        ("test", 10000, ["test_batch"]),
    ],
)
def test_real_cifar10(split, count, files):
    data = load_dataset("cifar10", split, data_dir=REAL_DATA)  # the md5 of every file is checked on the way
    assert data.images.shape == (count, 3, 32, 32) and data.num_classes == 10 and data.name == "cifar10"
    assert torch.bincount(data.labels).tolist() == [count // 10] * 10
    contents = [(REAL_DATA / "cifar-10-batches-py" / file).read_bytes() for file in files]
    published = [pickle.loads(content, encoding="latin1") for content in contents]
    assert_holds(data, *joined((batch["data"], batch["labels"]) for batch in published))
    if split == "train":
        intensities = data.images.double() / 255
        assert intensities.mean((0, 2, 3)).tolist() == pytest.approx(data.mean, abs=5e-5)
        assert intensities.std((0, 2, 3)).tolist() == pytest.approx(data.std, abs=5e-5)


@pytest.mark.parametrize("to_pickle", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_cifar10_folder(tmp_path, to_pickle, place):
    expected = write_cifar10(tmp_path / place, to_pickle)
    for split in ("train", "test"):
        assert_holds(load_dataset("cifar10", split, data_dir=tmp_path, verify=False), *expected[split])
        assert_holds(load_dataset("cifar10", split, data_dir=tmp_path / place, verify=False), *expected[split])


@pytest.mark.parametrize("place", [".", "cifar10"])
@pytest.mark.parametrize("reverse", [False, True])
def test_cifar10_archive(tmp_path, place, reverse):
    expected = write_cifar10(tmp_path / "made" / "cifar-10-batches-py")
    write_archive(tmp_path / place / "cifar-10-python.tar.gz", tmp_path / "made" / "cifar-10-batches-py", reverse)
    for split in ("train", "test"):
        assert_holds(load_dataset("cifar10", split, data_dir=tmp_path, verify=False), *expected[split])


@pytest.mark.parametrize("to_pickle", [python2_pickle, python3_pickle])
def test_cifar100_has_fine_labels(tmp_path, to_pickle):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        images, labels = random_batch(20, 100, seed)
        coarse = [label // 5 for label in labels]
        (folder / split).write_bytes(to_pickle({"data": images, "fine_labels": labels, "coarse_labels": coarse}))
        data = load_dataset("cifar100", split, data_dir=tmp_path, verify=False)
        assert_holds(data, images, labels)
        assert data.num_classes == 100


def test_the_environment_names_the_default_folder(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "data" / "cifar-10-batches-py")
    monkeypatch.setenv("ADT_FAST_DATA", str(tmp_path / "data"))
    assert len(load_dataset("cifar10", "test", verify=False)) == 6
    monkeypatch.delenv("ADT_FAST_DATA")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("cifar10", "test", verify=False)) == 6


def test_limit(tmp_path):
    images, labels = write_cifar10(tmp_path / "cifar-10-batches-py")["train"]
    for limit, count in ((1, 1), (7, 7), (30, 30), (31, 30), (None, 30)):
        data = load_dataset("cifar10", "train", data_dir=tmp_path, limit=limit, verify=False)
        assert_holds(data, images[:count], labels[:count])


def test_files_that_were_not_published_are_refused(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataError, match=r"data_batch_1 is not the published file \(md5 .*c99cafc152244af753f735de"):
        load_dataset("cifar10", "train", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_missing_files(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name} is not in {tmp_path}.*download=True"):
        load_dataset(name, "train", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_folder_or_archive(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete, it lacks data_batch_3"):
        load_dataset("cifar10", "train", data_dir=tmp_path, verify=False)
    write_archive(tmp_path / "other" / "cifar-10-python.tar.gz", folder)
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz is incomplete, it lacks .*data_batch_3"):
        load_dataset("cifar10", "train", data_dir=tmp_path / "other", verify=False)


def test_a_damaged_archive(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    archive = tmp_path / "other" / "cifar-10-python.tar.gz"
    write_archive(archive, tmp_path / "cifar-10-batches-py")
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged, or no archive"):
            load_dataset("cifar10", "train", data_dir=tmp_path / "other", verify=False)


GOOD_IMAGES, GOOD_LABELS = random_batch(6, 10, seed=9)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": GOOD_LABELS}, "'data' must be a uint8 array .* got NoneType"),
        ({"data": [1, 2], "labels": GOOD_LABELS}, "'data' must be .* got list"),
        ({"data": GOOD_IMAGES[:, :-1], "labels": GOOD_LABELS}, r"'data' must be .* got uint8 \(6, 3071\)"),
        ({"data": GOOD_IMAGES.astype(np.float32), "labels": GOOD_LABELS}, "'data' must be .* got float32"),
        ({"data": GOOD_IMAGES.reshape(6, 3, 32, 32), "labels": GOOD_LABELS}, "'data' must be .* got uint8"),
        ({"data": GOOD_IMAGES}, "'labels' must be a list of 6 labels, got NoneType"),
        ({"data": GOOD_IMAGES, "labels": GOOD_LABELS[:-1]}, "'labels' must be a list of 6 labels, got 5"),
        ({"data": GOOD_IMAGES, "labels": [*GOOD_LABELS[:-1], 10]}, "'labels' must be ints from 0 to 9"),
        ({"data": GOOD_IMAGES, "labels": [*GOOD_LABELS[:-1], -1]}, "'labels' must be ints from 0 to 9"),
        ({"data": GOOD_IMAGES, "labels": [*GOOD_LABELS[:-1], True]}, "'labels' must be ints from 0 to 9"),
        ({"data": GOOD_IMAGES, "labels": [*GOOD_LABELS[:-1], 1.0]}, "'labels' must be ints from 0 to 9"),
        ([1, 2, 3], "holds a list, not a dict"),
    ],
)
def test_contents_that_are_not_cifar10(tmp_path, entries, message):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(python3_pickle(entries))
    with pytest.raises(DataError, match=f"test_batch:? {message}"):
        load_dataset("cifar10", "test", data_dir=tmp_path, verify=False)


def test_truncated_files(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py", count=1)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = file.read_bytes()
    for length in [0, 1, 2, 3, *range(10, len(whole), 101), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match="test_batch is damaged, or no pickle"):
            load_dataset("cifar10", "test", data_dir=tmp_path, verify=False)


# --- pickles ---


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_pickles(marker):
    write = f"open({str(marker)!r}, 'w')"
    touch = f"touch {marker}"
    for function, argument in ((os.system, touch), (eval, write), (exec, write), (os.mkdir, str(marker))):
        for protocol in range(5):
            yield pickle.dumps({"data": Calls(function, argument), "labels": []}, protocol=protocol)
    yield b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR."
    yield b"(S'" + touch.encode() + b"'\nios\nsystem\n."
    yield b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch.encode() + b"\x85R."
    yield b"cnumpy\nload\n."
    yield b"cnumpy.core.multiarray\n__dict__\n."
    yield b"cnumpy\ndtype.__class__\n."
    yield b"Pwhatever\n."

    # The names that are admitted, used for what they are not for; inside a dict, which by itself is read.
    def in_dict(fragment):
        return b"\x80\x02}X\x01\x00\x00\x00a" + fragment + b"s."

    for dtype in ("O", "V8", "S8", "M8[s]", "U4", "u1,O", "f16"):
        yield in_dict(b"cnumpy\ndtype\n(U" + bytes([len(dtype)]) + dtype.encode() + b"K\x00K\x01tR")
    yield in_dict(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zlibtR")
    for name in (b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"):
        yield in_dict(name + b"(N}X\x08\x00\x00\x00__init__Nstb")  # a state for the class itself
    # Bombs: a key nested so deep that hashing it overflows the stack; a memo of 32 GiB; 4 GiB announced, not there.
    yield b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
    yield b"\x80\x02}r\xff\xff\xff\xff."
    yield b"\x80\x02B\xff\xff\xff\xff."


def test_hostile_pickles_execute_nothing(tmp_path):
    marker = tmp_path / "executed"
    refused = 0
    for content in hostile_pickles(marker):
        with pytest.raises(pickle.UnpicklingError):
            load_dict(content)
        refused += 1
    assert refused > 30 and not marker.exists()
    # The same stand-ins still read what they should.
    assert load_dict(python2_pickle({"data": GOOD_IMAGES}))["data"].tolist() == GOOD_IMAGES.tolist()


def test_a_hostile_file_is_named(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    marker = tmp_path / "executed"
    hostile = pickle.dumps({"data": Calls(os.system, f"touch {marker}")})
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(hostile)
    with pytest.raises(DataError, match=r"test_batch asks for posix.system, which arrays and lists do not need"):
        load_dataset("cifar10", "test", data_dir=tmp_path, verify=False)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_altered_pickles_never_crash():
    generator = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for original in (python2_pickle({"data": GOOD_IMAGES[:1], "labels": [1]}), python3_pickle({"data": np.arange(9)})):
        for _ in range(1500):
            altered = bytearray(original)
            for _ in range(generator.randint(1, 8)):
                altered[generator.randrange(min(len(altered), 300))] = generator.randrange(256)
            try:
                assert isinstance(load_dict(bytes(altered)), dict)
                outcomes["read"] += 1
            except pickle.UnpicklingError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 2000 and outcomes["read"] > 10


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_and_plain_values_are_read(protocol):
    entries = {
        "matrix": np.arange(12.0).reshape(3, 4),
        "columns": np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
        "big endian": np.array([1, 2, 70000], dtype=">i4"),
        "truth": np.array([True, False]),
        "number": np.array(3, dtype=np.uint64),
        "plain": [1, -2.5, None, True, [10**30]],
    }
    read = load_dict(pickle.dumps(entries, protocol=protocol))
    assert read.keys() == entries.keys() and read.pop("plain") == entries.pop("plain")
    for name, array in entries.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array)


# --- SVHN ---


def write_svhn(folder, split="train", **changes):
    scipy_io = pytest.importorskip("scipy.io")
    generator = np.random.RandomState(0)
    images = generator.randint(0, 256, (32, 32, 3, 12)).astype(np.uint8)
    labels = (np.arange(12) % 10 + 1).astype(np.uint8).reshape(12, 1)
    folder.mkdir(parents=True, exist_ok=True)
    matrices = {name: matrix for name, matrix in ({"X": images, "y": labels} | changes).items() if matrix is not None}
    scipy_io.savemat(folder / f"{split}_32x32.mat", matrices, do_compression=True)
    return images, labels


@pytest.mark.parametrize("place", [".", "svhn"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_svhn(tmp_path, place, split):
    images, _ = write_svhn(tmp_path / place, split)
    data = load_dataset("svhn", split, data_dir=tmp_path, verify=False)
    assert data.images.shape == (12, 3, 32, 32) and data.images.is_contiguous() and data.num_classes == 10
    assert data.images[5, 2, 7, 9] == images[7, 9, 2, 5]
    assert data.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    with pytest.raises(DataError, match=r"_32x32\.mat is not the published file"):
        load_dataset("svhn", split, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, "X must be .* got NoneType"),
        ({"X": np.zeros((32, 32, 3, 12))}, r"X must be .* got float64"),
        ({"X": np.zeros((12, 3, 32, 32), np.uint8)}, r"X must be .* got uint8 \[12, 3, 32, 32\]"),
        ({"y": None}, "y must be .* got NoneType"),
        ({"y": np.ones((11, 1), np.uint8)}, r"y must be a matrix of numbers \[12, 1\], got uint8 \[11, 1\]"),
        ({"y": np.zeros((12, 1), np.uint8)}, "y must be whole numbers from 1 to 10"),
        ({"y": np.full((12, 1), 11, np.uint8)}, "y must be whole numbers from 1 to 10"),
        ({"y": np.full((12, 1), 1.5)}, "y must be whole numbers from 1 to 10"),
        ({"y": np.full((12, 1), np.nan)}, "y must be whole numbers from 1 to 10"),
    ],
)
def test_contents_that_are_not_svhn(tmp_path, changes, message):
    write_svhn(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"train_32x32\.mat: {message}"):
        load_dataset("svhn", "train", data_dir=tmp_path, verify=False)


def test_damaged_svhn(tmp_path):
    write_svhn(tmp_path)
    file = tmp_path / "train_32x32.mat"
    whole = file.read_bytes()
    for content in (b"", b"no matrices", whole[:100], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train_32x32\.mat"):
            load_dataset("svhn", "train", data_dir=tmp_path, verify=False)


def test_svhn_without_scipy_says_what_to_install(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'adt_fast\[svhn\]'"):
        load_dataset("svhn", "train", data_dir=tmp_path, verify=False)


# --- digits ---


def test_digits():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    published, published_labels = sklearn_datasets.load_digits(return_X_y=True)
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    assert train.images.max() == 255 and train.images.min() == 0 and train.num_classes == 10

    # Undoing the scaling gives each published image once, in one of the two splits, with its label.
    def rows(images, labels):
        return sorted(map(tuple, np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1).tolist()))

    images = torch.cat([train.images, test.images]).double() * (16 / 255)
    labels = torch.cat([train.labels, test.labels])
    assert rows(images.round().long().numpy(), labels.numpy()) == rows(published.astype(int), published_labels)
    assert (images - images.round()).abs().max() < 0.04

    # Stratified; in an order in which the first images have all classes; with the constants of the training split.
    per_class = torch.bincount(labels) / 5
    assert (torch.bincount(test.labels) - per_class).abs().max() <= 1
    assert len(set(train.subset(60).labels.tolist())) == 10
    intensities = train.images.double() / 255
    assert intensities.mean().item() == pytest.approx(train.mean[0], abs=5e-5)
    assert intensities.std().item() == pytest.approx(train.std[0], abs=5e-5)
    # The split is the same everywhere and always, so that results can be compared.
    assert hashlib.sha256(test.labels.numpy().astype(np.uint8).tobytes()).hexdigest()[:16] == "9e1372e954c5ebc4"


def test_digits_without_sklearn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'adt_fast\[demo\]'"):
        load_dataset("digits", "train")


# --- arguments ---


def test_names():
    assert dataset_names() == ("digits", "cifar10", "cifar100", "svhn")


@pytest.mark.parametrize(
    ("name", "split", "error", "message"),
    [
        ("cifar-10", "train", ValueError, "unknown dataset 'cifar-10'; did you mean 'cifar10'"),
        ("CIFAR100", "train", ValueError, "unknown dataset 'CIFAR100'; did you mean 'cifar100'"),
        ("digits", "validation", ValueError, "unknown split 'validation'"),
        ("digits", "Train", ValueError, "unknown split 'Train'; did you mean 'train'"),
        (10, "train", TypeError, "name"),
        ("digits", None, TypeError, "split"),
    ],
)
def test_bad_names(name, split, error, message):
    with pytest.raises(error, match=message):
        load_dataset(name, split)


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-5, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_bad_limit_is_refused_before_anything_is_read(limit, error):
    for name in dataset_names():
        with pytest.raises(error, match="limit"):
            load_dataset(name, "train", limit=limit)


def some_data(count=10, channels=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.arange(count) % 10, 10, "some", (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(10, 3, 8, 8)}, TypeError, "images must be a torch.uint8"),
        ({"images": np.zeros((10, 3, 8, 8), np.uint8)}, TypeError, "images must be a torch.uint8 tensor, got ndarray"),
        ({"images": torch.zeros(10, 8, 8, dtype=torch.uint8)}, ValueError, "images must have 4 dimensions"),
        ({"images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, ValueError, "images must not be empty"),
        ({"labels": torch.zeros(10, dtype=torch.int32)}, TypeError, "labels must be a torch.int64"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, ValueError, "labels must be one per image, got 9 for 10"),
        ({"labels": torch.full((10,), 10)}, ValueError, r"labels must be in 0..9, got 10..10"),
        ({"labels": torch.full((10,), -1)}, ValueError, r"labels must be in 0..9, got -1..-1"),
        ({"mean": (0.5,)}, ValueError, r"mean must have one number per channel \(3\), got 1"),
        ({"std": (0.5,) * 4}, ValueError, r"std must have one number per channel \(3\), got 4"),
    ],
)
def test_image_data_refuses_what_does_not_fit(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(some_data(), **changes)


def test_channel_statistics_are_those_of_float64(device):
    generator = torch.Generator().manual_seed(0)
    images = (256 * torch.rand(9, 3, 5, 4, generator=generator) ** torch.tensor([1, 2, 5]).view(-1, 1, 1)).byte()
    images = images.contiguous(memory_format=torch.channels_last).to(device)
    intensities = images.cpu().numpy().astype(np.float64) / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(intensities.mean((0, 2, 3)).tolist(), rel=1e-14)
    assert std == pytest.approx(intensities.std((0, 2, 3)).tolist(), rel=1e-14)


@pytest.mark.parametrize(
    ("images", "error"), [(torch.rand(2, 3, 4, 4), TypeError), (torch.zeros(3, 4, 4, dtype=torch.uint8), ValueError),
                          (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), ValueError)],
)  # fmt: skip
def test_channel_statistics_are_of_8_bit_images(images, error):
    with pytest.raises(error, match="images must"):
        channel_statistics(images)


# --- downloads ---


@contextlib.contextmanager
def server(content, announced=None):
    """Serves `content` over HTTP at every path but /missing, and announces `announced` bytes; the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if announced is None else announced))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


CONTENT = bytes(range(256)) * 12_000  # three chunks
MD5 = hashlib.md5(CONTENT).hexdigest()


def test_download(tmp_path, capsys):
    with server(CONTENT) as address:
        download.download_file(address + "file", tmp_path / "new" / "file", MD5)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "announced", "path", "error", "message"),
    [
        (CONTENT[:-1], None, "file", DataError, "cut short or altered"),
        (CONTENT[:-1], len(CONTENT), "file", DataError, "cut short or altered"),
        (CONTENT[:-1] + b"x", None, "file", DataError, f"published is {MD5}"),
        (b"", None, "file", DataError, "cut short or altered"),
        (CONTENT, None, "missing", ConnectionError, "404"),
    ],
)
def test_a_failed_download_leaves_everything_as_it_was(tmp_path, content, announced, path, error, message):
    file = tmp_path / "file"
    for before in (None, b"before"):
        if before:
            file.write_bytes(before)
        with server(content, announced) as address, pytest.raises(error, match=message):
            download.download_file(address + path, file, MD5)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [before] * bool(before)


def test_no_server_is_an_error_that_says_what_to_do(tmp_path):
    with server(CONTENT) as address:
        pass
    with pytest.raises(ConnectionError, match=f"cannot download {address}file .*save it as .*cifar"):
        download.download_file(address + "file", tmp_path / "cifar", MD5)


def test_cifar10_is_downloaded_once_and_only_when_asked(tmp_path, monkeypatch):
    expected = write_cifar10(tmp_path / "made" / "cifar-10-batches-py")["test"]
    write_archive(tmp_path / "archive", tmp_path / "made" / "cifar-10-batches-py")
    content = (tmp_path / "archive").read_bytes()
    published = dataclasses.replace(cifar._CIFAR10, archive_md5=hashlib.md5(content).hexdigest())
    monkeypatch.setattr(cifar, "_CIFAR10", published)
    data_dir = tmp_path / "data"
    with server(content) as address:
        monkeypatch.setattr(cifar, "_SITE", address)
        with pytest.raises(FileNotFoundError):
            load_dataset("cifar10", "test", data_dir=data_dir, verify=False)
        assert_holds(load_dataset("cifar10", "test", data_dir=data_dir, download=True, verify=False), *expected)
    # The server is gone, the archive is there.
    assert_holds(load_dataset("cifar10", "test", data_dir=data_dir, download=True, verify=False), *expected)


def test_svhn_is_downloaded(tmp_path, monkeypatch):
    write_svhn(tmp_path / "made")
    content = (tmp_path / "made" / "train_32x32.mat").read_bytes()
    monkeypatch.setattr(svhn, "_MD5", {"train": hashlib.md5(content).hexdigest()})
    with server(content) as address:
        monkeypatch.setattr(svhn, "_SITE", address)
        assert len(load_dataset("svhn", "train", data_dir=tmp_path / "data", download=True)) == 12


# --- augmentation and batches ---


def plain_crop(image, row, column, padding):
    """One image [C, H, W], pixel by pixel."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                source_i, source_j = i + row - padding, j + column - padding
                if 0 <= source_i < height and 0 <= source_j < width:
                    out[c, i, j] = image[c, source_i, source_j]
    return out


def test_crop_and_flip_match_a_loop_over_pixels():
    padding = 2
    images = torch.randint(0, 256, (25, 2, 4, 5), dtype=torch.uint8)
    offsets = torch.cartesian_prod(torch.arange(5), torch.arange(5))  # every one there is
    flipped = torch.arange(25) % 3 == 0
    cropped = augment.crop(images, offsets, padding)
    expected = [plain_crop(image, *offset, padding) for image, offset in zip(images, offsets.tolist(), strict=True)]
    assert torch.equal(cropped, torch.stack(expected))
    mirrored = images.numpy().copy()
    for index in range(0, 25, 3):
        mirrored[index] = mirrored[index, :, :, ::-1]
    assert torch.equal(augment.flip(images, flipped), torch.from_numpy(mirrored))
    assert torch.equal(augment.crop(images, torch.full((25, 2), padding), padding), images)


def epoch_of(loader):
    batches = list(loader)
    assert len(batches) == len(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_without_options_the_batches_are_the_data():
    data = some_data(10)
    loader = BatchLoader(data, 4)
    assert [len(labels) for _, labels in loader] == [4, 4, 2] and len(loader) == 3
    images, labels = epoch_of(loader)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    # Correctly rounded quotients, as float64 gives them.
    assert torch.equal(images, (data.images.double() / 255).float()) and torch.equal(labels, data.labels)
    assert images.min() >= 0 and images.max() <= 1


def test_all_intensities_are_correctly_rounded():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    data = ImageData(images, torch.tensor([0]), 1, "ramp", (0.5,), (0.5,))
    [(batch, _)] = BatchLoader(data, 1)
    assert batch.flatten().tolist() == [np.float32(value / 255) for value in range(256)]


@pytest.mark.parametrize(
    ("count", "batch_size", "drop_last", "sizes"),
    [
        (10, 4, True, [4, 4]),
        (10, 5, True, [5, 5]),
        (10, 10, True, [10]),
        (10, 11, False, [10]),
        (1, 1, True, [1]),
    ],
)
def test_batch_sizes(count, batch_size, drop_last, sizes):
    loader = BatchLoader(some_data(count), batch_size, drop_last=drop_last, shuffle=True)
    assert [len(labels) for _, labels in loader] == sizes and len(loader) == len(sizes)


def numbered_data(count):
    """Images whose pixels all hold their index."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 4, 4).contiguous()
    return ImageData(images, torch.arange(count), count, "numbered", (0.5,), (0.5,))


def test_every_epoch_has_an_order_of_its_own_and_every_image_once():
    loader = BatchLoader(numbered_data(200), 32, shuffle=True, seed=3)
    orders = []
    for epoch in range(4):
        assert loader.epoch == epoch
        images, labels = epoch_of(loader)
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)
        assert sorted(labels.tolist()) == list(range(200))
        orders.append(labels.tolist())
    others = [epoch_of(BatchLoader(numbered_data(200), 32, shuffle=True, seed=seed))[1].tolist() for seed in (0, 1, 4)]
    assert len({tuple(order) for order in orders + others}) == 7

    # The same seed gives the same orders, and any epoch can be gone back to, whatever the batch size.
    again = BatchLoader(numbered_data(200), 7, shuffle=True, seed=3)
    for epoch in (2, 0, 3):
        again.epoch = epoch
        assert epoch_of(again)[1].tolist() == orders[epoch]


def test_an_epoch_that_is_broken_off_begins_again():
    loader = BatchLoader(numbered_data(20), 5, shuffle=True)
    first = next(iter(loader))[1]
    assert loader.epoch == 0
    assert torch.equal(next(iter(loader))[1], first)


def test_orders_are_uniform():
    """Each of 10 images comes first in 1000 epochs as often as chance has it: chi-squared with 9 degrees of freedom."""
    loader = BatchLoader(numbered_data(10), 10, shuffle=True)
    counts = torch.zeros(10)
    for _ in range(1000):
        [(_, labels)] = loader
        counts[labels[0]] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 35


def test_augmentation_belongs_to_the_image_not_to_its_batch():
    data = some_data(50)
    options = dict(crop_padding=2, flip=True, seed=5)
    in_order, labels = epoch_of(BatchLoader(data, 50, **options))
    assert torch.equal(labels, data.labels)
    assert torch.equal(epoch_of(BatchLoader(data, 7, **options))[0], in_order)
    shuffled = BatchLoader(data, 16, shuffle=True, **options)
    order = epoch_of(BatchLoader(numbered_data(50), 16, shuffle=True, **options | {"crop_padding": 0}))[1]
    assert torch.equal(epoch_of(shuffled)[0], in_order[order])
    assert not torch.equal(epoch_of(shuffled)[0].sort(0).values, in_order.sort(0).values)  # the next epoch differs


def test_every_crop_and_both_flips_occur():
    """A marked pixel shows how each of 2000 images was cropped and flipped: all 50 ways, about equally often."""
    count, padding, size = 2000, 2, 9
    images = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    images[:, 0, 4, 3] = 255
    data = ImageData(images, torch.zeros(count, dtype=torch.int64), 1, "marked", (0.5,), (0.5,))
    batch, _ = epoch_of(BatchLoader(data, count, crop_padding=padding, flip=True))
    assert torch.equal(batch.sum((1, 2, 3)), torch.ones(count))
    # Cropped at (row, column) the mark is at (4 + 2 - row, 3 + 2 - column), and mirrored at column 8 - that.
    places = batch.flatten(1).argmax(1)
    rows, columns = places // size, places % size
    expected = torch.zeros(size, size)
    for row in range(5):
        for column in range(5):
            expected[6 - row, 5 - column] += count / 50
            expected[6 - row, 8 - (5 - column)] += count / 50
    counts = torch.zeros(size, size).index_put_((rows, columns), torch.ones(count), accumulate=True)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_squared = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_squared < 65  # 29 degrees of freedom; exceeded once in 7000


@pytest.mark.parametrize("options", [{}, {"crop_padding": 2}, {"flip": True}, {"crop_padding": 2, "flip": True}])
def test_channels_last_changes_the_layout_alone(options):
    data = some_data(12)
    loaders = (BatchLoader(data, 5, channels_last=channels_last, **options) for channels_last in (False, True))
    for (plain, _), (permuted, _) in zip(*loaders, strict=True):
        assert torch.equal(plain, permuted) and plain.is_contiguous()
        assert permuted.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_the_callers_own():
    data = some_data(4)
    loader = BatchLoader(data, 4)
    before = data.images.clone()
    for images, labels in loader:
        images.zero_(), labels.fill_(-1)
    assert torch.equal(data.images, before) and torch.equal(epoch_of(loader)[1], data.labels)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 2.0}, TypeError, "batch_size"),
        ({"batch_size": 11, "drop_last": True}, ValueError, "batch_size must be at most 10"),
        ({"crop_padding": -1}, ValueError, "crop_padding"),
        ({"crop_padding": 8}, ValueError, "crop_padding"),
        ({"crop_padding": 1.5}, TypeError, "crop_padding"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": "0"}, TypeError, "seed"),
        ({"data": torch.zeros(10, 3, 8, 8)}, TypeError, "data must be an ImageData, got Tensor"),
    ],
)
def test_bad_loader_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchLoader(**{"data": some_data(10), "batch_size": 2} | arguments)


def test_a_bad_epoch():
    loader = BatchLoader(some_data(10), 2)
    for epoch, error in ((-1, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="epoch"):
            loader.epoch = epoch
    assert loader.epoch == 0


def test_the_highest_seed_is_taken():
    assert len(epoch_of(BatchLoader(some_data(10), 2, seed=2**64 - 1, shuffle=True))[1]) == 10


@pytest.mark.cuda
@pytest.mark.parametrize("channels_last", [False, True])
def test_cuda_gives_the_bits_of_the_cpu(channels_last):
    data = some_data(300, size=32)
    options = dict(shuffle=True, crop_padding=4, flip=True, seed=1, channels_last=channels_last)
    cpu_loader, cuda_loader = BatchLoader(data, 64, **options), BatchLoader(data, 64, device="cuda", **options)
    for _ in range(2):
        for (images, labels), (cuda_images, cuda_labels) in zip(cpu_loader, cuda_loader, strict=True):
            assert cuda_images.device.type == cuda_labels.device.type == "cuda"
            assert torch.equal(cuda_images.cpu(), images) and torch.equal(cuda_labels.cpu(), labels)
