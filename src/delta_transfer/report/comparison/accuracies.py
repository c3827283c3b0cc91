"""The ranking of a comparison: the score of each method, seed by seed, with its interval."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.errors import UserError
from delta_transfer.report.comparison.runs import (
    Comparison,
    MethodSummary,
    rank_methods,
    read_comparison,
    summarize_methods,
)
from delta_transfer.report.figures import (
    INK,
    WIDTH,
    Draw,
    Plot,
    inline_svg,
    printable,
    render,
)
from delta_transfer.report.formatting import method_label, shorten
from delta_transfer.report.styles import method_style
from delta_transfer.utils.files import write_atomically

ROW, MARGIN = 36, 66  # height of a method, and of the axis below, in CSS pixels


def save_ranking_plot(folder: Path, path: Path) -> None:
    """Draws the score of each method of a comparison into a file, the best first.

    Means with their 95% interval, the single seeds as dots, the linear probe as a line. The
    background is transparent, the colours are readable on light and on dark pages. Of several
    sizes of the training set the largest is drawn.

    Args:
        folder: of the comparison.
        path: the image, `.png` or `.svg`.

    Raises:
        UserError: if the comparison is missing or damaged, or the image is of another kind.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise UserError(f"{path} must end in .png or .svg")
    comparison = read_comparison(folder)
    comparison = comparison.with_size(comparison.sizes[-1])
    summaries = rank_methods(summarize_methods(comparison))
    size = (560, ROW * len(summaries) + MARGIN)
    text = _text(comparison, summaries)
    content = render(_draw(comparison, summaries), kind, size=size, title=text)
    write_atomically(path, content)


def ranking_plot(comparison: Comparison, summaries: list[MethodSummary], name: str) -> Plot:
    """The same as a figure of a page.

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
        caption="Large dots are means, small ones seeds, bars 95% intervals of the mean. Bars that "
        "overlap do not make two methods equal: the differences, paired by seed, decide."
        if several
        else "A dot is a run. One seed has no interval: small differences may be chance.",
    )


def _draw(comparison: Comparison, summaries: list[MethodSummary]) -> Draw:
    measure = comparison.metric

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        probe = measure.scale * comparison.probe
        axes.axvline(probe, color=INK, linestyle="--", linewidth=1.1, zorder=1)
        for y, summary in enumerate(summaries):
            colour = method_style(summary.method, comparison.methods).colour
            values = [measure.scale * value for value in comparison.scores(summary.method).values()]
            score, several = summary.score, len(values) > 1
            if several:
                ends = [measure.scale * score.ci_low, measure.scale * score.ci_high]
                axes.plot(ends, [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
            mean = measure.scale * score.mean
            axes.plot([mean], [y], "o", color=colour, markersize=7.5, clip_on=False)
            below = [y + 0.24 if several else y] * len(values)
            axes.plot(values, below, "o", color=colour, ms=4, mew=0, alpha=0.7, clip_on=False)
        names = [shorten(printable(method_label(summary.method)), 20) for summary in summaries]
        axes.set_yticks(range(len(names)), names, fontsize=11)
        axes.set_ylim(len(names) - 0.45, -0.75)
        axes.annotate(
            f"linear probe {measure.format(comparison.probe)}",
            (probe, -0.75),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=10.5,
        )
        axes.set_xlim(measure.axis_limits(*axes.get_xlim()))  # which an interval may leave
        axes.grid(visible=False)
        axes.grid(visible=True, axis="x")
        axes.spines.left.set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: measure.format_tick(value)))
        axes.set_xlabel(f"{comparison.split} {measure.display_name}")

    return draw


def _text(comparison: Comparison, summaries: list[MethodSummary]) -> str:
    said, text = [], comparison.metric.format
    for summary in summaries:
        score = summary.score
        seeds = comparison.scores(summary.method)
        words = f"{method_label(summary.method)}: mean {text(score.mean)}"
        if score.count > 1:
            words += f", 95% interval {text(score.ci_low)} to {text(score.ci_high)}"
        values = ", ".join(text(value) for value in seeds.values())
        said.append(f"{words}, {'seeds' if len(seeds) > 1 else 'one seed'} {values}")
    heading = f"{comparison.split.capitalize()} {comparison.metric.display_name} per method."
    return f"{heading} {'; '.join(said)}. Linear probe: {text(comparison.probe)}."
