import math

import numpy as np
import pytest
import scipy.stats

from delta_transfer.metrics.statistics import (
    accuracy_difference,
    accuracy_interval,
    paired_difference,
    summarize,
)

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


@pytest.mark.parametrize(("correct", "total"), [(0, 6), (6, 6), (30, 40), (1, 2)])
def test_limits_of_an_accuracy_are_those_of_the_score_test(correct, total):
    """Wilson's interval: the accuracies from which the observed one is 1.96 errors away."""
    share, z = correct / total, scipy.stats.norm.ppf(0.975)
    found = accuracy_interval(correct, total)
    assert found[0] <= share <= found[1]
    for limit in found:
        if 0 < limit < 1:
            assert abs(share - limit) == pytest.approx(z * math.sqrt(limit * (1 - limit) / total))


def test_difference_of_accuracies_swaps_its_sign():
    one, other = accuracy_difference(8, 2, 60), accuracy_difference(2, 8, 60)
    assert one == pytest.approx((-other[0], -other[2], -other[1]))
    assert one[0] == pytest.approx(0.1)


def test_difference_of_accuracies_stays_within_its_range():
    assert accuracy_difference(2, 0, 2)[2] == 1
    assert accuracy_difference(0, 0, 1000)[1] < 0 < accuracy_difference(0, 0, 1000)[2]


def test_difference_of_accuracies_is_covered():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        gained, lost, _ = generator.multinomial(50, (0.12, 0.05, 0.83))
        _, low, high = accuracy_difference(int(gained), int(lost), 50)
        covered += low <= 0.07 <= high
    assert covered >= 930


def test_difference_of_accuracies_is_computed_by_hand():
    difference, low, high = accuracy_difference(8, 2, 60)
    # 8.5 and 2.5 of 62 samples: 6 / 62 and 1.96 sqrt(11 - 36 / 62) / 62.
    assert difference == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.096774 - 0.102043, 0.096774 + 0.102043), abs=1e-5)
