"""Curves over epochs: of one run, or a line per method."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.metrics.metrics import Measure
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
from delta_transfer.report.formatting import label, shorten
from delta_transfer.report.styles import MARKERS, look

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


def score_plot(scores: Series, measure: Measure, *, probe: float | None, best_epoch: int) -> Plot:
    """The validation score over epochs, the linear probe as a line and the kept epoch marked.

    Args:
        scores: by epoch.
        measure: what they are.
        probe: that of the linear probe; None where it is undefined.
        best_epoch: the epoch that was kept.
    """
    limit = _limit([scores], probe, measure)

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, [scores])
        line = _line(axes, _scaled(scores, measure), colour=ACCENT, name="fine-tuning")
        handles: list[Artist] = [line, *_probe_line(axes, probe, measure)]
        if best_epoch in scores:
            handles += axes.plot(
                [best_epoch],
                [measure.scale * scores[best_epoch]],
                "o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=ACCENT,
                label="kept epoch",
            )
        _in_unit(axes, limit, measure)
        legend(figure, handles)

    title = f"Validation {measure.words}"
    text = f"{title} by epoch: {_spoken(scores, measure.text)}. "
    text += f"Linear probe: {measure.text(probe)}. Kept: epoch {best_epoch}."
    svg = inline_svg(draw, measure.name, size=(WIDTH, HEIGHT), text=text)
    return Plot(title=title, svg=svg, caption=_score_caption({"": scores}, limit, measure))


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


def scores_over_epochs(
    curves: Mapping[str, Series],
    measure: Measure,
    *,
    probe: float | None,
    seeds: int,
    methods: Sequence[str],
) -> Plot:
    """The validation score over epochs, a line per method.

    Args:
        curves: means over the seeds, by epoch, by method.
        measure: what they are.
        probe: mean validation score of the linear probe; None where it is undefined.
        seeds: how many there are at most.
        methods: all that are compared, in their order.
    """
    limit = _limit(list(curves.values()), probe, measure)

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, curves.values())
        scaled = {method: _scaled(values, measure) for method, values in curves.items()}
        handles = _method_lines(axes, scaled, methods)
        legend(figure, [*handles, *_probe_line(axes, probe, measure)])
        _in_unit(axes, limit, measure)

    spoken = {method: _spoken(values, measure.text) for method, values in curves.items()}
    said = [f"{label(method)}: {values}" for method, values in spoken.items()]
    title = f"Validation {measure.words}" + (", mean over seeds" if seeds > 1 else "")
    names = [*map(_short, curves), f"linear probe {measure.text(probe)}"]
    text = f"{title}, by epoch. {'; '.join(said)}. Linear probe: {measure.text(probe)}."
    size = (WIDTH, height_with_legend(names, height=HEIGHT + 20))
    return Plot(
        title=title,
        svg=inline_svg(draw, "curves", size=size, text=text),
        caption=_score_caption(curves, limit, measure),
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


def _in_unit(axes: Axes, limit: float | None, measure: Measure) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: measure.tick(value)))
    if limit is not None:
        end = measure.scale * limit
        axes.set_ylim(*((end, None) if measure.higher else (None, end)))


def _limit(curves: Sequence[Series], probe: float | None, measure: Measure) -> float | None:
    """Where the axis ends, so that a first epoch with a random head does not flatten the rest."""
    late = [] if probe is None else [measure.gain(probe, 0)]
    for values in curves:
        middle = sorted(values)[len(values) // 2]
        late += [measure.gain(value, 0) for epoch, value in values.items() if epoch >= middle]
    worst = min(measure.gain(value, 0) for values in curves for value in values.values())
    floor = min(late) - 0.75 * max(max(late) - min(late), 0.02)
    return measure.gain(floor, 0) if worst < floor else None


def _score_caption(curves: Mapping[str, Series], limit: float | None, measure: Measure) -> str:
    caption = "Epoch 0 is before any training."
    if limit is not None:
        pick = min if measure.higher else max
        worst = {method: pick(values, key=values.__getitem__) for method, values in curves.items()}
        outside = [
            f"{label(method)} {measure.text(curves[method][epoch])} at epoch {epoch}".strip()
            for method, epoch in worst.items()
            if measure.gain(limit, curves[method][epoch]) > 0
        ]
        caption += f" {'Below' if measure.higher else 'Above'} the axis: {', '.join(outside)}."
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


def _probe_line(axes: Axes, probe: float | None, measure: Measure) -> list[Line2D]:
    if probe is None:
        return []
    name = f"linear probe {measure.text(probe)}"
    value = measure.scale * probe
    return [axes.axhline(value, color=INK, linestyle="--", linewidth=1.2, label=name)]


def _scaled(values: Series, measure: Measure) -> dict[int, float]:
    return {epoch: measure.scale * value for epoch, value in values.items()}


def _spoken(values: Series, say: Callable[[float], str]) -> str:
    """All values where they are few; the first, the extremes and the last where they are many."""
    epochs = sorted(values)
    if len(epochs) > 12:
        lowest, highest = min(epochs, key=values.__getitem__), max(epochs, key=values.__getitem__)
        epochs = sorted({epochs[0], lowest, highest, epochs[-1]})
    return ", ".join(f"epoch {epoch} {say(values[epoch])}" for epoch in epochs)
