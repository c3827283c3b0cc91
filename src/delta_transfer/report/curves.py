"""Curves over epochs: of one run, or a line per method."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.report.figures import (
    ACCENT,
    HEIGHT,
    INK,
    SERIES,
    WIDTH,
    Plot,
    height_with_legend,
    inline_svg,
    legend,
    printable,
)
from delta_transfer.report.looks import MARKERS, look
from delta_transfer.report.words import label, percent, shorten

Series = Mapping[int, float]

# The columns of metrics.csv that are the task's loss, without penalties.
LOSSES = {"train_task": "training", "val_loss": "validation"}
MANY_EPOCHS = 30  # from where on a line has no markers


def finite(values: Series) -> dict[int, float]:
    """The values without those that are no number."""
    return {epoch: value for epoch, value in values.items() if math.isfinite(value)}


def series(metrics: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    """The finite values of one name by epoch."""
    return finite({epoch: values[name] for epoch, values in metrics.items() if name in values})


def accuracy_plot(accuracy: Series, *, probe: float, best_epoch: int) -> Plot:
    """Validation accuracy over epochs, the linear probe as a line and the kept epoch marked.

    Args:
        accuracy: fractions by epoch.
        probe: validation accuracy of the linear probe.
        best_epoch: the epoch that was kept.
    """
    floor = _floor([accuracy], probe)

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, [accuracy])
        line = _line(axes, _percentages(accuracy), colour=ACCENT, name="fine-tuning")
        handles: list[Artist] = [line, _probe_line(axes, probe)]
        if best_epoch in accuracy:
            handles += axes.plot(
                [best_epoch],
                [100 * accuracy[best_epoch]],
                "o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=ACCENT,
                label="kept epoch",
            )
        _in_percent(axes, floor)
        legend(figure, handles)

    text = f"Validation accuracy by epoch: {_spoken(accuracy, percent)}. "
    text += f"Linear probe: {percent(probe)}. Kept: epoch {best_epoch}."
    svg = inline_svg(draw, "accuracy", size=(WIDTH, HEIGHT), text=text)
    caption = _accuracy_caption({"": accuracy}, floor)
    return Plot(title="Validation accuracy", svg=svg, caption=caption)


def lines_plot(
    lines: Mapping[str, Series],
    name: str,
    *,
    title: str,
    caption: str = "",
    shades: bool = False,
    top: float | None = None,
) -> Plot | None:
    """Several values over epochs.

    Args:
        lines: values by epoch, by the name of the line.
        name: of the figure, for its ids.
        title: its heading.
        caption: how to read it.
        shades: the lines are one thing at several depths: one colour, from pale to full.
        top: where the axis ends, for figures that are compared; as the values need if None.

    Returns:
        The plot, or None if there is no finite value to draw.
    """
    lines = {key: finite(values) for key, values in lines.items()}
    lines = {key: values for key, values in lines.items() if values}
    if not lines:
        return None
    names = {key: shorten(printable(key), 34) for key in lines}

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, lines.values())
        handles: list[Artist] = []
        for number, (key, values) in enumerate(lines.items()):
            line = _line(axes, values, colour=SERIES[number % len(SERIES)], name=names[key])
            _mark(line, number)
            if shades:
                line.set(color=ACCENT, alpha=0.3 + 0.7 * (number + 1) / len(lines))
            # A marker at zero is whole, a line stays below the top.
            line.set_clip_on(top is not None and max(values.values()) > top)
            handles.append(line)
        if all(value >= 0 for values in lines.values() for value in values.values()):
            axes.set_ylim(bottom=0, top=top)
        legend(figure, handles)

    said = [f"{key}: {_spoken(values, '{:.3g}'.format)}" for key, values in lines.items()]
    size = (WIDTH, height_with_legend(list(names.values())))
    svg = inline_svg(draw, name, size=size, text=f"{title} by epoch. {'; '.join(said)}.")
    return Plot(title=title, svg=svg, caption=caption)


def methods_plot(
    curves: Mapping[str, Series], name: str, *, title: str, methods: Sequence[str], caption: str
) -> Plot:
    """Values over epochs, a line per method.

    Args:
        curves: values not below zero, by epoch, by method.
        name: of the figure, for its ids.
        title: its heading.
        methods: all that are compared, in their order.
        caption: how to read it.
    """

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, curves.values())
        handles = _method_lines(axes, curves, methods)
        for handle in handles:
            handle.set_clip_on(False)  # a marker at zero is whole
        legend(figure, handles)
        axes.set_ylim(bottom=0)

    said = [f"{label(key)}: {_spoken(values, '{:.3g}'.format)}" for key, values in curves.items()]
    size = (WIDTH, height_with_legend([_short(method) for method in curves]))
    svg = inline_svg(draw, name, size=size, text=f"{title} by epoch. {'; '.join(said)}.")
    return Plot(title=title, svg=svg, caption=caption)


def accuracies_over_epochs(
    curves: Mapping[str, Series], *, probe: float, seeds: int, methods: Sequence[str]
) -> Plot:
    """Validation accuracy over epochs, a line per method.

    Args:
        curves: means over the seeds, by epoch, by method.
        probe: mean validation accuracy of the linear probe.
        seeds: how many there are at most.
        methods: all that are compared, in their order.
    """
    floor = _floor(list(curves.values()), probe)

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, curves.values())
        percentages = {method: _percentages(values) for method, values in curves.items()}
        handles = _method_lines(axes, percentages, methods)
        legend(figure, [*handles, _probe_line(axes, probe)])
        _in_percent(axes, floor)

    said = [f"{label(method)}: {_spoken(values, percent)}" for method, values in curves.items()]
    title = "Validation accuracy" + (", mean over seeds" if seeds > 1 else "")
    names = [*map(_short, curves), f"linear probe {percent(probe)}"]
    text = f"{title}, by epoch. {'; '.join(said)}. Linear probe: {percent(probe)}."
    size = (WIDTH, height_with_legend(names, height=HEIGHT + 20))
    return Plot(
        title=title,
        svg=inline_svg(draw, "curves", size=size, text=text),
        caption=_accuracy_caption(curves, floor),
    )


def _method_lines(axes: Axes, curves: Mapping[str, Series], methods: Sequence[str]) -> list[Artist]:
    handles: list[Artist] = []
    for method, values in curves.items():
        own = look(method, methods)
        line = _line(axes, values, colour=own.colour, name=_short(method))
        if line.get_marker():
            line.set_marker(own.marker)
        line.set_linestyle(own.dash)  # type: ignore[arg-type]
        handles.append(line)
    return handles


def _short(method: str) -> str:
    return shorten(printable(label(method)), 34)


def _epoch_axes(figure: Figure, lines: Iterable[Series]) -> Axes:
    last = max(1, *(epoch for values in lines for epoch in values))
    axes = figure.add_subplot()
    axes.set_xlim(-0.04 * last, 1.04 * last)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return axes


def _in_percent(axes: Axes, floor: float | None) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    if floor is not None:
        axes.set_ylim(bottom=100 * floor)


def _floor(curves: Sequence[Series], probe: float) -> float | None:
    """Where the axis starts, so that a first epoch with a random head does not flatten the rest."""
    late = [probe]
    for values in curves:
        middle = sorted(values)[len(values) // 2]
        late += [value for epoch, value in values.items() if epoch >= middle]
    lowest = min(value for values in curves for value in values.values())
    floor = min(late) - 0.75 * max(max(late) - min(late), 0.02)
    return floor if lowest < floor else None


def _accuracy_caption(curves: Mapping[str, Series], floor: float | None) -> str:
    caption = "Epoch 0 is before any training."
    if floor is not None:
        lowest = {method: min(values, key=values.__getitem__) for method, values in curves.items()}
        below = [
            f"{label(method)} {percent(curves[method][epoch])} at epoch {epoch}".strip()
            for method, epoch in lowest.items()
            if curves[method][epoch] < floor
        ]
        caption += f" Below the axis: {', '.join(below)}."
    return caption


def _line(axes: Axes, values: Series, *, colour: str, name: str) -> Line2D:
    epochs = sorted(values)
    (line,) = axes.plot(epochs, [values[epoch] for epoch in epochs], color=colour)
    line.set(marker="o" if len(epochs) <= MANY_EPOCHS else "")
    line.set_label(name)
    return line


def _mark(line: Line2D, number: int) -> None:
    if line.get_marker():
        line.set_marker(MARKERS[number % len(MARKERS)])


def _probe_line(axes: Axes, probe: float) -> Line2D:
    return axes.axhline(
        100 * probe,
        color=INK,
        linestyle="--",
        linewidth=1.2,
        label=f"linear probe {percent(probe)}",
    )


def _percentages(values: Series) -> dict[int, float]:
    return {epoch: 100 * value for epoch, value in values.items()}


def _spoken(values: Series, say: Callable[[float], str]) -> str:
    """All values where they are few; the first, the extremes and the last where they are many."""
    epochs = sorted(values)
    if len(epochs) > 12:
        lowest, highest = min(epochs, key=values.__getitem__), max(epochs, key=values.__getitem__)
        epochs = sorted({epochs[0], lowest, highest, epochs[-1]})
    return ", ".join(f"epoch {epoch} {say(values[epoch])}" for epoch in epochs)
