import math

import numpy as np
import pytest
import scipy.stats

from delta_transfer.metrics.statistics import paired_difference, summarize

VALUES = [0.81, 0.79, 0.84, 0.80]


def test_summary_is_that_of_numpy_and_scipy():
    summary = summarize(VALUES)
    low, high = scipy.stats.t.interval(
        0.95, len(VALUES) - 1, loc=np.mean(VALUES), scale=scipy.stats.sem(VALUES)
    )
    assert summary.count == 4
    assert summary.mean == pytest.approx(np.mean(VALUES))
    assert summary.std == pytest.approx(np.std(VALUES, ddof=1))
    assert (summary.ci_low, summary.ci_high) == pytest.approx((low, high))


def test_one_value_has_a_mean_and_no_spread():
    summary = summarize([0.5])
    assert (summary.count, summary.mean) == (1, 0.5)
    assert all(math.isnan(x) for x in (summary.std, summary.ci_low, summary.ci_high))


def test_equal_values_have_an_interval_of_no_width():
    summary = summarize([0.5, 0.5, 0.5])
    assert (summary.std, summary.ci_low, summary.ci_high) == (0.0, 0.5, 0.5)


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values"):
        summarize([])


def test_differences_are_paired_by_seed():
    ours, theirs = {0: 0.8, 1: 0.9, 2: 0.7}, {2: 0.6, 1: 0.85, 5: 0.1}
    paired = paired_difference(ours, theirs)
    assert paired == summarize([0.9 - 0.85, 0.7 - 0.6])
    reference = scipy.stats.ttest_rel([0.9, 0.7], [0.85, 0.6]).confidence_interval(0.95)
    assert (paired.ci_low, paired.ci_high) == pytest.approx((reference.low, reference.high))


def test_no_common_seed_is_an_error():
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})
