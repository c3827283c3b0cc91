"""The ranking plot of a comparison: scores of each method per seed, with intervals."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.report.comparison.runs import Comparison, MethodSummary
from delta_transfer.report.figures import (
    INK,
    WIDTH,
    Draw,
    Plot,
    inline_svg,
    printable,
)
from delta_transfer.report.formatting import method_label, shorten
from delta_transfer.report.styles import method_style

ROW, MARGIN = 36, 66  # height of a method, and of the axis below, in CSS pixels


def ranking_plot(comparison: Comparison, summaries: list[MethodSummary], name: str) -> Plot:
    """Return the ranking as a figure of a page.

    Args:
        comparison: runs of one size.
        summaries: of its methods, in the order in which they are drawn.
        name: of the figure, for its ids.
    """
    several = any(summary.score.count > 1 for summary in summaries)
    return Plot(
        title=f"{comparison.split.capitalize()} {comparison.metric.display_name}, seed by seed",
        svg=inline_svg(
            _draw(comparison, summaries),
            name,
            size=(WIDTH, ROW * len(summaries) + MARGIN),
            text=_text(comparison, summaries),
        ),
        caption="Large dots are means, small dots are seeds, bars are 95% confidence intervals of "
        "the mean. Overlapping bars do not imply equal methods: see the differences paired by seed."
        if several
        else "Each dot is one run. A single seed has no interval: small differences may be chance.",
    )


def _draw(comparison: Comparison, summaries: list[MethodSummary]) -> Draw:
    metric = comparison.metric

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        probe = metric.scale * comparison.probe
        axes.axvline(probe, color=INK, linestyle="--", linewidth=1.1, zorder=1)
        for y, summary in enumerate(summaries):
            colour = method_style(summary.method, comparison.methods).colour
            values = [metric.scale * value for value in comparison.scores(summary.method).values()]
            score, several = summary.score, len(values) > 1
            if several:
                ends = [metric.scale * score.ci_low, metric.scale * score.ci_high]
                axes.plot(ends, [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
            mean = metric.scale * score.mean
            axes.plot([mean], [y], "o", color=colour, markersize=7.5, clip_on=False)
            below = [y + 0.24 if several else y] * len(values)
            axes.plot(values, below, "o", color=colour, ms=4, mew=0, alpha=0.7, clip_on=False)
        names = [shorten(printable(method_label(summary.method)), 20) for summary in summaries]
        axes.set_yticks(range(len(names)), names, fontsize=11)
        axes.set_ylim(len(names) - 0.45, -0.75)
        axes.annotate(
            f"linear probe {metric.format(comparison.probe)}",
            (probe, -0.75),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=10.5,
        )
        axes.set_xlim(metric.axis_limits(*axes.get_xlim()))  # an interval may exceed them
        axes.grid(visible=False)
        axes.grid(visible=True, axis="x")
        axes.spines.left.set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: metric.format_tick(value)))
        axes.set_xlabel(f"{comparison.split} {metric.display_name}")

    return draw


def _text(comparison: Comparison, summaries: list[MethodSummary]) -> str:
    texts, text = [], comparison.metric.format
    for summary in summaries:
        score = summary.score
        seeds = comparison.scores(summary.method)
        words = f"{method_label(summary.method)}: mean {text(score.mean)}"
        if score.count > 1:
            words += f", 95% interval {text(score.ci_low)} to {text(score.ci_high)}"
        values = ", ".join(text(value) for value in seeds.values())
        texts.append(f"{words}, {'seeds' if len(seeds) > 1 else 'one seed'} {values}")
    heading = f"{comparison.split.capitalize()} {comparison.metric.display_name} per method."
    return f"{heading} {'; '.join(texts)}. Linear probe: {text(comparison.probe)}."
