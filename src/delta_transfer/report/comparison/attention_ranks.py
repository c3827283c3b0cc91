"""Channel attention in a comparison: how unequal the weights of each tap are, by rank."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.report.comparison.runs import Comparison
from delta_transfer.report.figures import (
    ACCENT,
    INK,
    WIDTH,
    Plot,
    height_with_legend,
    inline_svg,
    legend,
    printable,
)
from delta_transfer.report.formatting import method_label, shorten
from delta_transfer.report.run_files import read_attention
from delta_transfer.report.templates import Table

POINTS = 60  # most of a line


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapWeights:
    """The attention of one tap, means over the seeds.

    Args:
        weights: times the number of channels, 1 is uniform; the largest first.
        effective_channels: number of equal weights with the same entropy.
    """

    weights: tuple[float, ...]
    effective_channels: float


@dataclasses.dataclass(frozen=True)
class MethodAttention:
    """The attention of a method: a plot, and the numbers of each tap."""

    plot: Plot
    table: Table


def attention_of_methods(comparison: Comparison) -> list[MethodAttention]:
    """Return the attention of each method that has channel attention.

    Args:
        comparison: runs of one size.
    """
    methods: list[MethodAttention] = []
    for method in comparison.methods:
        folders = [comparison.folder / run.folder for run in comparison.runs_of(method)]
        found = [attention for attention in map(read_attention, folders) if attention]
        if found:
            taps = _over_seeds(found)
            plot = _plot(taps, method, f"attention{len(methods)}")
            methods.append(MethodAttention(plot, _table(taps)))
    return methods


def _over_seeds(runs: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, TapWeights]:
    taps = {}
    for tap, first in runs[0].items():
        same = [run[tap] for run in runs if len(run.get(tap, ())) == len(first)]
        ranks = zip(*(sorted(weights, reverse=True) for weights in same), strict=True)
        entropies = (
            -sum(weight * math.log(weight) for weight in weights if weight > 0) for weights in same
        )
        taps[tap] = TapWeights(
            weights=tuple(len(first) * statistics.fmean(rank) for rank in ranks),
            effective_channels=statistics.fmean(map(math.exp, entropies)),
        )
    return taps


def _plot(taps: Mapping[str, TapWeights], method: str, name: str) -> Plot:
    names = {tap: shorten(printable(tap), 34) for tap in taps}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(1, color=INK, linestyle="--", linewidth=1.1)
        handles: list[Artist] = []
        for number, (tap, found) in enumerate(taps.items(), start=1):
            last = len(found.weights) - 1
            ranks = sorted({round(last * n / (POINTS - 1)) for n in range(POINTS)})
            percents = [100 * (rank + 1) / (last + 1) for rank in ranks]
            (line,) = axes.plot(percents, [found.weights[rank] for rank in ranks], color=ACCENT)
            line.set(alpha=0.3 + 0.7 * number / len(taps), label=names[tap])
            handles.append(line)
        axes.set_xlim(0, 102)
        axes.set_xlabel("channels, largest weight first")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        legend(figure, handles)

    text = "; ".join(
        f"{tap}: {found.weights[0]:.3g} to {found.weights[-1]:.3g}, effective channels "
        f"{found.effective_channels:.0f} of {len(found.weights)}"
        for tap, found in taps.items()
    )
    title = f"Channel attention of {method_label(method)}"
    size = (WIDTH, height_with_legend(list(names.values())))
    return Plot(
        title=title,
        svg=inline_svg(draw, name, size=size, text=f"{title}, 1 is uniform. {text}."),
        caption="Weight of a channel times the number of channels, from the first tap (pale) to "
        "the last; the dashed line at 1 is uniform attention. The steeper a curve, the more "
        "unequally the channels of the tap are regularised.",
    )


def _table(taps: Mapping[str, TapWeights]) -> Table:
    rows = [
        (
            tap,
            [
                f"{len(found.weights):,}",
                f"{found.effective_channels:,.1f}",
                f"{found.weights[0]:.2f}",
                f"{found.weights[-1]:.2f}",
            ],
        )
        for tap, found in taps.items()
    ]
    headings = ["Tap", "Channels", "Effective", "Largest", "Smallest"]
    return Table("Channel attention per tap", headings, rows)
