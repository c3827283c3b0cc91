"""Running statistics of one tap's scores: means, standard errors, most influential samples."""

from collections.abc import Mapping
from typing import Self, final

import torch
from torch import Tensor

from delta_transfer.features.variance import Moments

GROUPS = 10
NUM_INFLUENTIAL = 4


@final
class ScoreStatistics:
    """Statistics of the scores of all samples so far, independent of their batches.

    In float64 on the CPU. Every tenth sample is in the same group; the means without each group are
    those of the jackknife.

    Example:
        >>> statistics = ScoreStatistics()
        >>> scores = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> statistics.update(scores, indices=torch.tensor([7, 2]))
        >>> statistics.mean.tolist(), statistics.standard_errors.tolist()
        ([2.0, 0.0], [1.0, 0.0])
        >>> statistics.influential_samples[0].tolist()
        [2, 7]
    """

    def __init__(self) -> None:
        self._moments = Moments()
        self._group_counts = torch.zeros(GROUPS, dtype=torch.float64)
        self._group_sums = torch.zeros(GROUPS, 0, dtype=torch.float64)
        self._largest = torch.zeros(0, 0, dtype=torch.float64)
        self._influential_samples = torch.zeros(0, 0, dtype=torch.int64)

    def update(self, scores: Tensor, *, indices: Tensor) -> None:
        """Update with scores `[B, C]` of samples at positions `[B]` of the data."""
        rows = scores.detach().cpu().double()
        if self.count == 0:
            channels = rows.shape[1]
            self._group_sums = rows.new_zeros(GROUPS, channels)
            self._largest = rows.new_zeros(0, channels)
            self._influential_samples = torch.zeros(0, channels, dtype=torch.int64)
        groups = torch.arange(self.count, self.count + len(rows)) % GROUPS
        self._group_counts += torch.bincount(groups, minlength=GROUPS)
        self._group_sums.index_add_(0, groups, rows)
        self._moments.update(rows)
        # Stable, so that of equal scores the earliest are kept, however samples are batched.
        growth = torch.cat([self._largest, rows])
        order = growth.sort(dim=0, descending=True, stable=True).indices[:NUM_INFLUENTIAL]
        where = indices.cpu().unsqueeze(1).expand(rows.shape)
        self._largest = growth.gather(0, order)
        self._influential_samples = torch.cat([self._influential_samples, where]).gather(0, order)

    @property
    def count(self) -> int:
        """Number of samples."""
        return self._moments.count

    @property
    def mean(self) -> Tensor:
        """`[C]`, float64."""
        return self._moments.mean.clone()

    @property
    def standard_errors(self) -> Tensor:
        """Standard errors of the mean `[C]`, float64; NaN of fewer than two samples."""
        if self.count < 2:
            return torch.full_like(self._moments.mean, torch.nan)
        return (self._moments.squares / (self.count - 1) / self.count).sqrt()

    @property
    def influential_samples(self) -> Tensor:
        """`[C, k]`: positions of the samples with the largest scores, in order; k is at most 4."""
        return self._influential_samples.T.contiguous()

    @property
    def leave_one_group_out_means(self) -> Tensor:
        """`[G, C]`: means of all samples outside each group; G is at most 10."""
        found = self._group_counts > 0
        if self.count == 0 or found.sum() < 2:
            return self._group_sums.new_zeros(0, self._group_sums.shape[1])
        sums, counts = self._group_sums[found], self._group_counts[found]
        return (sums.sum(dim=0) - sums) / (self.count - counts).unsqueeze(1)

    def state(self) -> dict[str, Tensor]:
        """Return the state, as tensors that share no memory with it."""
        return {
            **self._moments.state(),
            **{name: getattr(self, f"_{name}").clone() for name in _STATE},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Restore a state."""
        statistics = cls()
        statistics._moments = Moments.from_state(state)
        for name in _STATE:
            setattr(statistics, f"_{name}", state[name].clone())
        return statistics


_STATE = ("group_counts", "group_sums", "largest", "influential_samples")
