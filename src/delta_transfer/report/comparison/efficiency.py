"""The data-efficiency curve: the score against the size of the training set."""

import dataclasses

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.report.comparison.runs import (
    BASELINE,
    PROBE,
    Comparison,
    MethodSummary,
    best_methods,
    summarize_methods,
)
from delta_transfer.report.figures import (
    HEIGHT,
    WIDTH,
    Plot,
    height_with_legend,
    inline_svg,
    legend,
    printable,
)
from delta_transfer.report.formatting import interval, label, listed, shorten, training
from delta_transfer.report.styles import look

Sizes = dict[int | None, dict[str, MethodSummary]]
SPREAD = 0.36  # of the intervals of all methods at a size, where sizes are 1 apart


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """The curve, the summaries behind it by size and method, and what it says size by size."""

    plot: Plot
    sizes: Sizes
    findings: list[str]


def efficiency(comparison: Comparison) -> Efficiency | None:
    """The score of each method by size; None if there is one size."""
    if len(comparison.sizes) < 2:
        return None
    sizes = {
        size: {found.method: found for found in summarize_methods(comparison.at(size))}
        for size in comparison.sizes
    }
    return Efficiency(_plot(comparison, sizes), sizes, _findings(comparison, sizes))


def _plot(comparison: Comparison, sizes: Sizes) -> Plot:
    methods, measure, noun = comparison.methods, comparison.measure, comparison.noun
    names = [shorten(printable(label(method)), 34) for method in methods]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        handles: list[Artist] = []
        for number, method in enumerate(methods):
            own, aside = look(method, methods), SPREAD * ((number + 0.5) / len(methods) - 0.5)
            xs, ys = [], []
            for place, found in enumerate(sizes.values()):
                if method in found:
                    score, x = found[method].score, place + aside
                    xs.append(x)
                    ys.append(measure.scale * score.mean)
                    if score.count > 1:
                        ends = [measure.scale * score.low, measure.scale * score.high]
                        axes.plot([x, x], ends, color=own.colour, linewidth=1.4, alpha=0.8)
            handles += axes.plot(xs, ys, color=own.colour, marker=own.marker, markersize=4.5)
            handles[-1].set(linestyle=own.dash, label=names[number])
        axes.set_xticks(range(len(sizes)), ["all" if size is None else f"{size}" for size in sizes])
        axes.set_xlim(-0.4, len(sizes) - 0.6)
        axes.set_ylim(measure.within(*axes.get_ylim()))  # which an interval may leave
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: measure.tick(value)))
        axes.set_xlabel(f"training {noun}s per class")
        legend(figure, handles)

    title = f"{comparison.split.capitalize()} {measure.words} by training {noun}s per class"
    size = (WIDTH, height_with_legend(names, height=HEIGHT + 50))
    return Plot(
        title=title,
        svg=inline_svg(
            draw, "efficiency", size=size, text=f"{title}. {_spoken(comparison, sizes)}."
        ),
        caption="Means over the seeds; the bars are 95% intervals of the mean, set side by side so "
        "that they can be told apart. Sizes are equally far apart, whatever their numbers.",
    )


def _spoken(comparison: Comparison, sizes: Sizes) -> str:
    said, measure, noun = [], comparison.measure, comparison.noun
    for method in comparison.methods:
        values = [
            f"{training(size, noun)} {measure.text(found[method].score.mean)}"
            for size, found in sizes.items()
            if method in found
        ]
        said.append(f"{label(method)}: {', '.join(values)}")
    return "; ".join(said)


def _findings(comparison: Comparison, sizes: Sizes) -> list[str]:
    said, measure, noun = [], comparison.measure, comparison.noun
    for size, found in sizes.items():
        equals = best_methods(list(found.values()))
        best, names = equals[0], [label(summary.method) for summary in equals]
        trained = training(size, noun).capitalize()
        words = f"{trained}: {listed(names)}, {measure.text(best.score.mean)}"
        other, difference = label(BASELINE).lower(), best.to_baseline
        if difference is None:
            other, difference = label(PROBE).lower(), best.to_probe
        if difference is not None:
            mean, ends = measure.apart(difference.mean), interval(difference, measure)
            words += f"; {mean} to {other} ({ends})"
        said.append(f"{words}.")
    return said
