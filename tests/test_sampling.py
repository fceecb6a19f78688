"""Which images a minibatch has: shards for several processes, extra data, and parts held out."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from adt_fast.data import BatchLoader, ImageData
from adt_fast.data.sampling import Sampler, evenly_spread

AUGMENTED = dict(shuffle=True, crop_padding=2, flip=True, cutout=3, seed=7)


def numbered(count, first=0, size=8):
    """Each image has its number, first to first + count, as label and in its pixels, with noise beside it."""
    numbers = torch.arange(first, first + count)
    noise = torch.randint(0, 256, (count, 2, size, size), generator=torch.Generator().manual_seed(first))
    images = torch.cat([numbers.view(-1, 1, 1, 1).expand(-1, 1, size, size) % 256, noise], dim=1).to(torch.uint8)
    return ImageData(images, numbers, 10_000, "numbered", (0.0, 0.5, 0.5), (0.5,) * 3)


def plain_epoch(data, seed, epoch, padding):
    """A shuffled epoch as it was before there were extra images, shards or cutout: order, images, labels."""
    key = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(1, np.uint64).item()
    generator = torch.Generator().manual_seed(key)
    flipped = torch.rand(len(data), generator=generator) < 0.5
    order = torch.randperm(len(data), generator=generator)
    offsets = torch.randint(2 * padding + 1, (len(data), 2), generator=generator)
    images = []
    for index in order.tolist():
        row, column = offsets[index].tolist()
        height, width = data.images.shape[2:]
        padded = torch.nn.functional.pad(data.images[index], (padding,) * 4)
        image = padded[:, row : row + height, column : column + width]
        images.append(image.flip(2) if flipped[index] else image)
    return torch.stack(images).double() / 255, data.labels[order]


def labels_of(loader):
    """A list for each batch of an epoch."""
    return [labels.tolist() for _, labels in loader]


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def is_extra(labels):
    return [label >= 1000 for label in labels]


@pytest.mark.parametrize("seed", [0, 5, 2**64 - 1])
def test_without_the_new_options_batches_are_what_they_were(seed):
    data = numbered(50)
    loader = BatchLoader(data, 16, shuffle=True, crop_padding=2, flip=True, seed=seed)
    for epoch in range(2):
        expected_images, expected_labels = plain_epoch(data, seed, epoch, 2)
        batches = list(loader)
        assert torch.equal(torch.cat([images for images, _ in batches]), expected_images.float())
        assert torch.equal(torch.cat([labels for _, labels in batches]), expected_labels)


def test_evenly_spread_is_even_in_every_stretch():
    for total, chosen in ((n, k) for n in range(12) for k in range(n + 1)):
        spread = evenly_spread(chosen, total).tolist()
        assert len(spread) == total and sum(spread) == chosen
        for start, stop in itertools.combinations(range(total + 1), 2):
            assert abs(sum(spread[start:stop]) - (stop - start) * chosen / total) < 1


# --- shards ---


@pytest.mark.parametrize(("count", "batch_size", "drop_last"), [(50, 16, True), (50, 16, False), (8, 30, False)])
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("mixed", [False, True])
def test_shards_in_order_of_rank_are_the_whole_minibatch(count, batch_size, drop_last, num_replicas, mixed):
    options = dict(AUGMENTED, drop_last=drop_last)
    if mixed:
        options |= dict(extra=numbered(9, 1000), extra_fraction=0.3)
    if not drop_last and count == 50 and num_replicas > 2:
        count = 55  # a last minibatch of at least 7
    whole = BatchLoader(numbered(count), batch_size, **options)
    shards = [
        BatchLoader(numbered(count), batch_size, num_replicas=num_replicas, rank=rank, **options)
        for rank in range(num_replicas)
    ]
    for _ in range(2):
        joined = list(zip(*shards, strict=True))
        for parts, (images, labels) in zip(joined, whole, strict=True):
            sizes = [len(part) for _, part in parts]
            assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
            assert torch.equal(torch.cat([part for part, _ in parts]), images)
            assert torch.equal(torch.cat([part for _, part in parts]), labels)
        assert {len(shard) for shard in shards} == {len(whole)}
        assert {shard.epoch for shard in shards} == {whole.epoch}


def test_every_process_has_its_share_of_extra_images():
    for rank in range(4):
        loader = BatchLoader(
            numbered(96), 32, num_replicas=4, rank=rank, shuffle=True, extra=numbered(50, 1000), extra_fraction=0.7
        )
        for labels in labels_of(loader)[:-1]:  # round(0.7 * 32) = 22 of 32
            assert sum(is_extra(labels)) in (5, 6)


def test_a_shard_resumes_within_an_epoch():
    options = dict(AUGMENTED, num_replicas=3, rank=1, extra=numbered(7, 1000), extra_fraction=0.5)
    whole = BatchLoader(numbered(60), 12, **options)
    batches = [list(whole) for _ in range(3)]
    for first in range(len(whole) + 1):
        resumed = BatchLoader(numbered(60), 12, **options)
        resumed.epoch = 2
        assert_same(list(resumed.from_batch(first)), batches[2][first:])
        assert resumed.epoch == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_replicas": 0}, ValueError, r"num_replicas must be in \[1"),
        ({"num_replicas": 2.0}, TypeError, "num_replicas must be an int"),
        ({"rank": 1}, ValueError, r"rank must be in \[0, 0\], got 1"),
        ({"num_replicas": 2, "rank": 2}, ValueError, r"rank must be in \[0, 1\], got 2"),
        ({"num_replicas": 2, "rank": -1}, ValueError, r"rank must be in \[0, 1\], got -1"),
        ({"num_replicas": 9}, ValueError, "batch_size must be at least num_replicas=9, .* got 8: take larger"),
        ({"num_replicas": 3}, ValueError, "num_replicas must be at most 2, .*last minibatch.* got 3: pass drop_last"),
        # Of the data's 50 images, 6 go into each minibatch: the last has 2 of them and 2 / 6 * 2, about 1, extra.
        (
            {"num_replicas": 4, "extra": numbered(5), "extra_fraction": 0.25},
            ValueError,
            "num_replicas must be at most 3",
        ),
        ({"batch_size": 53, "num_replicas": 51}, ValueError, "num_replicas must be at most 50"),
    ],
)
def test_bad_shards(options, error, message):
    with pytest.raises(error, match=message):
        BatchLoader(**{"data": numbered(50), "batch_size": 8} | options)


def test_what_the_errors_of_shards_advise_helps():
    for options in (dict(drop_last=True), dict(batch_size=10), dict(num_replicas=2)):
        assert len(list(BatchLoader(**dict(data=numbered(50), batch_size=8, num_replicas=3) | options))) in (5, 6, 7)


# --- extra data ---


def test_without_a_fraction_extra_images_are_part_of_the_data():
    data, extra = numbered(30), numbered(13, 1000)
    both = dataclasses.replace(
        data, images=torch.cat([data.images, extra.images]), labels=torch.cat([data.labels, extra.labels])
    )
    for options in ({}, AUGMENTED):
        joined, pooled = BatchLoader(both, 8, **options), BatchLoader(data, 8, extra=extra, **options)
        assert len(pooled) == 6
        for _ in range(2):
            assert_same(list(pooled), list(joined))


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("extra_count", [1, 7, 50, 1000])
@pytest.mark.parametrize("drop_last", [False, True])
def test_each_minibatch_has_its_share_and_both_sources_are_passed_over(fraction, extra_count, drop_last):
    data, batch_size = numbered(47), 10
    loader = BatchLoader(
        data, batch_size, extra=numbered(extra_count, 1000), extra_fraction=fraction, drop_last=drop_last, **AUGMENTED
    )
    per_batch, stream = round(fraction * batch_size), []
    whole, rest = divmod(47, batch_size - per_batch)
    for _ in range(4):
        batches = labels_of(loader)
        assert len(batches) == len(loader) == whole + (rest > 0 and not drop_last)
        assert sum(map(len, batches)) == loader.images_per_epoch
        for labels in batches[:whole]:
            assert len(labels) == batch_size and sum(is_extra(labels)) == per_batch
        for labels in batches[whole:]:
            share = sum(is_extra(labels)) / len(labels)
            assert abs(share - per_batch / batch_size) * len(labels) < 1
        flat = list(itertools.chain(*batches))
        seen = [label for label in flat if label < 1000]
        assert len(set(seen)) == len(seen) == (47 if rest == 0 or not drop_last else 47 - rest)
        stream += [label - 1000 for label in flat if label >= 1000]
    # Cut into pieces of extra_count, the stream is whole permutations, over all epochs.
    pieces = [stream[start : start + extra_count] for start in range(0, len(stream), extra_count)]
    assert all(sorted(piece) == list(range(extra_count)) for piece in pieces[:-1])
    assert len(set(pieces[-1])) == len(pieces[-1])
    assert extra_count != 50 or len({tuple(piece) for piece in pieces}) == len(pieces)


def test_the_share_of_the_last_minibatch_is_rounded():
    # 4 of each 10 from extra: 6 of 20 images each, and a last minibatch of 2 with 2 * 4 / 6, about 1.
    loader = BatchLoader(numbered(20), 10, extra=numbered(5, 1000), extra_fraction=0.4)
    assert [(len(labels), sum(is_extra(labels))) for labels in labels_of(loader)] == [(10, 4)] * 3 + [(3, 1)]


def test_rows_of_extra_images_are_spread_evenly():
    [labels, *_] = labels_of(BatchLoader(numbered(20), 10, extra=numbered(5, 1000), extra_fraction=0.4, shuffle=True))
    assert is_extra(labels) == [False, False, True, False, True, False, False, True, False, True]


def test_the_datas_own_images_are_as_they_are_without_extra_ones():
    data, options = numbered(40), AUGMENTED
    alone = BatchLoader(data, 40, **options)
    mixed = BatchLoader(data, 10, extra=numbered(6, 1000), extra_fraction=0.5, **options)
    for _ in range(2):
        [(images, labels)] = alone
        batches = list(mixed)
        mixed_images = torch.cat([part for part, _ in batches])
        mixed_labels = torch.cat([part for _, part in batches])
        own = mixed_labels < 1000
        assert torch.equal(mixed_images[own], images) and torch.equal(mixed_labels[own], labels)


def test_an_extra_image_is_augmented_anew_each_time_it_comes():
    loader = BatchLoader(numbered(300), 10, extra=numbered(1, 1000), extra_fraction=0.5, **AUGMENTED)
    batches = list(loader)
    images = torch.cat([part for part, _ in batches])[torch.cat([part for _, part in batches]) >= 1000]
    assert len(images) == 300
    assert len(images.flatten(1).unique(dim=0)) > 280  # of 2 flips, 25 crops and 64 squares


def test_an_extra_images_draws_are_not_those_of_the_datas():
    image = numbered(1).images
    data = ImageData(image.expand(50, -1, -1, -1), torch.zeros(50, dtype=torch.int64), 2, "one", (0.5,) * 3, (0.5,) * 3)
    extra = dataclasses.replace(data, labels=torch.ones(50, dtype=torch.int64))
    batches = list(BatchLoader(data, 10, extra=extra, extra_fraction=0.5, crop_padding=2, cutout=3))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    own, others = images[labels == 0], images[labels == 1]  # both in the order of their draws
    assert sum(torch.equal(*pair) for pair in zip(own, others, strict=True)) < 5


@pytest.mark.parametrize("extra_count", [3, 64, 500])
def test_the_stream_of_extra_images_resumes_at_any_epoch_and_batch(extra_count):
    options = dict(AUGMENTED, extra=numbered(extra_count, 1000), extra_fraction=0.6)
    unbroken = BatchLoader(numbered(47), 10, **options)
    epochs = [list(unbroken) for _ in range(6)]
    for epoch, first in itertools.product((5, 0, 3), (0, 1, 6)):
        resumed = BatchLoader(numbered(47), 10, **options)
        resumed.epoch = epoch
        assert_same(list(resumed.from_batch(first)), epochs[epoch][first:])


def test_a_late_epoch_costs_no_more_than_an_early_one():
    loader = BatchLoader(numbered(20), 10, extra=numbered(7, 1000), extra_fraction=0.5, seed=2**64 - 1)
    loader.epoch = 2**63 - 2
    assert [len(labels) for labels in labels_of(loader)] == [10] * 4


def test_extra_images_come_with_uniform_chances():
    """Each of 10 extra images comes first in 1000 seeds as often as chance has it: 9 degrees of freedom."""
    data, extra, counts = numbered(1), numbered(10, 1000), torch.zeros(10)
    for seed in range(1000):
        [labels] = labels_of(BatchLoader(data, 2, extra=extra, extra_fraction=0.5, seed=seed, drop_last=True))
        counts[max(labels) - 1000] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 35


def test_a_huge_batch_size_needs_no_memory():
    assert len(BatchLoader(numbered(5), 2**31 - 1)) == 1
    assert len(Sampler(5, 2**31 - 1, False, extra_count=5, extra_per_batch=2**30)) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"extra": torch.zeros(5, 3, 8, 8)}, TypeError, "extra must be an ImageData, got Tensor"),
        ({"extra": numbered(5, size=9)}, ValueError, r"extra must have images .*\[3, 8, 8\], got \[3, 9, 9\]"),
        (
            {"extra": dataclasses.replace(numbered(5), num_classes=9)},
            ValueError,
            "extra must have the data's 10000 classes, got 9",
        ),
        ({"extra": None}, ValueError, "extra_fraction is a fraction of extra images, and extra is None; got 0.5"),
        ({"extra_fraction": 0.0}, ValueError, "extra_fraction must give .* got 0.0, which is 0 extra"),
        ({"extra_fraction": 0.05}, ValueError, "batch_size=8 .* got 0.05, which is 0 extra"),
        ({"extra_fraction": 0.95}, ValueError, "got 0.95, which is 8 extra"),
        ({"extra_fraction": 1.0}, ValueError, "extra_fraction"),
        ({"extra_fraction": -0.5}, ValueError, "extra_fraction"),
        ({"extra_fraction": float("nan")}, ValueError, "extra_fraction must be finite"),
        ({"extra_fraction": "0.5"}, TypeError, "extra_fraction must be a number"),
        ({"extra_fraction": True}, TypeError, "extra_fraction must be a number"),
        (
            {"batch_size": 120, "drop_last": True},
            ValueError,
            "batch_size must be at most 110, the number of images and 60 extra ones, with drop_last=True; got 120",
        ),
    ],
)
def test_bad_extra_data(options, error, message):
    with pytest.raises(error, match=message):
        BatchLoader(**{"data": numbered(50), "batch_size": 8, "extra": numbered(9), "extra_fraction": 0.5} | options)


# --- held out ---


def labelled(labels):
    return dataclasses.replace(numbered(len(labels)), labels=torch.tensor(labels))


def test_held_out_images_and_the_rest_are_the_data():
    data = numbered(50)
    rest, held_out = data.held_out(20, seed=3)
    assert (len(rest), len(held_out)) == (30, 20) and rest.name == data.name and held_out.mean == data.mean
    for part in (rest, held_out):
        assert part.labels.tolist() == sorted(part.labels.tolist())  # in the data's order
        assert torch.equal(part.images, data.images[part.labels])
    assert sorted(rest.labels.tolist() + held_out.labels.tolist()) == list(range(50))


@pytest.mark.parametrize("counts", [(10, 10, 10), (30, 9, 1), (1, 0, 5)])
def test_every_class_has_its_share_held_out(counts):
    data = labelled([label for label, count in enumerate(counts) for _ in range(count)])
    for count, seed in itertools.product(range(1, len(data)), range(3)):
        held_out = data.held_out(count, seed)[1]
        assert len(held_out) == count
        per_class = torch.bincount(held_out.labels, minlength=3)
        assert (per_class - count / len(data) * torch.tensor(counts)).abs().max() < 1


def test_the_choice_is_of_seed_and_labels_alone_and_uniform():
    labels = [index % 3 for index in range(12)]
    times = torch.zeros(12)
    for seed in range(500):
        held_out = dataclasses.replace(labelled(labels), images=numbered(12).images)
        part = held_out.held_out(4, seed)[1]
        assert torch.equal(part.images, labelled(labels).held_out(4, seed)[1].images)
        times[part.images[:, 0, 0, 0].long()] += 1
    assert ((times - 500 / 3) ** 2 / (500 / 3 * 2 / 3)).sum() < 35  # of about 11 degrees of freedom
    # The same everywhere and always, so that results can be compared.
    assert numbered(12).held_out(4, 0)[1].labels.tolist() == [3, 4, 5, 11]


@pytest.mark.parametrize(
    ("count", "seed", "error", "message"),
    [
        (0, 0, ValueError, r"count must be in \[1, 11\], got 0"),
        (12, 0, ValueError, r"count must be in \[1, 11\], got 12"),
        (1.0, 0, TypeError, "count must be an int"),
        (1, -1, ValueError, "seed"),
        (1, 2**64, ValueError, "seed"),
        (1, None, TypeError, "seed must be an int"),
    ],
)
def test_bad_held_out_arguments(count, seed, error, message):
    with pytest.raises(error, match=message):
        numbered(12).held_out(count, seed)
