"""The figures by which networks are compared, and how they are written."""

import dataclasses
import math
from typing import Literal, final

MetricName = Literal["accuracy", "mean_class_accuracy", "roc_auc", "rmse"]
"""What the field reports of a data set: the share of right answers, its mean over classes, the area
under the receiver operating characteristic, or the root of the mean squared error."""

MetricKey = Literal["accuracy", "roc_auc", "rmse"]

MINUS = "\N{MINUS SIGN}"
NO_VALUE = "\N{EN DASH}"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of answers to what was held out.

    Args:
        name: in the names of keys and columns, as in `test_accuracy`.
        display_name: in a sentence.
        plural: of several.
        percent: it lies between 0 and 1, and is written in percent.
        unit: behind a number that is written.
        higher_is_better: more is better.
    """

    name: MetricKey
    display_name: str
    plural: str
    percent: bool
    unit: str
    higher_is_better: bool

    @property
    def scale(self) -> int:
        """What a value is multiplied by where it is written."""
        return 100 if self.percent else 1

    @property
    def title(self) -> str:
        """The words, as the start of a title."""
        return self.display_name[0].upper() + self.display_name[1:]

    @property
    def heading(self) -> str:
        """What a column has."""
        unit = " in percent" if self.percent else ", lower is better"
        return f"{self.display_name}{unit}"

    @property
    def superlative(self) -> str:
        """What the best value is."""
        return "highest" if self.higher_is_better else "lowest"

    @property
    def difference_suffix(self) -> str:
        """What a difference is counted in, behind a heading."""
        return ", points" if self.percent else ""

    @property
    def difference_unit(self) -> str:
        """What differences are counted in; nothing where in the unit of the values."""
        return "points" if self.percent else ""

    def is_valid(self, value: float) -> bool:
        """Whether it can be the value of this measure."""
        return 0 <= value <= 1 if self.percent else value >= 0

    def format(self, value: float | None) -> str:
        """A value; a dash where there is none.

        Example:
            >>> ACCURACY.text(0.8571), ROC_AUC.text(0.7151), RMSE.text(0.58312)
            ('85.7%', '71.5', '0.583')
        """
        if value is None or not math.isfinite(value):
            return NO_VALUE
        return f"{self.format_number(value)}{self.unit}"

    def format_number(self, value: float) -> str:
        """A value in a column whose unit is known."""
        return f"{100 * value:.1f}" if self.percent else _significant(value)

    def format_signed(self, difference: float) -> str:
        """A difference in such a column, in plain characters."""
        if self.percent:
            return f"{100 * difference:+.1f}"
        return f"{'-' if difference < 0 else '+'}{_significant(abs(difference))}"

    def format_difference(self, value: float) -> str:
        """A difference of values with its sign; of percentages in points.

        Example:
            >>> ACCURACY.difference(0.018), ACCURACY.difference(-0.0001), RMSE.difference(0.0123)
            ('+1.8', '0.0', '+0.0123')
        """
        rounded = self.round_difference(value)
        size = f"{abs(rounded):.1f}" if self.percent else _significant(abs(rounded))
        if rounded == 0:
            return size
        return f"{'+' if rounded > 0 else MINUS}{size}"

    def format_difference_with_unit(self, value: float) -> str:
        """A difference in a sentence.

        Example:
            >>> ROC_AUC.apart(0.018), RMSE.apart(0.0123)
            ('+1.8 points', '+0.0123')
        """
        return f"{self.format_difference(value)} {self.difference_unit}".rstrip()

    def round_difference(self, difference: float) -> float:
        """A difference as it is written."""
        if self.percent:
            return round(100 * difference, 1)
        return float(_significant(difference))

    def gain(self, value: float, other: float) -> float:
        """How much better a value is than another."""
        return value - other if self.higher_is_better else other - value

    def format_tick(self, value: float) -> str:
        """A number beside an axis that is scaled."""
        return f"{value:g}{self.unit}"

    def axis_limits(self, low: float, high: float) -> tuple[float, float]:
        """The ends of an axis that is scaled, without what no value can be."""
        return max(0, low), min(100, high) if self.percent else high


ACCURACY = Metric(
    name="accuracy",
    display_name="accuracy",
    plural="accuracies",
    percent=True,
    unit="%",
    higher_is_better=True,
)
ROC_AUC = Metric(
    name="roc_auc",
    display_name="ROC-AUC",
    plural="figures",
    percent=True,
    unit="",
    higher_is_better=True,
)
RMSE = Metric(
    name="rmse",
    display_name="RMSE",
    plural="figures",
    percent=False,
    unit="",
    higher_is_better=False,
)

METRICS: dict[str, Metric] = {
    "accuracy": ACCURACY,
    "mean_class_accuracy": ACCURACY,
    "roc_auc": ROC_AUC,
    "rmse": RMSE,
}
"""By what networks are compared on data of which the field reports a metric."""


def _significant(value: float) -> str:
    """To three digits, of a number of 1,000 and more to the whole.

    Example:
        >>> _significant(1234.5), _significant(127.2), _significant(1.5), _significant(0.00012345)
        ('1234', '127', '1.50', '0.000123')
    """
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".removesuffix(".")
