"""Means, paired differences and confidence intervals, of a few runs and of accuracies."""

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


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95% confidence interval of an accuracy (Wilson's score interval).

    Unlike `p ± 2 sqrt(p (1 - p) / n)` it is right for few samples, and for 100%.

    Args:
        correct: number of right predictions.
        total: number of predictions, at least 1.

    Example:
        >>> [round(limit, 2) for limit in accuracy_interval(6, 6)]
        [0.61, 1.0]
    """
    from scipy.stats import binomtest  # slow to import

    found = binomtest(correct, total).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def accuracy_difference(gained: int, lost: int, total: int) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same samples, and its 95% interval.

    The interval is Wald's after adding half a sample to each kind of disagreement (Agresti and Min,
    Statistics in Medicine 2005, https://doi.org/10.1002/sim.1781).

    Args:
        gained: number of samples that only the first one gets right.
        lost: number of samples that only the second one gets right.
        total: number of samples, at least 1.

    Example:
        >>> [round(value, 2) for value in accuracy_difference(8, 2, 60)]
        [0.1, -0.01, 0.2]
    """
    b, c, n = gained + 0.5, lost + 0.5, total + 2
    centre = (b - c) / n
    half = 1.96 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return (gained - lost) / total, max(-1.0, centre - half), min(1.0, centre + half)
