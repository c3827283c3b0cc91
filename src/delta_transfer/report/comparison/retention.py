"""What the methods of a comparison have kept: a table, and accuracy against kept agreement."""

import dataclasses
import statistics
from collections.abc import Mapping

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.metrics.run_result import RETENTION_COLUMNS
from delta_transfer.metrics.statistics import Summary, summarize
from delta_transfer.report.comparison.runs import PROBE, Comparison, Entry
from delta_transfer.report.figures import (
    HEIGHT,
    WIDTH,
    Plot,
    height_with_legend,
    inline_svg,
    legend,
    printable,
)
from delta_transfer.report.formatting import method_label, percent, shorten
from delta_transfer.report.styles import method_style
from delta_transfer.report.templates import Table

_HEADINGS = dict(
    zip(
        RETENTION_COLUMNS,
        (
            "Kept agreement",
            "Corrupted images",
            "Linear probe, corrupted",
            "Shifted images",
            "Linear probe, shifted",
        ),
        strict=True,
    )
)


@dataclasses.dataclass(frozen=True)
class MethodRetention:
    """A table by method, and a plot of accuracy against kept agreement, if that is known."""

    table: Table
    plot: Plot | None


@dataclasses.dataclass(frozen=True)
class _Point:
    """Kept agreement and accuracy over some runs."""

    agreement: Summary
    accuracy: Summary


def method_retention(comparison: Comparison) -> MethodRetention | None:
    """Return what each method has kept; None if no run has measured it.

    Args:
        comparison: runs of one size.
    """
    measured = [name for name in _HEADINGS if any(name in e.retention for e in comparison.entries)]
    if not measured:
        return None
    rows = []
    for method in comparison.methods:
        runs = comparison.runs_of(method)
        values = {
            name: [e.retention[name] for e in runs if name in e.retention] for name in measured
        }
        rows.append((method_label(method), [_mean(found) for found in values.values()]))
    headings = ["Method", *(_HEADINGS[name] for name in measured)]
    return MethodRetention(Table("What each method has kept", headings, rows), _plot(comparison))


def _mean(values: list[float]) -> str:
    return percent(statistics.fmean(values)) if values else ""


def _plot(comparison: Comparison) -> Plot | None:
    """Plot a point per method, and a line over strengths where its runs have several."""
    points = {
        method: found
        for method in comparison.methods
        if (found := _point(comparison.runs_of(method))) is not None
    }
    if not points:
        return None
    lines = {method: _by_strength(comparison.runs_of(method)) for method in points}
    names = {method: shorten(printable(method_label(method)), 34) for method in points}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        handles: list[Artist] = []
        for method, point in points.items():
            own = method_style(method, comparison.methods)
            x, y = 100 * point.agreement.mean, 100 * point.accuracy.mean
            if point.accuracy.count > 1:
                for low, high, vertical in (
                    (point.agreement.ci_low, point.agreement.ci_high, False),
                    (point.accuracy.ci_low, point.accuracy.ci_high, True),
                ):
                    ends = [100 * max(low, 0), 100 * min(high, 1)]
                    xs, ys = ([x, x], ends) if vertical else (ends, [y, y])
                    axes.plot(xs, ys, color=own.colour, linewidth=1.2, alpha=0.7)
            if line := lines[method].values():
                axes.plot(
                    [100 * one.agreement.mean for one in line],
                    [100 * one.accuracy.mean for one in line],
                    color=own.colour,
                    linestyle=own.line_style,
                    linewidth=1.2,
                    marker=own.marker,
                    markersize=3,
                )
            handles += axes.plot([x], [y], color=own.colour, marker=own.marker, markersize=7)
            handles[-1].set(linestyle="", label=names[method], clip_on=False)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("kept agreement")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        legend(figure, handles)

    title = f"{comparison.split.capitalize()} accuracy against kept agreement"
    texts = [
        f"{method_label(method)}: accuracy {percent(point.accuracy.mean)}, kept agreement "
        f"{percent(point.agreement.mean)}{_spoken(lines[method])}"
        for method, point in points.items()
    ]
    size = (WIDTH, height_with_legend(list(names.values()), height=HEIGHT + 50))
    text = f"{title}. {'; '.join(texts)}."
    caption = "Up and to the right is better."
    if any(point.accuracy.count > 1 for point in points.values()):
        caption += " Large points are means over the seeds, bars 95% confidence intervals."
    if any(lines.values()):
        caption += " Small points on a line are means over the runs of one strength."
    svg = inline_svg(draw, "retention", size=size, text=text)
    return Plot(title=title, svg=svg, caption=caption)


def _point(runs: list[Entry]) -> _Point | None:
    """Return the means over the runs with a kept agreement; None if there are none."""
    runs = [run for run in runs if "kept_agreement" in run.retention]
    if not runs:
        return None
    return _Point(
        summarize([run.retention["kept_agreement"] for run in runs]),
        summarize([run.score for run in runs]),
    )


def _by_strength(runs: list[Entry]) -> Mapping[float, _Point]:
    """Return the means by strength, ascending; empty if there is one strength."""
    strengths = sorted({run.strength for run in runs if run.strength is not None})
    if len(strengths) < 2 or runs[0].method == PROBE:  # the probe's is chosen for each seed
        return {}
    found = {one: _point([run for run in runs if run.strength == one]) for one in strengths}
    return {strength: point for strength, point in found.items() if point is not None}


def _spoken(line: Mapping[float, _Point]) -> str:
    texts = []
    for strength, point in line.items():
        both = f"{percent(point.accuracy.mean)} and {percent(point.agreement.mean)}"
        texts.append(f"strength {strength:.3g} {both}")
    return f" ({', '.join(texts)})" if texts else ""
