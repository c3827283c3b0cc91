"""The figures by which networks are compared, and how they are written."""

import dataclasses
import math
from typing import Literal, final

Metric = Literal["accuracy", "mean_class_accuracy", "roc_auc", "rmse"]
"""What the field reports of a data set: the share of right answers, its mean over classes, the area
under the receiver operating characteristic, or the root of the mean squared error."""

Name = Literal["accuracy", "roc_auc", "rmse"]

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of answers to what was held out.

    Args:
        name: in the names of keys and columns, as in `test_accuracy`.
        words: in a sentence.
        plural: of several.
        percent: it lies between 0 and 1, and is written in percent.
        sign: behind a number that is written.
        higher: more is better.
    """

    name: Name
    words: str
    plural: str
    percent: bool
    sign: str
    higher: bool

    @property
    def scale(self) -> int:
        """What a value is multiplied by where it is written."""
        return 100 if self.percent else 1

    @property
    def title(self) -> str:
        """The words, as the start of a title."""
        return self.words[0].upper() + self.words[1:]

    @property
    def heading(self) -> str:
        """What a column has."""
        unit = " in percent" if self.percent else ", lower is better"
        return f"{self.words}{unit}"

    @property
    def best(self) -> str:
        """What the best value is."""
        return "highest" if self.higher else "lowest"

    @property
    def step(self) -> str:
        """What a difference is counted in, behind a heading."""
        return ", points" if self.percent else ""

    @property
    def points(self) -> str:
        """What differences are counted in; nothing where in the unit of the values."""
        return "points" if self.percent else ""

    def possible(self, value: float) -> bool:
        """Whether it can be the value of this measure."""
        return 0 <= value <= 1 if self.percent else value >= 0

    def text(self, value: float | None) -> str:
        """A value; a dash where there is none.

        Example:
            >>> ACCURACY.text(0.8571), ROC_AUC.text(0.7151), RMSE.text(0.58312)
            ('85.7%', '71.5', '0.583')
        """
        if value is None or not math.isfinite(value):
            return NONE
        return f"{self.number(value)}{self.sign}"

    def number(self, value: float) -> str:
        """A value in a column whose unit is known."""
        return f"{100 * value:.1f}" if self.percent else _significant(value)

    def signed(self, difference: float) -> str:
        """A difference in such a column, in plain characters."""
        if self.percent:
            return f"{100 * difference:+.1f}"
        return f"{'-' if difference < 0 else '+'}{_significant(abs(difference))}"

    def difference(self, value: float) -> str:
        """A difference of values with its sign; of percentages in points.

        Example:
            >>> ACCURACY.difference(0.018), ACCURACY.difference(-0.0001), RMSE.difference(0.0123)
            ('+1.8', '0.0', '+0.0123')
        """
        rounded = self.rounded(value)
        size = f"{abs(rounded):.1f}" if self.percent else _significant(abs(rounded))
        if rounded == 0:
            return size
        return f"{'+' if rounded > 0 else MINUS}{size}"

    def apart(self, value: float) -> str:
        """A difference in a sentence.

        Example:
            >>> ROC_AUC.apart(0.018), RMSE.apart(0.0123)
            ('+1.8 points', '+0.0123')
        """
        return f"{self.difference(value)} {self.points}".rstrip()

    def rounded(self, difference: float) -> float:
        """A difference as it is written."""
        if self.percent:
            return round(100 * difference, 1)
        return float(_significant(difference))

    def gain(self, value: float, other: float) -> float:
        """How much better a value is than another."""
        return value - other if self.higher else other - value

    def tick(self, value: float) -> str:
        """A number beside an axis that is scaled."""
        return f"{value:g}{self.sign}"

    def within(self, low: float, high: float) -> tuple[float, float]:
        """The ends of an axis that is scaled, without what no value can be."""
        return max(0, low), min(100, high) if self.percent else high


ACCURACY = Measure(
    name="accuracy", words="accuracy", plural="accuracies", percent=True, sign="%", higher=True
)
ROC_AUC = Measure(
    name="roc_auc", words="ROC-AUC", plural="figures", percent=True, sign="", higher=True
)
RMSE = Measure(name="rmse", words="RMSE", plural="figures", percent=False, sign="", higher=False)

MEASURES: dict[str, Measure] = {
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
