"""Features of samples that come again, kept in memory within a limit."""

from collections.abc import Sequence

import torch
from torch import Tensor

GIB = 2**30


class FeatureCache:
    """Samples are known by their values: what has changed by a bit is another sample.

    The key of a sample is two sums of its 32-bit words times random 64-bit numbers, modulo 2^64:
    two samples that differ have the same one with a probability below 2^-60. Once the limit is
    reached nothing more is kept and nothing dropped: in epochs, what came last comes last again.

    Args:
        gib: the most memory that is used, in GiB, on the device of the features.

    Example:
        >>> cache = FeatureCache(1.0)
        >>> keys = cache.keys(torch.tensor([[1.0], [2.0], [1.0]]))
        >>> keys[0] == keys[2] != keys[1]
        True
        >>> cache.keep(keys[:1], [torch.ones(1, 4)])
        >>> cache.has(keys[0]), cache.has(keys[1])
        (True, False)
    """

    def __init__(self, gib: float) -> None:
        self._left = int(gib * GIB)
        self._rows: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._factors = torch.empty(2, 0, dtype=torch.int64)

    def keys(self, inputs: Tensor) -> list[tuple[int, int]]:
        """One for each of the samples `[B, ...]`."""
        rows = inputs.detach().contiguous().flatten(1)
        words = (rows if rows.element_size() % 4 == 0 else rows.float()).view(torch.int32)
        sums = [(words * f).sum(dim=1) for f in self._drawn(words.shape[1], words.device)]
        return [(a, b) for a, b in torch.stack(sums, dim=1).tolist()]

    def has(self, key: tuple[int, int]) -> bool:
        """Whether the sample's features are kept."""
        return key in self._rows

    def keep(self, keys: Sequence[tuple[int, int]], features: Sequence[Tensor]) -> None:
        """Keeps features, each `[B, ...]`, of the samples with these keys, as far as they fit."""
        size = sum(part[0].numel() * part.element_size() for part in features)
        for i, key in enumerate(keys):
            if key not in self._rows and size <= self._left:
                self._rows[key] = tuple(part[i].detach().clone() for part in features)
                self._left -= size

    def take(self, keys: Sequence[tuple[int, int]]) -> list[Tensor]:
        """What was kept of these samples, each `[B, ...]`."""
        return [
            torch.stack(parts) for parts in zip(*map(self._rows.__getitem__, keys), strict=True)
        ]

    def _drawn(self, count: int, device: torch.device) -> Tensor:
        if self._factors.shape[1] != count or self._factors.device != device:
            generator = torch.Generator().manual_seed(0)
            low, high = -(2**63), 2**63 - 1
            self._factors = torch.randint(low, high, (2, count), generator=generator).to(device)
        return self._factors
