"""Sampling from a stream with probability proportional to size: sequential Poisson sampling."""

import dataclasses
from typing import final

import torch
from torch import Tensor

from delta_transfer.attention.estimators.batches import Batch

WARMUP_SAMPLES = 32  # samples that define the typical size
BASE = 0.3  # size of a sample with zero scores; 1.3 is typical


def inclusion_probabilities(sizes: Tensor, count: int) -> Tensor:
    """Return the probability that each of N samples is among `count` drawn ones.

    `pi_i = min(1, c s_i)`, proportional to size, with `c` such that they sum to `count`.

    Args:
        sizes: `[N]`, positive.
        count: number of drawn samples, at most N.

    Example:
        >>> inclusion_probabilities(torch.tensor([1.0, 1.0, 2.0, 12.0]), 2)
        tensor([0.2500, 0.2500, 0.5000, 1.0000])
    """
    probabilities = torch.ones_like(sizes)
    certain = torch.zeros_like(sizes, dtype=torch.bool)
    while not certain.all():
        rest = sizes[~certain]
        probabilities[~certain] = (count - int(certain.sum())) * rest / rest.sum()
        more = probabilities >= 1
        if torch.equal(more | certain, certain):
            break
        certain |= more
        probabilities[certain] = 1
    return probabilities


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReservoirItem:
    """A sample in the reservoir.

    Args:
        sample: a batch of one.
        scores: tap -> `[C]`, its first-order scores.
        index: its position in the stream.
        key: smaller keys are drawn first.
    """

    sample: Batch
    scores: dict[str, Tensor]
    index: int
    key: float


@final
class Reservoir:
    """Samples of a stream, drawn without replacement with probability proportional to size.

    The samples with the smallest `u_i / s_i` are kept, `u_i` uniform (sequential Poisson sampling;
    Ohlsson, Journal of Official Statistics 1998), so that the first m of more are a draw of m. The
    size `s_i` is the root mean square over channels of its first-order scores, divided by
    the mean over the stream's first 32 samples and averaged over taps, plus 0.3: every sample can
    be drawn. Neither sizes nor draws depend on the batches of the stream.

    Args:
        limit: maximum number of samples.
        seed: seed of the draw.
    """

    def __init__(self, limit: int, *, seed: int) -> None:
        self._limit = limit
        self._generator = torch.Generator().manual_seed(seed)
        self._usual: Tensor | None = None  # [taps], mean norm of the first samples
        self._waiting: list[tuple[Batch, dict[str, Tensor], Tensor]] = []  # until it is known
        self._sizes: list[Tensor] = []
        self._items: list[ReservoirItem] = []
        self._count = 0

    def add(self, batch: Batch, scores: dict[str, Tensor]) -> None:
        """Add samples and their first-order scores, tap -> `[B, C]`."""
        wide = {tap: rows.cpu().double() for tap, rows in scores.items()}
        norms = torch.stack([rows.square().mean(dim=1).sqrt() for rows in wide.values()], dim=1)
        self._waiting.append((batch, wide, norms))
        if (
            self._usual is not None
            or sum(len(one) for one, _, _ in self._waiting) >= WARMUP_SAMPLES
        ):
            self._process_pending()

    def draw(self, count: int) -> tuple[list[ReservoirItem], Tensor]:
        """Draw samples, in the stream's order, with their inclusion probabilities `[m]`."""
        self._process_pending()
        chosen = sorted(self._items[:count], key=lambda item: item.index)
        probabilities = inclusion_probabilities(torch.cat(self._sizes), len(chosen))
        return chosen, probabilities[[item.index for item in chosen]]

    def _process_pending(self) -> None:
        if self._usual is None:
            self._usual = torch.cat([norms for _, _, norms in self._waiting])[:WARMUP_SAMPLES].mean(
                dim=0
            )
        for batch, scores, norms in self._waiting:
            # A tap whose scores were all zero does not count.
            relative = torch.where(self._usual > 0, norms / self._usual, 0.0)
            sizes = relative.mean(dim=1) + BASE
            draws = torch.rand(len(batch), generator=self._generator, dtype=torch.float64)
            self._sizes.append(sizes)
            self._insert(batch, scores, draws / sizes)
        self._waiting.clear()

    def _insert(self, batch: Batch, scores: dict[str, Tensor], keys: Tensor) -> None:
        for i, key in enumerate(keys.tolist()):
            if len(self._items) < self._limit or key < self._items[-1].key:
                # Copies, so that the whole batch can be freed.
                self._items.append(
                    ReservoirItem(
                        sample=batch[torch.tensor([i])],
                        scores={tap: rows[i].clone() for tap, rows in scores.items()},
                        index=self._count + i,
                        key=key,
                    )
                )
                self._items.sort(key=lambda item: item.key)
                del self._items[self._limit :]
        self._count += len(batch)
