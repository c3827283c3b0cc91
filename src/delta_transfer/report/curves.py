"""Learning curves over epochs: of one run, or a line per method."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from delta_transfer.metrics.metrics import Metric
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
from delta_transfer.report.formatting import method_label, shorten
from delta_transfer.report.styles import MARKERS, method_style

Series = Mapping[int, float]

# The columns of metrics.csv with the task loss, without penalties.
LOSSES = {"train_task": "training", "val_loss": "validation"}
MANY_EPOCHS = 30  # longer lines have no markers


def drop_non_finite(values: Series) -> dict[int, float]:
    """Return the finite values."""
    return {epoch: value for epoch, value in values.items() if math.isfinite(value)}


def series(metrics: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    """Return the finite values of one name by epoch."""
    return drop_non_finite(
        {epoch: values[name] for epoch, values in metrics.items() if name in values}
    )


def score_plot(scores: Series, metric: Metric, *, probe: float | None) -> Plot:
    """Plot the validation score over epochs, with the linear probe.

    Args:
        scores: by epoch.
        metric: of the scores.
        probe: score of the linear probe; None if undefined.
    """
    limit = _limit([scores], probe, metric)

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, [scores])
        line = _line(axes, _scaled(scores, metric), colour=ACCENT, name="fine-tuning")
        handles: list[Artist] = [line, *_probe_line(axes, probe, metric)]
        _in_unit(axes, limit, metric)
        legend(figure, handles)

    title = f"Validation {metric.display_name}"
    text = f"{title} by epoch: {_spoken(scores, metric.format)}. "
    text += f"Linear probe: {metric.format(probe)}."
    svg = inline_svg(draw, metric.name, size=(WIDTH, HEIGHT), text=text)
    return Plot(title=title, svg=svg, caption=_score_caption({"": scores}, limit, metric))


def lines_plot(
    lines: Mapping[str, Series],
    name: str,
    *,
    title: str,
    caption: str = "",
    shades: bool = False,
    top: float | None = None,
    methods: Sequence[str] = (),
) -> Plot | None:
    """Plot several values over epochs.

    Args:
        lines: values by epoch, by the name of the line.
        name: of the figure, for its ids.
        title: its heading.
        caption: how to read it.
        shades: draw all lines in one colour, from pale to full.
        top: upper limit of the axis, for plots that are compared; fitted to the values if None.
        methods: all compared methods, in their order, if the lines are methods.

    Returns:
        The plot, or None if no value is finite.
    """
    lines = {key: drop_non_finite(values) for key, values in lines.items()}
    lines = {key: values for key, values in lines.items() if values}
    if not lines:
        return None
    labels = {key: method_label(key) if methods else key for key in lines}
    names = {key: shorten(printable(label), 34) for key, label in labels.items()}

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, lines.values())
        handles: list[Artist] = []
        for number, (key, values) in enumerate(lines.items()):
            line = _line(axes, values, colour=SERIES[number % len(SERIES)], name=names[key])
            if methods:
                _set_style(line, key, methods)
            elif line.get_marker():
                line.set_marker(MARKERS[number % len(MARKERS)])
            if shades:
                line.set(color=ACCENT, alpha=0.3 + 0.7 * (number + 1) / len(lines))
            # Do not cut a marker at zero; cut a line at the top.
            line.set_clip_on(top is not None and max(values.values()) > top)
            handles.append(line)
        if all(value >= 0 for values in lines.values() for value in values.values()):
            axes.set_ylim(bottom=0, top=top)
        legend(figure, handles)

    texts = [f"{labels[key]}: {_spoken(values, '{:.3g}'.format)}" for key, values in lines.items()]
    size = (WIDTH, height_with_legend(list(names.values())))
    svg = inline_svg(draw, name, size=size, text=f"{title} by epoch. {'; '.join(texts)}.")
    return Plot(title=title, svg=svg, caption=caption)


def scores_over_epochs(
    curves: Mapping[str, Series],
    metric: Metric,
    *,
    probe: float | None,
    seeds: int,
    methods: Sequence[str],
) -> Plot:
    """Plot the validation score over epochs, a line per method.

    Args:
        curves: means over the seeds, by epoch, by method.
        metric: of the scores.
        probe: mean validation score of the linear probe; None if undefined.
        seeds: their number.
        methods: all compared methods, in their order.
    """
    limit = _limit(list(curves.values()), probe, metric)

    def draw(figure: Figure) -> None:
        axes = _epoch_axes(figure, curves.values())
        scaled = {method: _scaled(values, metric) for method, values in curves.items()}
        handles: list[Artist] = []
        for method, values in scaled.items():
            line = _line(axes, values, colour=INK, name=_short(method))
            _set_style(line, method, methods)
            handles.append(line)
        legend(figure, [*handles, *_probe_line(axes, probe, metric)])
        _in_unit(axes, limit, metric)

    spoken = {method: _spoken(values, metric.format) for method, values in curves.items()}
    texts = [f"{method_label(method)}: {values}" for method, values in spoken.items()]
    title = f"Validation {metric.display_name}" + (", mean over seeds" if seeds > 1 else "")
    names = [*map(_short, curves), f"linear probe {metric.format(probe)}"]
    text = f"{title}, by epoch. {'; '.join(texts)}. Linear probe: {metric.format(probe)}."
    size = (WIDTH, height_with_legend(names, height=HEIGHT + 20))
    return Plot(
        title=title,
        svg=inline_svg(draw, "curves", size=size, text=text),
        caption=_score_caption(curves, limit, metric),
    )


def _set_style(line: Line2D, method: str, methods: Sequence[str]) -> None:
    style = method_style(method, methods)
    line.set(color=style.colour, linestyle=style.line_style)
    if line.get_marker():
        line.set_marker(style.marker)


def _short(method: str) -> str:
    return shorten(printable(method_label(method)), 34)


def _epoch_axes(figure: Figure, lines: Iterable[Series]) -> Axes:
    last = max(1, *(epoch for values in lines for epoch in values))
    axes = figure.add_subplot()
    axes.set_xlim(-0.04 * last, 1.04 * last)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return axes


def _in_unit(axes: Axes, limit: float | None, metric: Metric) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: metric.format_tick(value)))
    if limit is not None:
        end = metric.scale * limit
        axes.set_ylim(*((end, None) if metric.higher_is_better else (None, end)))


def _limit(curves: Sequence[Series], probe: float | None, metric: Metric) -> float | None:
    """Return an axis limit, so that a first epoch with a random head does not flatten the rest."""
    late = [] if probe is None else [metric.gain(probe, 0)]
    for values in curves:
        middle = sorted(values)[len(values) // 2]
        late += [metric.gain(value, 0) for epoch, value in values.items() if epoch >= middle]
    worst = min(metric.gain(value, 0) for values in curves for value in values.values())
    floor = min(late) - 0.75 * max(max(late) - min(late), 0.02)
    return metric.gain(floor, 0) if worst < floor else None


def _score_caption(curves: Mapping[str, Series], limit: float | None, metric: Metric) -> str:
    caption = "Epoch 0 is before any training."
    if limit is not None:
        pick = min if metric.higher_is_better else max
        worst = {method: pick(values, key=values.__getitem__) for method, values in curves.items()}
        outside = [
            f"{method_label(method)} {metric.format(value)} at epoch {epoch}".strip()
            for method, epoch in worst.items()
            if metric.gain(limit, value := curves[method][epoch]) > 0
        ]
        caption += (
            f" {'Below' if metric.higher_is_better else 'Above'} the axis: {', '.join(outside)}."
        )
    return caption


def _line(axes: Axes, values: Series, *, colour: str, name: str) -> Line2D:
    epochs = sorted(values)
    (line,) = axes.plot(epochs, [values[epoch] for epoch in epochs], color=colour)
    line.set(marker="o" if len(epochs) <= MANY_EPOCHS else "")
    line.set_label(name)
    return line


def _probe_line(axes: Axes, probe: float | None, metric: Metric) -> list[Line2D]:
    if probe is None:
        return []
    name = f"linear probe {metric.format(probe)}"
    value = metric.scale * probe
    return [axes.axhline(value, color=INK, linestyle="--", linewidth=1.2, label=name)]


def _scaled(values: Series, metric: Metric) -> dict[int, float]:
    return {epoch: metric.scale * value for epoch, value in values.items()}


def _spoken(values: Series, say: Callable[[float], str]) -> str:
    """List all values if they are few, else the first, the extremes and the last."""
    epochs = sorted(values)
    if len(epochs) > 12:
        lowest, highest = min(epochs, key=values.__getitem__), max(epochs, key=values.__getitem__)
        epochs = sorted({epochs[0], lowest, highest, epochs[-1]})
    return ", ".join(f"epoch {epoch} {say(values[epoch])}" for epoch in epochs)
