"""Images in .npz files: honest ones, others, and hostile ones."""

import dataclasses
import io
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from adt_fast.data import BatchLoader, DataError, ImageData, load_npz, npz

LIKE = ImageData(
    torch.zeros(1, 3, 4, 5, dtype=torch.uint8), torch.tensor([0]), 10, "like", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
)
IMAGE = np.random.RandomState(0).randint(0, 256, (12, 4, 5, 3)).astype(np.uint8)
LABEL = np.arange(12) % 10


def write(path, save=np.savez, **changes):
    arrays = dict(image=IMAGE, label=LABEL) | changes
    save(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def npy_header(shape, descr="|u1", order=False, version=(1, 0)):
    text = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def write_zip(path, image=None, label=None, method=zipfile.ZIP_STORED):
    """An archive of these bytes; by default those of IMAGE and LABEL."""

    def npy_bytes(array):
        np.save(buffer := io.BytesIO(), array)
        return buffer.getvalue()

    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("image.npy", npy_bytes(IMAGE) if image is None else image)
        archive.writestr("label.npy", npy_bytes(LABEL) if label is None else label)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["i1", "u1", "<i4", ">i8", "u8"])
def test_an_honest_file(tmp_path, save, dtype):
    path = write(tmp_path / "million.npz", save, label=LABEL.astype(dtype), more=np.zeros(3))
    data = load_npz(path, LIKE)
    assert data.images.dtype == torch.uint8 and data.images.shape == (12, 3, 4, 5) and data.images.is_contiguous()
    assert data.images[7, 2, 1, 4] == IMAGE[7, 1, 4, 2]
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), IMAGE) and data.labels.tolist() == LABEL.tolist()
    assert (data.num_classes, data.name, data.mean, data.std) == (10, "million", LIKE.mean, LIKE.std)
    assert len(list(BatchLoader(LIKE, 4, extra=data, extra_fraction=0.75))) == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chunk", [1, 60, 200, 1 << 24])
@pytest.mark.parametrize(("limit", "count"), [(1, 1), (5, 5), (12, 12), (13, 12), (None, 12)])
def test_limit_and_chunks(tmp_path, monkeypatch, save, chunk, limit, count):
    monkeypatch.setattr(npz, "_CHUNK_BYTES", chunk)
    data = load_npz(str(write(tmp_path / "extra.npz", save)), LIKE, limit)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), IMAGE[:count])
    assert data.labels.tolist() == LABEL[:count].tolist()


def test_images_of_one_channel(tmp_path):
    like = dataclasses.replace(LIKE, images=LIKE.images[:, :1], mean=(0.1,), std=(0.2,))
    assert load_npz(write(tmp_path / "grey.npz", image=IMAGE[..., :1]), like).images.shape == (12, 1, 4, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "must hold .*'image' is missing; it holds 'label'"),
        ({"label": None}, "must hold .*'label' is missing; it holds 'image'"),
        ({"label": None, "labels": LABEL}, "must hold .*'label' is missing; it holds 'image', 'labels'"),
        ({"image": IMAGE / 255}, r"'image' must be a uint8 array \[N, 4, 5, 3\] .* got float64 \[12, 4, 5, 3\]"),
        ({"image": IMAGE.astype(np.int8)}, "'image' must be a uint8 .* got int8"),
        ({"image": IMAGE.transpose(0, 3, 1, 2)}, r"'image' must be .* got uint8 \[12, 3, 4, 5\]"),
        ({"image": IMAGE[:, :, :, :1]}, r"'image' must be .* got uint8 \[12, 4, 5, 1\]"),
        ({"image": IMAGE[0]}, r"'image' must be .* got uint8 \[4, 5, 3\]"),
        ({"image": np.uint8(3)}, r"'image' must be .* got uint8 \[\]"),
        ({"image": IMAGE[:0], "label": LABEL[:0]}, r"'image' must be .* N of at least 1, got uint8 \[0, 4, 5, 3\]"),
        ({"image": np.asfortranarray(IMAGE)}, r"'image' must be in C order.*np.ascontiguousarray\(image\)"),
        ({"image": np.array([None] * 12)}, r"'image' must be .* got object \[12\]"),
        ({"label": np.array([None] * 12)}, r"'label' must be an array of integers \[12\], got object \[12\]"),
        ({"label": LABEL.astype(float)}, r"'label' must be .* got float64 \[12\]"),
        ({"label": LABEL > 3}, r"'label' must be .* got bool"),
        ({"label": LABEL.astype("m8[s]")}, r"'label' must be .* got timedelta64"),
        ({"label": LABEL.astype(str)}, "'label' must be .* got <U"),
        ({"label": LABEL[:-1]}, r"'label' must be .* \[12\], got int64 \[11\]"),
        ({"label": LABEL[:, None]}, r"'label' must be .* \[12\], got int64 \[12, 1\]"),
        ({"label": LABEL + 1}, "'label' must be from 0 to 9, got 1 to 10"),
        ({"label": LABEL - 1}, "'label' must be from 0 to 9, got -1 to 8"),
        ({"label": np.full(12, 2**64 - 1, np.uint64)}, "'label' must be from 0 to 9, got 18446744073709551615"),
    ],
)
def test_arrays_that_are_not_such_images(tmp_path, changes, message):
    path = write(tmp_path / "extra.npz", **changes)
    with pytest.raises(DataError, match=rf"{path}: {message}"):
        load_npz(path, LIKE)


