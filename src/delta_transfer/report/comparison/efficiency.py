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
from delta_transfer.report.formatting import (
    format_training_size,
    interval,
    join_names,
    method_label,
    shorten,
)
from delta_transfer.report.styles import method_style

Sizes = dict[int | None, dict[str, MethodSummary]]
SPREAD = 0.36  # width of all methods' intervals at one size, in units of the distance of sizes


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """The curve, its values by size and method, and a sentence per size."""

    plot: Plot
    sizes: Sizes
    summary: list[str]


def efficiency(comparison: Comparison) -> Efficiency | None:
    """Return the score of each method by size; None if there is one size."""
    if len(comparison.sizes) < 2:
        return None
    sizes = {
        size: {found.method: found for found in summarize_methods(comparison.with_size(size))}
        for size in comparison.sizes
    }
    return Efficiency(_plot(comparison, sizes), sizes, _sentences(comparison, sizes))


def _plot(comparison: Comparison, sizes: Sizes) -> Plot:
    methods, metric, sample_type = comparison.methods, comparison.metric, comparison.sample_type
    names = [shorten(printable(method_label(method)), 34) for method in methods]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        handles: list[Artist] = []
        for number, method in enumerate(methods):
            own = method_style(method, methods)
            offset = SPREAD * ((number + 0.5) / len(methods) - 0.5)
            xs, ys = [], []
            for position, found in enumerate(sizes.values()):
                if method in found:
                    score, x = found[method].score, position + offset
                    xs.append(x)
                    ys.append(metric.scale * score.mean)
                    if score.count > 1:
                        ends = [metric.scale * score.ci_low, metric.scale * score.ci_high]
                        axes.plot([x, x], ends, color=own.colour, linewidth=1.4, alpha=0.8)
            handles += axes.plot(xs, ys, color=own.colour, marker=own.marker, markersize=4.5)
            handles[-1].set(linestyle=own.line_style, label=names[number])
        axes.set_xticks(range(len(sizes)), ["all" if size is None else f"{size}" for size in sizes])
        axes.set_xlim(-0.4, len(sizes) - 0.6)
        axes.set_ylim(metric.axis_limits(*axes.get_ylim()))  # an interval may exceed them
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: metric.format_tick(value)))
        axes.set_xlabel(f"training {sample_type}s per class")
        legend(figure, handles)

    score = f"{comparison.split.capitalize()} {metric.display_name}"
    title = f"{score} by training {sample_type}s per class"
    size = (WIDTH, height_with_legend(names, height=HEIGHT + 50))
    return Plot(
        title=title,
        svg=inline_svg(
            draw, "efficiency", size=size, text=f"{title}. {_spoken(comparison, sizes)}."
        ),
        caption="Means over the seeds, with 95% confidence intervals of the mean, drawn side by "
        "side. Sizes are equally spaced.",
    )


def _spoken(comparison: Comparison, sizes: Sizes) -> str:
    texts, metric, sample_type = [], comparison.metric, comparison.sample_type
    for method in comparison.methods:
        values = [
            f"{format_training_size(size, sample_type)} {metric.format(found[method].score.mean)}"
            for size, found in sizes.items()
            if method in found
        ]
        texts.append(f"{method_label(method)}: {', '.join(values)}")
    return "; ".join(texts)


def _sentences(comparison: Comparison, sizes: Sizes) -> list[str]:
    sentences, metric, sample_type = [], comparison.metric, comparison.sample_type
    for size, found in sizes.items():
        equals = best_methods(list(found.values()))
        best, names = equals[0], [method_label(summary.method) for summary in equals]
        trained = format_training_size(size, sample_type).capitalize()
        words = f"{trained}: {join_names(names)}, {metric.format(best.score.mean)}"
        other, difference = method_label(BASELINE).lower(), best.vs_baseline
        if difference is None:
            other, difference = method_label(PROBE).lower(), best.vs_probe
        if difference is not None:
            mean = metric.format_difference_with_unit(difference.mean)
            words += f"; {mean} vs {other} ({interval(difference, metric)})"
        sentences.append(f"{words}.")
    return sentences
