"""Accuracy against kept agreement, over strengths and shares of trained weights."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.metrics.run_result import ModelSelection, parse_percent
from delta_transfer.report.figures import (
    HEIGHT,
    INK,
    WIDTH,
    Plot,
    height_with_legend,
    inline_svg,
    legend,
    printable,
)
from delta_transfer.report.formatting import method_label, percent, pluralize, shorten
from delta_transfer.report.styles import method_style
from delta_transfer.report.templates import Table

TITLE = "Accuracy and kept knowledge"
# The lines of a method have its colour, marker and dashes; the filled one has the default.
_FILL_STYLES = ("full", "none", "left", "top", "right", "bottom")

Strengths = tuple[float | None, ...]
Sample = tuple[ModelSelection, str]
"""A run's selection, and the key of one of its mixtures."""


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """A plot of held-out accuracy against kept agreement, and its values."""

    plot: Plot
    table: Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Point:
    """Means over the runs that have a mixture, and how many have chosen it."""

    share: float  # of trained weights; 0 for the start
    agreement: float
    accuracy: float
    num_runs: int
    num_chosen: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Line:
    """The mixtures of one method's trainings with the start, the largest share first."""

    method: str
    name: str
    number: int  # within the method; 0 has the default
    points: list[_Point]


def trade_off(selections: Mapping[str, Sequence[ModelSelection]]) -> TradeOff | None:
    """Plot a line per method and strength, through its shares of trained weights to the start.

    Args:
        selections: of the runs of each method, such as of several seeds; none for a method without
            training. All methods that are compared, in their order.

    Returns:
        The plot and its table, or None if no run has both accuracies and agreements.
    """
    lines = [line for method, found in selections.items() for line in _lines(method, found)]
    if not lines:
        return None
    return TradeOff(_plot(lines, list(selections)), _table(lines))


def _lines(method: str, selections: Sequence[ModelSelection]) -> list[_Line]:
    samples: dict[Strengths, dict[float, list[Sample]]] = {}
    for selection in selections:
        keys = [key for key in selection.agreements if key in selection.accuracies]
        trained = {key: _trained(selection, key) for key in keys}
        for strengths in dict.fromkeys(trained.values()):
            if not strengths:
                continue
            for key in keys:
                if trained[key] in (strengths, ()):  # the start is the end of every line
                    share = round(1 - parse_percent(key)[0], 6)
                    shares = samples.setdefault(strengths, {})
                    shares.setdefault(share, []).append((selection, key))
    return [
        _Line(
            method=method,
            name=_name(method, strengths if len(samples) > 1 else ()),
            number=number,
            points=[_point(share, shares[share]) for share in sorted(shares, reverse=True)],
        )
        for number, (strengths, shares) in enumerate(samples.items())
    ]


def _trained(selection: ModelSelection, key: str) -> Strengths:
    """Return the strengths of the trainings that have a part in a mixture; none in the start."""
    pairs = zip(selection.strengths, parse_percent(key)[1:], strict=True)
    return tuple(strength for strength, coefficient in pairs if coefficient)


def _name(method: str, strengths: Strengths) -> str:
    """Name a line; without strengths it is the only one of the method."""
    said = " + ".join(f"{strength:g}" for strength in strengths if strength is not None)
    return f"{method_label(method)}, strength {said}" if said else method_label(method)


def _point(share: float, samples: Sequence[Sample]) -> _Point:
    return _Point(
        share=share,
        agreement=statistics.fmean(selection.agreements[key] for selection, key in samples),
        accuracy=statistics.fmean(selection.accuracies[key] for selection, key in samples),
        num_runs=len(samples),
        num_chosen=sum(_is_chosen(*sample) for sample in samples),
    )


def _is_chosen(selection: ModelSelection, key: str) -> bool:
    pairs = zip(selection.mixing_coefficients, parse_percent(key), strict=True)
    return all(math.isclose(one, other, abs_tol=1e-5) for one, other in pairs)


def _plot(lines: Sequence[_Line], methods: Sequence[str]) -> Plot:
    starts = {
        (100 * point.agreement, 100 * point.accuracy): None
        for line in lines
        for point in line.points
        if not point.share
    }
    names = [shorten(printable(line.name), 40) for line in lines]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        handles: list[Artist] = []
        for line, name in zip(lines, names, strict=True):
            own = method_style(line.method, methods)
            xs = [100 * point.agreement for point in line.points]
            ys = [100 * point.accuracy for point in line.points]
            handles += axes.plot(
                xs,
                ys,
                color=own.colour,
                linestyle=own.line_style,
                linewidth=1.2,
                marker=own.marker,
                markersize=4,
                fillstyle=_FILL_STYLES[line.number % len(_FILL_STYLES)],
                label=name,
                clip_on=False,
            )
            if not line.number:  # the default
                axes.plot(xs[:1], ys[:1], color=own.colour, marker=own.marker, markersize=8)
        for x, y in starts:
            (star,) = axes.plot([x], [y], color=INK, marker="*", markersize=10, linestyle="")
            star.set(label="start", clip_on=False)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("kept agreement")
        axes.set_ylabel("held-out accuracy")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        legend(figure, [*handles, star] if starts else handles)

    labels = [*names, "start"] if starts else names
    size = (WIDTH, height_with_legend(labels, height=HEIGHT + 50))
    text = f"{TITLE}. {'; '.join(map(_spoken, lines))}."
    svg = inline_svg(draw, "trade-off", size=size, text=text)
    return Plot(title=TITLE, svg=svg, caption=_caption(lines, has_start=bool(starts)))


def _caption(lines: Sequence[_Line], *, has_start: bool) -> str:
    caption = "Up and to the right is better. The large points are the defaults."
    if any(len(line.points) > 1 for line in lines):
        end = "to the start, the star" if has_start else "towards the start"
        caption += f" A line goes from all of the training through smaller shares {end}."
    if any(point.num_runs > 1 for line in lines for point in line.points):
        caption += " Means over the seeds."
    return caption


def _spoken(line: _Line) -> str:
    texts = [
        f"{_describe(line, point)} accuracy {percent(point.accuracy)}, "
        f"kept agreement {percent(point.agreement)}"
        for point in line.points
    ]
    return f"{line.name}: {', '.join(texts)}"


def _describe(line: _Line, point: _Point) -> str:
    if not point.share:
        return "start"
    default = not line.number and point is line.points[0]
    return f"{100 * point.share:g}% trained{' (default)' if default else ''}"


def _table(lines: Sequence[_Line]) -> Table:
    rows = [
        (
            # The start is the same for all lines of a method, and is listed with the first.
            f"{line.name if point.share else method_label(line.method)}, {_describe(line, point)}",
            [
                percent(point.agreement),
                percent(point.accuracy),
                f"{point.num_chosen} of {pluralize(point.num_runs, 'run')}",
            ],
        )
        for line in lines
        for point in line.points
        if point.share or not line.number
    ]
    return Table(TITLE, ["Weights", "Kept agreement", "Held-out accuracy", "Chosen in"], rows)
