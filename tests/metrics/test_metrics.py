"""Formatting of metrics: percentages, percentage points, and errors in their own unit."""

import math

import pytest

from delta_transfer.metrics.metrics import ACCURACY, MINUS, NO_VALUE, RMSE, ROC_AUC, Metric


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (ACCURACY, 0.8571, "85.7%"),
        (ROC_AUC, 0.7149, "71.5"),
        (RMSE, 0.58312, "0.583"),
        (RMSE, 38.0, "38.0"),
        (RMSE, 127.4, "127"),
        (RMSE, 999.9, "1000"),
        (RMSE, 12345.6, "12346"),
        (RMSE, math.nan, NO_VALUE),
        (ROC_AUC, None, NO_VALUE),
    ],
)
def test_values(metric: Metric, value: float | None, text: str) -> None:
    assert metric.format(value) == text


@pytest.mark.parametrize(
    ("metric", "difference", "text", "plain"),
    [
        (ACCURACY, 0.018, "+1.8", "+1.8"),
        (ROC_AUC, -0.0204, f"{MINUS}2.0", "-2.0"),
        (ACCURACY, -0.0001, "0.0", "-0.0"),
        (RMSE, -0.01234, f"{MINUS}0.0123", "-0.0123"),
        (RMSE, 1500.0, "+1500", "+1500"),
    ],
)
def test_differences(metric: Metric, difference: float, text: str, plain: str) -> None:
    assert metric.format_difference(difference) == text
    assert metric.format_signed(difference) == plain


def test_gain_is_positive_if_better() -> None:
    assert ROC_AUC.gain(0.8, 0.7) == pytest.approx(0.1)
    assert RMSE.gain(0.8, 0.7) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("metric", "value"), [(ACCURACY, 1.01), (ROC_AUC, -0.1), (RMSE, -0.1), (RMSE, math.nan)]
)
def test_impossible_values(metric: Metric, value: float) -> None:
    assert not metric.is_valid(value)
