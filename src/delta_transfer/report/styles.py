"""Plot styles of methods: the same in every figure, and distinguishable without colour."""

import dataclasses
from collections.abc import Sequence

from delta_transfer.report.figures import INK, SERIES

LineStyle = str | tuple[int, tuple[float, ...]]

# Their counts have no common divisor: two styles that share one of the three differ in the others.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES: tuple[LineStyle, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (2, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (9, 1.5, 1.5, 1.5, 1.5, 1.5)),
)
# The most frequently compared methods come first: they have distinct colours.
STYLED_METHODS = (
    "delta l2 l2sp lp_ft delta_attention ldifs lwf bss stochnorm co_tuning rifle spd gtot"
).split()


@dataclasses.dataclass(frozen=True)
class MethodStyle:
    """Colour, marker and dashes of a method, in matplotlib's format."""

    colour: str
    marker: str
    line_style: LineStyle


def method_style(method: str, methods: Sequence[str]) -> MethodStyle:
    """Return a method's style: its own, or the next free one.

    Args:
        method: its name.
        methods: all that are compared, in their order.
    """
    if method == "probe":
        return MethodStyle(INK, "o", "--")
    others = [name for name in methods if name not in STYLED_METHODS and name != "probe"]
    number = (
        STYLED_METHODS.index(method)
        if method in STYLED_METHODS
        else len(STYLED_METHODS) + others.index(method)
    )
    return MethodStyle(
        SERIES[number % len(SERIES)],
        MARKERS[number % len(MARKERS)],
        LINE_STYLES[number % len(LINE_STYLES)],
    )
