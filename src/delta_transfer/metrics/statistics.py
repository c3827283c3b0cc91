"""Means, confidence intervals and paired differences of a few runs."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation, and the 95% confidence interval of the mean.

    Deviation and interval are NaN for fewer than two values.
    """

    count: int
    mean: float
    std: float
    ci_low: float
    ci_high: float


def summarize(values: Sequence[float]) -> Summary:
    """Summarise values with Student's t interval.

    Raises:
        ValueError: if there are no values.

    Example:
        >>> summary = summarize([1.0, 2.0, 3.0])
        >>> summary.mean, summary.std, round(summary.ci_high, 2)
        (2.0, 1.0, 4.48)
    """
    if not values:
        raise ValueError("no values to summarise")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    from scipy.stats import t  # slow to import, and not needed for a single run

    deviation = statistics.stdev(values)
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Summary(len(values), mean, deviation, mean - half, mean + half)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Summary:
    """Summarise `values - baseline` over the seeds that both have.

    Raises:
        ValueError: if they have no seed in common.
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        raise ValueError("no seed in common: nothing to pair")
    return summarize([values[seed] - baseline[seed] for seed in seeds])
