"""How a method looks: the same in every figure, and told apart without its colour too."""

import dataclasses
from collections.abc import Sequence

from delta_transfer.report.figures import INK, SERIES

Dash = str | tuple[int, tuple[float, ...]]

# Their numbers have no common divisor: two looks that share one of the three differ in both others.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Dash, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (2, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (9, 1.5, 1.5, 1.5, 1.5, 1.5)),
)
# Those that are compared most come first: they have colours of their own.
METHODS = (
    "delta l2 l2sp lp_ft delta_no_attention ldifs lwf bss stochnorm co_tuning rifle spd gtot"
).split()


@dataclasses.dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of a method, as matplotlib takes them."""

    colour: str
    marker: str
    dash: Dash


def look(method: str, methods: Sequence[str]) -> Look:
    """The look of a method: its own, or the next that is free.

    Args:
        method: its name.
        methods: all that are compared, in their order.
    """
    if method == "probe":
        return Look(INK, "o", "--")
    others = [name for name in methods if name not in METHODS and name != "probe"]
    number = METHODS.index(method) if method in METHODS else len(METHODS) + others.index(method)
    return Look(
        SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)]
    )
