"""Classes of very different sizes: how different they are, weights and draws to even them out."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def imbalance(labels: Sequence[int]) -> float:
    """How many times as many pictures the largest class has as the smallest.

    Example:
        >>> imbalance([0, 0, 0, 1])
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


def balanced_draws(
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
