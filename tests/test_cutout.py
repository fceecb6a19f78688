"""Cutout: the squares that it covers, their places, and that it changes nothing else."""

import dataclasses

import pytest
import torch

from adt_fast.data import BatchLoader, ImageData, augment


def noise_images(count, height, width, mean=(0.2, 0.5, 0.9)):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, len(mean), height, width), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.arange(count) % 10, 10, "noise", mean, (0.25,) * len(mean))


def white(count, height, width, mean=0.0):
    images = torch.full((count, 1, height, width), 255, dtype=torch.uint8)
    return ImageData(images, torch.zeros(count, dtype=torch.int64), 1, "white", (mean,), (0.25,))


def plain_cutout(image, row, column, size, colour):
    """One image [C, H, W], pixel by pixel: `size` rows from row - size // 2 on, where there are such."""
    out = image.clone()
    for i in range(row - size // 2, row - size // 2 + size):
        for j in range(column - size // 2, column - size // 2 + size):
            if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
                out[:, i, j] = colour
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cutout_matches_a_loop_over_pixels(size):
    centres = torch.cartesian_prod(torch.arange(4), torch.arange(5))  # every one there is
    images, colour = noise_images(20, 4, 5).images, torch.tensor([1, 2, 3], dtype=torch.uint8)
    expected = [
        plain_cutout(image, *centre, size, colour) for image, centre in zip(images, centres.tolist(), strict=True)
    ]
    assert torch.equal(augment.cutout(images, centres, size, colour), torch.stack(expected))


@pytest.mark.parametrize(("height", "width", "size"), [(6, 7, 4), (7, 6, 3), (5, 5, 5)])
def test_every_pixel_is_a_centre_equally_often(height, width, size):
    """What is covered tells the centre, and with it the area: chi-squared over all of them."""
    count = 300 * height * width
    [(batch, _)] = BatchLoader(white(count, height, width), count, cutout=size)
    image, colour = torch.ones(1, height, width), torch.tensor([0.0])
    covered = [
        plain_cutout(image, row, column, size, colour).flatten() for row in range(height) for column in range(width)
    ]
    matches = (batch.flatten(1)[:, None] == torch.stack(covered)).all(2)  # [count, centre]
    assert torch.equal(matches.sum(1), torch.ones(count, dtype=torch.int64))
    degrees = height * width - 1
    assert ((matches.sum(0) - 300) ** 2 / 300).sum() < degrees + 4 * (2 * degrees) ** 0.5


def test_the_colour_is_the_rounded_mean_and_comes_after_crop_and_flip():
    data = noise_images(40, 8, 8)
    options = dict(batch_size=40, crop_padding=2, flip=True, shuffle=True, seed=4)
    [(without, labels)] = BatchLoader(data, **options)
    [(batch, same_labels)] = BatchLoader(data, cutout=3, **options)
    colour = (torch.tensor([51.0, 128.0, 230.0]) / 255).view(3, 1, 1)  # 0.2, 0.5 and 0.9 of 255: 51, 127.5, 229.5
    covered = (batch != without).any(1, keepdim=True)
    assert torch.equal(batch, torch.where(covered, colour, without)) and torch.equal(labels, same_labels)
    assert (covered.sum((1, 2, 3)) >= 4).all() and (covered.sum((1, 2, 3)) <= 9).all()


def test_where_it_covers_is_the_images_own_and_no_other_options():
    data = white(50, 8, 8)
    in_order = torch.cat([images for images, _ in BatchLoader(data, 50, cutout=3, seed=5)])
    assert torch.equal(torch.cat([images for images, _ in BatchLoader(data, 7, cutout=3, seed=5, flip=True)]), in_order)
    _, draws = BatchLoader(data, 50, cutout=3, seed=5)._draw(0)
    _, cropped_draws = BatchLoader(data, 50, crop_padding=7, seed=5)._draw(0)
    assert torch.equal(draws.centres, cropped_draws.centres)
    numbered = dataclasses.replace(data, labels=torch.arange(50), num_classes=50)
    batches = list(BatchLoader(numbered, 16, cutout=3, seed=5, shuffle=True, channels_last=True))
    order = torch.cat([labels for _, labels in batches])
    assert torch.equal(torch.cat([images for images, _ in batches]), in_order[order])
    loader = BatchLoader(data, 50, cutout=3, seed=5)
    loader.epoch = 1
    assert not torch.equal(next(iter(loader))[0], in_order)  # the next epoch differs


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cutout": -1}, ValueError, r"cutout must be in \[0, 8\], got -1"),
        ({"cutout": 9}, ValueError, r"cutout must be in \[0, 8\], got 9"),
        ({"cutout": 2.0}, TypeError, "cutout must be an int"),
        ({"cutout": True}, TypeError, "cutout must be an int"),
        ({"cutout": 1, "data": white(4, 8, 8, mean=127.0)}, ValueError, r"data.mean must be in \[0, 1\] .*127"),
    ],
)
def test_bad_cutout(changes, error, message):
    with pytest.raises(error, match=message):
        BatchLoader(**{"data": white(4, 8, 9), "batch_size": 2} | changes)


@pytest.mark.cuda
def test_cuda_gives_the_bits_of_the_cpu():
    options = dict(batch_size=64, shuffle=True, crop_padding=4, flip=True, cutout=16, extra_fraction=0.3)
    data, extra = noise_images(300, 32, 32), noise_images(70, 32, 32)
    loaders = (BatchLoader(data, extra=extra, device=device, **options) for device in ("cpu", "cuda"))
    for (images, labels), (cuda_images, cuda_labels) in zip(*loaders, strict=True):
        assert torch.equal(cuda_images.cpu(), images) and torch.equal(cuda_labels.cpu(), labels)
