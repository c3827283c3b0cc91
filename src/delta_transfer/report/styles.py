"""How a method looks: the same in every figure, and told apart without its colour too."""

import dataclasses
from collections.abc import Sequence

from delta_transfer.report.figures import INK, SERIES

LineStyle = str | tuple[int, tuple[float, ...]]

# Their numbers have no common divisor: two looks that share one of the three differ in both others.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES: tuple[LineStyle, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (2, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (9, 1.5, 1.5, 1.5, 1.5, 1.5)),
)
# Those that are compared most come first: they have colours of their own.
STYLED_METHODS = (
    "delta l2 l2sp lp_ft delta_no_attention ldifs lwf bss stochnorm co_tuning rifle spd gtot"
).split()


@dataclasses.dataclass(frozen=True)
class MethodStyle:
    """Colour, marker and dashes of a method, as matplotlib takes them."""

    colour: str
    marker: str
    line_style: LineStyle


def method_style(method: str, methods: Sequence[str]) -> MethodStyle:
    """The look of a method: its own, or the next that is free.

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
