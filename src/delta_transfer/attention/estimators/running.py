"""Running statistics of scores and features, by tap."""

from collections.abc import Mapping, Sequence
from typing import Self, final

import torch
from torch import Tensor

from delta_transfer.attention.estimators.convergence import (
    MIN_BATCHES,
    MIN_SAMPLES,
    Normalize,
    jackknife_error,
)
from delta_transfer.attention.estimators.job import Estimate, check_finite
from delta_transfer.attention.estimators.scorer import BatchScores
from delta_transfer.attention.estimators.statistics import ScoreStatistics
from delta_transfer.features.variance import FeatureVariance


@final
class RunningStatistics:
    """Running statistics of each tap."""

    def __init__(self, taps: Sequence[str]) -> None:
        self.statistics = {tap: ScoreStatistics() for tap in taps}
        self.variances = {tap: FeatureVariance() for tap in taps}

    @property
    def samples(self) -> int:
        """Number of scored samples."""
        return next(iter(self.statistics.values())).count

    def update(self, scored: BatchScores, indices: Tensor) -> None:
        """Update with the scores of a batch whose samples are at `indices` of the data."""
        for tap, statistics in self.statistics.items():
            statistics.update(scored.scores[tap], indices=indices)
        for tap, features in scored.features.items():
            self.variances[tap].update(features)

    def uncertainty(self, normalize: Normalize) -> dict[str, float]:
        """Return the relative standard error of the attention, by tap.

        Raises:
            DataError: if a score is not finite.
        """
        check_finite({tap: found.mean for tap, found in self.statistics.items()})
        return {
            tap: jackknife_error(found, normalize, dtype=self.variances[tap].dtype)
            for tap, found in self.statistics.items()
        }

    def has_converged(self, normalize: Normalize, *, tolerance: float, batches: int) -> bool:
        """Return whether the attention of every tap is within the tolerance."""
        if batches < MIN_BATCHES or self.samples < MIN_SAMPLES:
            return False
        return max(self.uncertainty(normalize).values()) <= tolerance

    def estimate(self, normalize: Normalize) -> Estimate:
        """Return the means over all samples."""
        found = self.statistics
        variances = {tap: part.all_reduce() for tap, part in self.variances.items()}
        dtypes = {tap: part.dtype for tap, part in self.variances.items()}
        return Estimate(
            scores={tap: found[tap].mean.to(dtypes[tap]) for tap in found},
            standard_errors={tap: found[tap].standard_errors.to(dtypes[tap]) for tap in found},
            variance={tap: part.compute().cpu() for tap, part in variances.items()},
            influential_samples={tap: found[tap].influential_samples for tap in found},
            uncertainty=self.uncertainty(normalize),
            samples=self.samples,
        )

    def state(self) -> dict[str, Tensor]:
        """Return the state as tensors by name."""
        return {
            f"{kind}/{tap}/{name}": tensor
            for kind, parts in (("scores", self.statistics), ("features", self.variances))
            for tap, part in parts.items()
            for name, tensor in part.state().items()
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], taps: Sequence[str], *, device: torch.device
    ) -> Self:
        """Restore a state; `device` is that of later features.

        Raises:
            KeyError: if an entry is missing.
        """
        running = cls(taps)
        for tap in taps:
            running.statistics[tap] = ScoreStatistics.from_state(_below(state, f"scores/{tap}/"))
            features = _below(state, f"features/{tap}/")
            running.variances[tap] = FeatureVariance.from_state(features, device=device)
        return running


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