def test_other_files(tmp_path):
    path = tmp_path / "extra.npz"
    np.save(tmp_path / "single.npy", IMAGE)
    honest = write(tmp_path / "honest.npz").read_bytes()
    for content in (
        b"",
        b"image,label\n1,2\n",
        pickle.dumps({"image": IMAGE, "label": LABEL}),
        (tmp_path / "single.npy").read_bytes(),
        honest[: len(honest) // 2],
        honest[:-1],
        honest[100:],
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path} is damaged, or no .npz file"):
            load_npz(path, LIKE)
    with pytest.raises(DataError, match=rf"{tmp_path} is a folder"):
        load_npz(tmp_path, LIKE)
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        load_npz(tmp_path / "missing.npz", LIKE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"like": IMAGE}, TypeError, "like must be an ImageData, got ndarray"),
        ({"limit": 0}, ValueError, "limit"),
        ({"limit": 1.5}, TypeError, "limit"),
        ({"path": 3}, TypeError, "int"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        load_npz(**{"path": "missing.npz", "like": LIKE} | arguments)


def test_what_compresses_best_is_read(tmp_path):
    black = np.zeros((200_000, 4, 5, 3), np.uint8)
    path = write(tmp_path / "black.npz", np.savez_compressed, image=black, label=np.zeros(200_000, int))
    assert path.stat().st_size < black.nbytes / 700 and len(load_npz(path, LIKE)) == 200_000


# --- hostile files ---

MANY = 10**12  # images of 60 bytes
ZEROS = bytes(60 * 1000)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("shape", "image", "message"),
    [
        ((MANY, 4, 5, 3), b"", "'image' must have the .* bytes of its header's"),
        ((13, 4, 5, 3), IMAGE.tobytes(), "'image' must have the .* bytes of its header's uint8"),
        ((12, 4, 5, 3), IMAGE.tobytes() + b"x", "'image' must have"),
        ((12, 4, 5, 3), ZEROS, "'image' must have"),
        ((2**64 + 12, 4, 5, 3), IMAGE.tobytes(), "'image' must have"),
        ((-12, 4, 5, 3), IMAGE.tobytes(), "'image' must have"),
        ((12.0, 4, 5, 3), IMAGE.tobytes(), "is damaged"),
        ("__import__('os')", b"", "is damaged"),
    ],
)
def test_headers_that_claim_other_shapes(tmp_path, shape, image, message, method):
    label = npy_header(shape[:1]) + bytes(12)
    path = write_zip(tmp_path / "extra.npz", npy_header(shape) + image, label, method)
    with pytest.raises(DataError, match=message):
        load_npz(path, LIKE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (npy_header((12, 4, 5, 3), "|O") + pickle.dumps(IMAGE), "'image' must be a uint8 array .* got object"),
        (npy_header((12, 4, 5, 3), ("|u1", (1 << 30,))), "'image' must be a uint8 array"),
        (npy_header((12, 4, 5, 3), version=(3, 0)) + IMAGE.tobytes(), r"must be in version 1.0 or 2.0 .* got \(3, 0\)"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "is damaged"),
        (b"\x93NUMPY\x01\x00\x00\x20" + b"-" * 0x2000, "is damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100_000, "is damaged"),
        (b"\x80\x04K\x01.", "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_other_headers(tmp_path, image, message):
    with pytest.raises(DataError, match=message):
        load_npz(write_zip(tmp_path / "extra.npz", image), LIKE)


def test_headers_of_version_2_are_read(tmp_path):
    image = npy_header(IMAGE.shape, version=(2, 0)) + IMAGE.tobytes()
    assert len(load_npz(write_zip(tmp_path / "extra.npz", image), LIKE)) == 12


def with_claimed_sizes(path, member, **sizes):
    """Rewrites a member's sizes in the archive's directory."""
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02", 0, content.rfind(member))
    for field, place in (("compressed", 20), ("whole", 24)):
        if field in sizes:
            struct.pack_into("<I", content, entry + place, sizes[field])
    path.write_bytes(content)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("lies_about_both", [False, True])
def test_sizes_the_file_has_no_room_for_are_not_allocated(tmp_path, method, lies_about_both):
    """Header and directory agree on 3 GB, in a file of a few hundred bytes."""
    count = 50_000_000
    header, path = npy_header((count, 4, 5, 3)), tmp_path / "extra.npz"
    write_zip(path, header, npy_header((count,)), method)
    whole = len(header) + 60 * count
    claims = dict(whole=whole) | (dict(compressed=whole) if lies_about_both else {})
    with_claimed_sizes(path, b"image.npy", **claims)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"'image' must fit into the file, .* got {whole}|damaged"):
            load_npz(path, LIKE)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claimed", [-1, 1])
def test_a_directory_that_lies_about_a_size(tmp_path, claimed):
    path = write(tmp_path / "extra.npz", np.savez_compressed)
    with_claimed_sizes(path, b"image.npy", whole=128 + IMAGE.nbytes + claimed)
    with pytest.raises(DataError, match=r"'image' must have the 848 bytes|Bad CRC"):
        load_npz(path, LIKE)


@pytest.mark.parametrize("array", [IMAGE, LABEL])
def test_a_member_that_is_shorter_or_longer_than_it_says(tmp_path, array):
    name, descr = ("image", "|u1") if array is IMAGE else ("label", "<i8")
    header = npy_header(array.shape, descr)
    for contents in (array[:-1].tobytes(), array[:1].tobytes(), array.tobytes() + ZEROS):
        path = write_zip(tmp_path / "extra.npz", **{name: header + contents}, method=zipfile.ZIP_DEFLATED)
        with_claimed_sizes(path, f"{name}.npy".encode(), whole=len(header) + array.nbytes)
        with pytest.raises(DataError, match="is damaged"):
            load_npz(path, LIKE)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_numpy_does_not_write(tmp_path, method):
    with pytest.raises(DataError, match=f"'image' must be stored or deflated, .* method {method}"):
        load_npz(write_zip(tmp_path / "extra.npz", method=method), LIKE)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_altered_files_are_refused_or_unharmed(tmp_path, save):
    generator, path = random.Random(0), tmp_path / "extra.npz"
    original = write(path, save, image=IMAGE[:3], label=LABEL[:3]).read_bytes()
    expected, outcomes = load_npz(path, LIKE), {"read": 0, "refused": 0}
    for _ in range(500):
        altered = bytearray(original)
        for _ in range(generator.randint(1, 6)):
            altered[generator.randrange(len(altered))] = generator.randrange(256)
        if generator.random() < 0.2:
            del altered[generator.randrange(len(altered)) :]
        path.write_bytes(altered)
        try:
            data = load_npz(path, LIKE)
            # What is read was under zip's checksum.
            assert torch.equal(data.images, expected.images) and torch.equal(data.labels, expected.labels)
            outcomes["read"] += 1
        except DataError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 300 and outcomes["read"] > 3


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_altered_headers_under_a_right_checksum_are_refused_or_read_as_such_images(tmp_path):
    generator, path = random.Random(1), tmp_path / "extra.npz"
    np.save(buffer := io.BytesIO(), IMAGE)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        image = bytearray(buffer.getvalue())
        for _ in range(generator.randint(1, 3)):
            image[generator.randrange(90)] = generator.choice(b"0123456789(),|<>uifOVL'{}-.x \n\xff\x00")
        try:
            assert load_npz(write_zip(path, bytes(image)), LIKE).images.shape == (12, 3, 4, 5)
            outcomes["read"] += 1
        except DataError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 150 and outcomes["read"] > 0
