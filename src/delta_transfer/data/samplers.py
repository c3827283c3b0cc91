"""Samplers whose order is a function of seed and epoch, and class balancing."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from delta_transfer.utils.seeds import derive_seed


def imbalance_ratio(labels: Sequence[int]) -> float:
    """Return the size of the largest class over that of the smallest.

    Example:
        >>> imbalance_ratio([0, 0, 0, 1])
        3.0
    """
    counts = Counter(labels).values()
    return max(counts) / min(counts)


def balanced_weights(labels: Sequence[int], *, num_classes: int) -> Tensor:
    """Return weights `[K]` that give all classes the same total weight: `n / (K n_k)`.

    Their mean over all samples is 1. A class without samples, which a fold may have, gets weight 1
    and is not counted in K.

    Example:
        >>> balanced_weights([0, 0, 0, 1], num_classes=2)
        tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes)
    there = counts > 0
    weights = len(labels) / (there.sum() * counts.clamp_min(1))
    return torch.where(there, weights, 1.0)


def draw_balanced_indices(
    labels: Sequence[int], *, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Draw as many samples as there are, equally many of each class, in random order.

    If the number is not a multiple of the number of classes, random classes get one more. No
    sample repeats before all others of its class have been drawn.

    Args:
        labels: the class of each sample.
        generator: the source of random numbers, on the CPU.

    Returns:
        The positions, and how often each was drawn before.
    """
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    each, more = divmod(len(labels), len(groups))
    extra = set(torch.randperm(len(groups), generator=generator)[:more].tolist())
    draws = []
    for number, label in enumerate(sorted(groups)):
        group, left, times = groups[label], each + (number in extra), 0
        while left:
            order = torch.randperm(len(group), generator=generator)[:left].tolist()
            draws += [(group[i], times) for i in order]
            left, times = left - len(order), times + 1
    order = torch.randperm(len(draws), generator=generator).tolist()
    return [draws[i][0] for i in order], [draws[i][1] for i in order]


# A sample that is drawn again within an epoch gets the augmentation of an epoch far ahead.
_REPEAT_EPOCH_OFFSET = 2**20


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs in an order that is a pure function of (seed, epoch).

    Args:
        length: the number of samples.
        seed: the user's seed.
        labels: of the samples, to draw each class equally often; None to draw each sample once.
            A repeated sample comes with a later epoch, so that it is augmented differently.

    Example:
        >>> sampler = EpochSampler(3, seed=0)
        >>> sampler.set_epoch(7)
        >>> sorted(sampler)
        [(7, 0), (7, 1), (7, 2)]
    """

    def __init__(self, length: int, *, seed: int, labels: Sequence[int] | None = None) -> None:
        self.length = length
        self.seed = seed
        self.labels = labels
        self.epoch = 0
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def resume(self, epoch: int, *, num_done: int) -> None:
        """Set the epoch, and skip its first `num_done` samples in the next iteration only."""
        self.epoch = epoch
        self._skipped = num_done

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, first = self.epoch, self._skipped
        self._skipped = 0
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        if self.labels is None:
            order = torch.randperm(self.length, generator=generator).tolist()
            return iter([(epoch, index) for index in order[first:]])
        draws = zip(*draw_balanced_indices(self.labels, generator=generator), strict=True)
        return iter(
            [(epoch + _REPEAT_EPOCH_OFFSET * times, index) for index, times in draws][first:]
        )


class DistributedEpochSampler(Sampler[tuple[int, int]]):
    """The part of each batch that one process loads.

    If the last batch has no sample for this process, it loads the first one of the batch, so that
    all processes have the same number of batches; `sizes` does not count that sample.

    Args:
        order: of all samples.
        batch_size: of all processes together; a multiple of `world_size`.
        rank: of this process, from 0.
        world_size: the number of processes.

    Example:
        >>> order = EpochSampler(5, seed=0)
        >>> parts = [DistributedEpochSampler(order, batch_size=4, rank=rank, world_size=2)
        ...          for rank in range(2)]
        >>> [[index for _, index in part] for part in parts], parts[1].sizes(1)
        ([[4, 2, 3], [0, 1, 3]], (0, 1))
    """

    def __init__(self, order: EpochSampler, *, batch_size: int, rank: int, world_size: int) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} is not a multiple of {world_size} processes")
        self._order = order
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this."""
        self._order.set_epoch(epoch)

    def resume(self, epoch: int, *, num_done: int) -> None:
        """Set the epoch, and skip its first `num_done` samples of this process, once."""
        self._order.set_epoch(epoch)
        self._skipped = num_done

    def sizes(self, batch: int) -> tuple[int, int]:
        """Return the numbers of samples of a batch, from 0: of this process, and of all."""
        whole = min(self._batch_size, len(self._order) - batch * self._batch_size)
        return len(range(self._rank, whole, self._world_size)), whole

    def __len__(self) -> int:
        batches = -(-len(self._order) // self._batch_size)
        return sum(max(1, self.sizes(batch)[0]) for batch in range(batches))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, first = list(self._order), self._skipped
        self._skipped = 0
        own: list[tuple[int, int]] = []
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            own += batch[self._rank :: self._world_size] or batch[:1]
        return iter(own[first:])
