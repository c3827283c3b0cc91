"""Classes of very different sizes: how different they are, weights and draws to even them out."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from delta_transfer.utils.seeds import derive_seed


def imbalance_ratio(labels: Sequence[int]) -> float:
    """How many times as many images the largest class has as the smallest.

    Example:
        >>> imbalance_ratio([0, 0, 0, 1])
        3.0
    """
    counts = Counter(labels).values()
    return max(counts) / min(counts)


def balanced_weights(labels: Sequence[int], *, num_classes: int) -> Tensor:
    """A weight per class `[K]`, with which all classes weigh the same: `n / (K n_k)`.

    Over all samples their mean is 1. A class without samples, of which there may be one in a fold,
    does not count and weighs 1.

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
    """As many draws as there are samples, of each class equally many, in random order.

    Where that does not come out even, some classes have one more, drawn at random. No sample of a
    class is drawn once more before all others of it have been.

    Args:
        labels: the class of each sample.
        generator: draws; on the CPU.

    Returns:
        The positions, and how often each has been drawn before.
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


_REPEAT_EPOCH_OFFSET = (
    2**20
)  # epochs that a sample is ahead each time that it is drawn again in one


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs in an order that is a pure function of (seed, epoch).

    Args:
        length: the number of samples.
        seed: the user's seed.
        labels: of the samples, to draw each class equally often; None to draw each sample once.
            One that is drawn again is augmented otherwise: it comes with a later epoch.

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
        """Choose the epoch that the next iteration is of; Lightning calls this by itself."""
        self.epoch = epoch

    def resume(self, epoch: int, *, num_done: int) -> None:
        """Choose an epoch of whose samples, in the next iteration alone, the first are left out."""
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
    """A process's share of each batch that an order of samples comes to.

    Where a batch, the last one, has no sample for this process, it is given the first of them, so
    that all processes have equally many batches; `sizes` tells that it is none of its own.

    Args:
        order: of all samples.
        batch_size: of all processes together; a multiple of them.
        rank: which process this is, from 0.
        world_size: how many there are.

    Example:
        >>> order = EpochSampler(5, seed=0)
        >>> shares = [DistributedEpochSampler(order, batch_size=4, rank=rank, world_size=2)
        ...           for rank in range(2)]
        >>> [[index for _, index in share] for share in shares], shares[1].sizes(1)
        ([[4, 2, 3], [0, 1, 3]], (0, 1))
    """

    def __init__(self, order: EpochSampler, *, batch_size: int, rank: int, world_size: int) -> None:
        if batch_size % world_size:
            raise ValueError(f"{batch_size} samples cannot be shared by {world_size} processes")
        self._order = order
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; Lightning calls this by itself."""
        self._order.set_epoch(epoch)

    def resume(self, epoch: int, *, num_done: int) -> None:
        """Choose an epoch whose first own samples are left out in the next iteration alone."""
        self._order.set_epoch(epoch)
        self._skipped = num_done

    def sizes(self, batch: int) -> tuple[int, int]:
        """How many samples of a batch, counted from 0, are this process's, and how many it has."""
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
