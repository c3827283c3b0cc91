"""Incremental feature variance, the unit of the distance between feature maps."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from delta_transfer.errors import DataError
from delta_transfer.functional import at_least_float32
from delta_transfer.utils.distributed import all_gather, world_size

# Smallest variance, relative to the mean square, so that distances do not depend on the scale of
# the features; far above the rounding errors of constant features (1e-14 in float32).
RELATIVE_VARIANCE_FLOOR = 1e-9


class Moments:
    """Mean and sum of squared deviations of rows `[N, C]`, updated batch by batch.

    Batches are merged (Chan et al. 1983), without the cancellation of `E[x^2] - E[x]^2`. The
    results have the dtype and device of the rows.

    Example:
        >>> moments = Moments()
        >>> for rows in torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]]):
        ...     moments.update(rows)
        >>> moments.count, moments.mean, moments.squares
        (4, tensor([3.]), tensor([20.]))
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def update(self, rows: Tensor) -> None:
        """Add floating-point rows `[N, C]`."""
        mean = rows.mean(dim=0)
        self.merge(len(rows), mean, (rows - mean).square().sum(dim=0))

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Add `count` rows with this mean and sum of squared deviations."""
        if self.count:
            total = self.count + count
            shift = mean - self.mean
            squares = squares + self.squares + shift.square() * (self.count * count / total)
            mean = self.mean + shift * (count / total)
        self.count += count
        self.mean, self.squares = mean, squares

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the state as tensors."""
        count = torch.tensor(self.count)
        return {"count": count, "mean": self.mean.clone(), "squares": self.squares.clone()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, device: torch.device | None = None) -> Self:
        """Restore moments from `state()`, for rows on a device."""
        moments = cls()
        moments.count = int(state["count"])
        moments.mean = state["mean"].clone().to(device)
        moments.squares = state["squares"].clone().to(device)
        return moments


class FeatureVariance:
    """Mean over channels of the variance over samples and positions, updated batch by batch.

    For rows `[R, C]` (graph nodes), the variance is over all rows, so that large samples have more
    weight. It is computed in float32 or wider, see `Moments`.

    Example:
        >>> variance = FeatureVariance()
        >>> variance.update(torch.tensor([[0.0], [2.0]]))
        >>> variance.compute()
        tensor(1.)
    """

    def __init__(self, moments: Moments | None = None) -> None:
        self._moments = moments or Moments()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the variance: that of the features, at least float32."""
        return self._moments.mean.dtype

    def update(self, features: Tensor) -> None:
        """Add features `[..., C]`."""
        self._moments.update(at_least_float32(features.detach()).flatten(0, -2))

    def compute(self) -> Tensor:
        """Return the variance as a positive scalar.

        At least `RELATIVE_VARIANCE_FLOOR` times the mean square, so that a constant tap does not
        cause a division by zero; 1 for a tap that is always zero, which has no scale; NaN if a
        feature is NaN or infinite.

        Raises:
            DataError: if there were no features.
        """
        if self._moments.count == 0:
            raise DataError("no features to measure: the loader is empty, pass one with data")
        variance = (self._moments.squares / self._moments.count).mean()
        mean_square = variance + self._moments.mean.square().mean()
        variance = torch.maximum(variance, RELATIVE_VARIANCE_FLOOR * mean_square)
        # Not `variance > 0`, which is false for NaN, too.
        return torch.where(variance == 0, torch.ones_like(variance), variance)

    def all_reduce(self) -> Self:
        """Return the variance over all processes; every process has to call this."""
        if world_size() == 1:
            return self
        device = self._moments.mean.device
        moments = Moments()
        for state in all_gather({name: part.cpu() for name, part in self.state().items()}):
            if int(state["count"]):
                part = Moments.from_state(state, device=device)
                moments.merge(part.count, part.mean, part.squares)
        return type(self)(moments)

    def state(self) -> dict[str, Tensor]:
        """Return the state as tensors."""
        return self._moments.state()

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, device: torch.device) -> Self:
        """Restore the variance from `state()`, for features on a device."""
        return cls(Moments.from_state(state, device=device))
