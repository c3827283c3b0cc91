"""The metrics by which networks are compared, and their text form."""

import dataclasses
import math
from typing import Literal, final

MetricName = Literal["accuracy", "mean_class_accuracy", "roc_auc", "rmse"]
"""The metric that the field reports for a dataset."""

MetricKey = Literal["accuracy", "roc_auc", "rmse"]

MINUS = "\N{MINUS SIGN}"
NO_VALUE = "\N{EN DASH}"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of predictions on held-out data.

    Args:
        name: its name in JSON keys and CSV columns, as in `test_accuracy`.
        display_name: its name in a sentence.
        percent: values are between 0 and 1 and formatted as percentages.
        higher_is_better: as in torchmetrics.
        plural: the word for several values of it.
        unit: suffix of a formatted value.
    """

    name: MetricKey
    display_name: str
    percent: bool
    higher_is_better: bool
    plural: str = "metrics"
    unit: str = ""

    @property
    def scale(self) -> int:
        """Factor from a value to the formatted number."""
        return 100 if self.percent else 1

    @property
    def title(self) -> str:
        """The display name, capitalised."""
        return self.display_name[0].upper() + self.display_name[1:]

    @property
    def heading(self) -> str:
        """The heading of a table column."""
        unit = " in percent" if self.percent else ", lower is better"
        return f"{self.display_name}{unit}"

    @property
    def superlative(self) -> str:
        """The word for the best value."""
        return "highest" if self.higher_is_better else "lowest"

    @property
    def difference_suffix(self) -> str:
        """Suffix of the heading of a column of differences."""
        return ", points" if self.percent else ""

    @property
    def difference_unit(self) -> str:
        """Unit of differences; empty if it is the unit of the values."""
        return "points" if self.percent else ""

    def is_valid(self, value: float) -> bool:
        """Return True if the metric can have this value."""
        return 0 <= value <= 1 if self.percent else value >= 0

    def format(self, value: float | None) -> str:
        """Format a value; a dash if it is missing.

        Example:
            >>> ACCURACY.format(0.8571), ROC_AUC.format(0.7151), RMSE.format(0.58312)
            ('85.7%', '71.5', '0.583')
        """
        if value is None or not math.isfinite(value):
            return NO_VALUE
        return f"{self.format_number(value)}{self.unit}"

    def format_number(self, value: float) -> str:
        """Format a value without its unit, for a column whose heading has it."""
        return f"{100 * value:.1f}" if self.percent else _significant(value)

    def format_signed(self, difference: float) -> str:
        """Format a difference without its unit, in ASCII."""
        if self.percent:
            return f"{100 * difference:+.1f}"
        return f"{'-' if difference < 0 else '+'}{_significant(abs(difference))}"

    def format_difference(self, value: float) -> str:
        """Format a difference with its sign; percentages in points.

        Example:
            >>> [ACCURACY.format_difference(value) for value in (0.018, -0.0001)]
            ['+1.8', '0.0']
            >>> RMSE.format_difference(0.0123)
            '+0.0123'
        """
        rounded = self.round_difference(value)
        size = f"{abs(rounded):.1f}" if self.percent else _significant(abs(rounded))
        if rounded == 0:
            return size
        return f"{'+' if rounded > 0 else MINUS}{size}"

    def format_difference_with_unit(self, value: float) -> str:
        """Format a difference for a sentence.

        Example:
            >>> ROC_AUC.format_difference_with_unit(0.018)
            '+1.8 points'
        """
        return f"{self.format_difference(value)} {self.difference_unit}".rstrip()

    def round_difference(self, difference: float) -> float:
        """Round a difference to the digits that are shown."""
        if self.percent:
            return round(100 * difference, 1)
        return float(_significant(difference))

    def gain(self, value: float, other: float) -> float:
        """Return by how much a value is better than another."""
        return value - other if self.higher_is_better else other - value

    def format_tick(self, value: float) -> str:
        """Format a number on a scaled axis."""
        return f"{value:g}{self.unit}"

    def axis_limits(self, low: float, high: float) -> tuple[float, float]:
        """Clip the limits of a scaled axis to possible values."""
        return max(0, low), min(100, high) if self.percent else high


ACCURACY = Metric(
    name="accuracy",
    display_name="accuracy",
    percent=True,
    higher_is_better=True,
    plural="accuracies",
    unit="%",
)
ROC_AUC = Metric(name="roc_auc", display_name="ROC-AUC", percent=True, higher_is_better=True)
RMSE = Metric(name="rmse", display_name="RMSE", percent=False, higher_is_better=False)

METRICS: dict[str, Metric] = {
    "accuracy": ACCURACY,
    "mean_class_accuracy": ACCURACY,
    "roc_auc": ROC_AUC,
    "rmse": RMSE,
}
"""Reported metric -> the metric by which networks are compared on that dataset."""


def _significant(value: float) -> str:
    """Format to three significant digits; from 1,000 on, to the integer.

    Example:
        >>> _significant(1234.5), _significant(127.2), _significant(1.5), _significant(0.00012345)
        ('1234', '127', '1.50', '0.000123')
    """
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".removesuffix(".")
