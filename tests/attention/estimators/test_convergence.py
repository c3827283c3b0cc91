import math
from functools import partial

import pytest
import torch

from delta_transfer.attention.estimators.convergence import jackknife_error, monte_carlo_error
from delta_transfer.attention.estimators.statistics import GROUPS, ScoreStatistics
from delta_transfer.functional import normalize_scores
from tests import reference

attend = partial(normalize_scores, temperature=5.0)


def scores(count=45, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.linspace(-1, 2, channels, dtype=torch.float64)
    noise = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return means + 0.5 * noise


def statistics_of(rows) -> ScoreStatistics:
    statistics = ScoreStatistics()
    statistics.update(rows, indices=torch.arange(len(rows)))
    return statistics


def jackknifed(rows, normalize=attend, dtype=torch.float64) -> float:
    return jackknife_error(statistics_of(rows), normalize, dtype=dtype)


@pytest.mark.parametrize("count", [2, 7, 10, 45])
@pytest.mark.parametrize(
    "form", [{}, {"score_clip": 1.0, "clamp_negative_scores": True}], ids=["plain", "clipped"]
)
def test_the_jackknife_is_the_reference(count, form):
    rows = scores(count)
    normalize = partial(normalize_scores, temperature=2.0, **form)
    error = reference.jackknife(
        rows.tolist(), lambda mean: reference.attention(mean, 2.0, **form), GROUPS
    )
    attention = reference.attention(rows.mean(dim=0).tolist(), 2.0, **form)
    distance = math.sqrt(math.fsum((a - 1 / len(attention)) ** 2 for a in attention))
    assert jackknifed(rows, normalize) == pytest.approx(error / distance, rel=1e-9)


def test_the_jackknife_tells_the_spread_over_new_samples():
    found = [jackknifed(scores(200, seed=seed)) for seed in range(20)]
    attentions = torch.stack([attend(scores(200, seed=seed).mean(dim=0)) for seed in range(300)])
    centre = attentions.mean(dim=0)
    spread = (attentions - centre).square().sum(dim=1).mean().sqrt()
    expected = (spread / (centre - 1 / 6).norm()).item()
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.25)


def test_a_common_shift_of_all_scores_is_no_error_of_the_attention():
    rows = scores(1).repeat(50, 1)
    shifts = torch.randn(50, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert jackknifed(rows + 10 * shifts) == pytest.approx(0, abs=1e-9)


def test_more_samples_are_surer_and_equal_samples_are_sure():
    few, many = (jackknifed(scores(count)) for count in (20, 2000))
    assert many < few / 5
    assert jackknifed(torch.arange(6.0).repeat(30, 1)) == 0


def test_what_is_not_known_is_nan_and_a_tap_without_influence_is_sure():
    assert math.isnan(jackknifed(scores(1)))
    assert jackknifed(torch.zeros(30, 6)) == 0
    # Equal up to rounding in the precision of the scores: uniform without doubt.
    rounding = 0.1 + 1e-9 * scores(30)
    assert jackknifed(rounding, dtype=torch.float32) == 0
    assert jackknifed(rounding, dtype=torch.float64) > 0


def test_uniform_attention_of_samples_that_differ_is_not_sure_at_all():
    rows = torch.zeros(20, 2, dtype=torch.float64)
    rows[:10, 0], rows[10:, 1] = 1, 1  # all groups but none make the channels equal
    rows[0] = torch.tensor([3.0, 0.0])
    rows[10] = torch.tensor([0.0, 3.0])
    rows[1], rows[11] = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    rows[2], rows[12] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    assert attend(rows.mean(dim=0)).tolist() == [0.5, 0.5]
    assert jackknifed(rows) == math.inf


def test_independent_errors_are_propagated():
    values, errors = scores(1)[0], torch.full((6,), 0.05, dtype=torch.float64)
    found = monte_carlo_error(values, errors, attend, seed=0)
    # Small errors: by the slopes of the attention, one score at a time.
    total, step = 0.0, 1e-5
    for c in range(6):
        moved = values.clone()
        moved[c] += step
        slope = (attend(moved) - attend(values)) / step
        total += (slope * errors[c]).square().sum().item()
    distance = (attend(values) - 1 / 6).norm().item()
    assert found == pytest.approx(math.sqrt(total) / distance, rel=0.1)
    assert monte_carlo_error(values, errors, attend, seed=0) == found
    assert monte_carlo_error(values, 2 * errors, attend, seed=0) == pytest.approx(
        2 * found, rel=0.2
    )


def test_no_errors_are_sure_and_unknown_ones_are_not_known():
    values = scores(1)[0]
    assert monte_carlo_error(values, torch.zeros(6), attend, seed=0) == 0
    assert math.isnan(monte_carlo_error(values, torch.full((6,), math.nan), attend, seed=0))


def test_both_agree_where_scores_are_independent():
    rows = scores(400)
    statistics = statistics_of(rows)
    found = monte_carlo_error(statistics.mean, statistics.standard_errors, attend, seed=0)
    assert found == pytest.approx(jackknifed(rows), rel=0.35)
