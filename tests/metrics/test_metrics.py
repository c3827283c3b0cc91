"""How figures are written: percentages and their points, and errors in the unit of the values."""

import math

import pytest

from delta_transfer.metrics.metrics import ACCURACY, MINUS, NO_VALUE, RMSE, ROC_AUC, Metric


@pytest.mark.parametrize(
    ("measure", "value", "text"),
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
def test_values(measure: Metric, value: float | None, text: str) -> None:
    assert measure.format(value) == text


@pytest.mark.parametrize(
    ("measure", "difference", "text", "plain"),
    [
        (ACCURACY, 0.018, "+1.8", "+1.8"),
        (ROC_AUC, -0.0204, f"{MINUS}2.0", "-2.0"),
        (ACCURACY, -0.0001, "0.0", "-0.0"),
        (RMSE, -0.01234, f"{MINUS}0.0123", "-0.0123"),
        (RMSE, 1500.0, "+1500", "+1500"),
    ],
)
def test_differences(measure: Metric, difference: float, text: str, plain: str) -> None:
    assert measure.format_difference(difference) == text
    assert measure.format_signed(difference) == plain


def test_what_is_better() -> None:
    assert ROC_AUC.gain(0.8, 0.7) == pytest.approx(0.1)
    assert RMSE.gain(0.8, 0.7) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("measure", "value"), [(ACCURACY, 1.01), (ROC_AUC, -0.1), (RMSE, -0.1), (RMSE, math.nan)]
)
def test_what_no_value_can_be(measure: Metric, value: float) -> None:
    assert not measure.is_valid(value)
