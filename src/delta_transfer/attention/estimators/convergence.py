"""Relative standard error of the attention of a tap.

The attention `a` of C channels depends on the drawn samples. Its standard error is that of a
vector, `||SE(a)|| = sqrt(sum_c SE(a_c)^2)`, relative to its distance from uniform, `||a - 1/C||`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from delta_transfer.attention.estimators.statistics import ScoreStatistics

Normalize = Callable[[Tensor], Tensor]
"""Maps scores `[C]` to attention `[C]`."""

# Convergence is not checked earlier.
MIN_BATCHES = 3
MIN_SAMPLES = 20
DRAWS = 200
ROUNDING = 1e-6  # of attention, relative to its size


def jackknife_error(
    statistics: ScoreStatistics, normalize: Normalize, *, dtype: torch.dtype
) -> float:
    """Return the relative standard error of the attention, by the jackknife over groups of samples.

    `SE(a_c)^2 = (G - 1) / G sum_g (a_c without group g - their mean)^2` (Efron & Stein, Annals of
    Statistics 1981): correlations between channels count. Differences within the rounding of the
    scores' `dtype` are ignored.

    Returns:
        NaN for fewer than two samples; zero if no sample changes the attention.
    """
    means = statistics.leave_one_group_out_means
    groups = len(means)
    if groups < 2:
        return math.nan
    without = torch.stack([normalize(mean) for mean in means.to(dtype)])
    squares = (without - without.mean(dim=0)).square().sum().item() * (groups - 1) / groups
    return _relative(squares, normalize(statistics.mean.to(dtype)))


def monte_carlo_error(scores: Tensor, errors: Tensor, normalize: Normalize, *, seed: int) -> float:
    """Return the relative standard error of the attention, from independent errors of its scores.

    From 200 draws of normal errors, `SE(a_c)^2 = mean_k (a_c(s + e_k) - a_c(s))^2`.

    Returns:
        NaN if an error is not known; zero if all of them are.
    """
    if not torch.isfinite(errors).all():
        return math.nan
    generator = torch.Generator().manual_seed(seed)
    shape = (DRAWS, len(scores))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64) * errors
    attention = normalize(scores)
    drawn = torch.stack([normalize(row) for row in scores + noise.to(scores)])
    return _relative((drawn - attention).square().sum().item() / DRAWS, attention)


def _relative(squared_error: float, attention: Tensor) -> float:
    distance = (attention - 1 / len(attention)).square().sum().item()
    rounding = ROUNDING**2 * attention.square().sum().item()
    if squared_error <= rounding:
        return 0.0
    return math.inf if distance <= rounding else math.sqrt(squared_error / distance)
