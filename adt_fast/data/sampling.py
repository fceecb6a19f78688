"""Which images the minibatches of an epoch have, in which rows, and which of the rows are a process's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._support.checks import check_int


class Sampler:
    """Puts an epoch's images into minibatches: those of a data set, and with them a share of extra ones.

    count: how many images the data set has. An epoch passes over them once.
    batch_size: rows of a minibatch, over all processes. The last one is smaller, or left out with drop_last.
    extra_count, extra_per_batch: how many extra images there are, and how many of them each minibatch has; both 0 for
        none. The last, smaller minibatch has the same share, rounded.
    num_replicas, rank: how many processes there are, and which one this is, from 0.

    The extra images are an endless sequence of permutations, which goes on where the epoch before came to its end. In a
    minibatch their rows are spread evenly, so that every process has its share, to within one.

    Raises TypeError or ValueError that names the argument.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        drop_last: bool,
        *,
        extra_count: int = 0,
        extra_per_batch: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        check_int("num_replicas", num_replicas, 1, 2**31)
        check_int("rank", rank, 0, num_replicas)
        per_batch = batch_size - extra_per_batch
        whole, rest = divmod(count, per_batch)
        if drop_last:
            _check_any_batch(whole, count, batch_size, extra_per_batch)
            rest = 0
        extra_rest = round(rest * extra_per_batch / per_batch)
        self._count = count
        self._batch_size = batch_size
        self._extra_count = extra_count
        self._num_replicas = num_replicas
        self._rank = rank
        whole_batches = [evenly_spread(extra_per_batch, batch_size).repeat(whole)] if whole else []
        self._is_extra = torch.cat([*whole_batches, evenly_spread(extra_rest, rest + extra_rest)])  # bool, a row each
        self.num_extra = whole * extra_per_batch + extra_rest  # in an epoch
        self._check_shards(rest + extra_rest)

    def _check_shards(self, last_size: int) -> None:
        if self._batch_size < self._num_replicas:
            raise ValueError(
                f"batch_size must be at least num_replicas={self._num_replicas}, for every process to have an image of "
                f"every minibatch, got {self._batch_size}: take larger minibatches or fewer processes"
            )
        if 0 < last_size < self._num_replicas:
            raise ValueError(
                f"num_replicas must be at most {last_size}, the images of an epoch's last minibatch, for every process "
                f"to have one, got {self._num_replicas}: pass drop_last=True, or take another batch_size than "
                f"{self._batch_size}, or fewer processes"
            )

    def __len__(self) -> int:
        """The number of minibatches in an epoch."""
        return -(-self.num_rows // self._batch_size)

    @property
    def num_rows(self) -> int:
        """Of all minibatches of an epoch together, over all processes."""
        return len(self._is_extra)

    def rows(self, order: Tensor, epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        """The image in each row of the epoch's minibatches, one after another, and the draws of chance it gets.

        order: int64 [count], the order of the data set's images.

        Both int64 [rows]. Images from `count` on are extra. The draws of an image of the data set have its own index;
        those of an extra image have its place in the epoch, counted from `count`, for it may come more than once.
        """
        draws = torch.empty(len(self._is_extra), dtype=torch.int64, device="cpu")
        draws[~self._is_extra] = order[: len(draws) - self.num_extra]
        images = draws.clone()
        extra = drawn_without_replacement(self._extra_count, epoch * self.num_extra, self.num_extra, seed)
        images[self._is_extra] = self._count + extra
        draws[self._is_extra] = self._count + torch.arange(self.num_extra, device="cpu")
        return images, draws

    def shard(self, batch: int) -> slice:
        """This process's rows of a minibatch, in the epoch's rows."""
        start = batch * self._batch_size
        size = min(self._batch_size, len(self._is_extra) - start)
        return slice(
            start + self._rank * size // self._num_replicas, start + (self._rank + 1) * size // self._num_replicas
        )


def evenly_spread(chosen: int, total: int) -> Tensor:
    """Bool [total] with `chosen` true: any n places in a row have n * chosen / total of them, to within one."""
    return (torch.arange(total + 1, device="cpu") * chosen // max(total, 1)).diff().bool()


def drawn_without_replacement(count: int, first: int, number: int, seed: int) -> Tensor:
    """Places first to first + number of an endless sequence of permutations of 0..count-1, int64 [number]."""
    parts, place, end = [torch.empty(0, dtype=torch.int64, device="cpu")], first, first + number
    while place < end:
        permutation, start = divmod(place, count)
        # Three numbers or more, where an epoch is one of two words of 32 bits at most: no generator is used twice.
        generator = generator_of(seed, 0, 0, permutation)
        parts.append(torch.randperm(count, generator=generator, device="cpu")[start : start + end - place])
        place += len(parts[-1])
    return torch.cat(parts)


def generator_of(seed: int, *key: int) -> torch.Generator:
    """A generator on the CPU for each seed and key."""
    # SeedSequence spreads them over 64 bits, so that neighbouring seeds and epochs have nothing in common.
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64).item()
    return torch.Generator().manual_seed(state)


def _check_any_batch(whole: int, count: int, batch_size: int, extra_per_batch: int) -> None:
    if whole == 0:
        extra = f" and {extra_per_batch} extra ones" if extra_per_batch else ""
        raise ValueError(
            f"batch_size must be at most {count + extra_per_batch}, the number of images{extra}, with drop_last=True; "
            f"got {batch_size}, which leaves no batch"
        )
