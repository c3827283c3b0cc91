"""The figure of channel attention: scores, weights and influential images, a row per tap."""

import dataclasses
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image, ImageOps

from delta_transfer.metrics.metrics import MINUS
from delta_transfer.report.figures import INK, LINE, SERIES, STRONG, printable, render
from delta_transfer.report.formatting import pluralize, shorten

MAX_TAPS = 24  # rows; a figure with more is too tall to view
HEAD, ROW, FOOT = 112, 262, 14  # heights in CSS pixels
PLOT, PLOT_TOP = 186, 34  # height of a plot, and of the text above it in its row
LEFT = 70  # of the first plot; in CSS pixels, like all values below
SCORES, WEIGHTS = (LEFT, 330), (LEFT + 400, 330)  # start and width
NAMES, IMAGES = 846, 916  # left edges of a channel's name, and of its images
THUMBNAIL, STEP, LINE_STEP = 56, 64, 72  # side of an image, and from one to the next
WIDTH = IMAGES + 4 * STEP + 10
PIXELS = 2 * THUMBNAIL  # side of an image in the file
DOTS = 72 * PIXELS // THUMBNAIL
BLACK = "#24292e"
FEW = 60  # channels up to which each has a dot


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfluentialSamples:
    """A channel, and the images whose loss increases most when it is ablated.

    Args:
        channel: its number.
        images: up to four, with their captions.
    """

    channel: int
    images: Sequence[tuple[Image.Image, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapFigure:
    """The values of one tap that the figure shows.

    Args:
        tap: its name.
        note: text beside the name.
        scores: increase of the loss without each channel, in the order of channels.
        standard_errors: their standard errors, NaN where unknown.
        attention: the weight of each channel; they sum to 1.
        influential_samples: of up to three channels with the largest scores, the largest first.
    """

    tap: str
    note: str
    scores: Sequence[float]
    standard_errors: Sequence[float]
    attention: Sequence[float]
    influential_samples: Sequence[InfluentialSamples]


def draw_attention_figure(taps: Sequence[TapFigure], *, title: str, note: str) -> bytes:
    """Draw channel attention: sorted scores, weights against uniform ones, influential images.

    Args:
        taps: at least one; those after the first 24 are only counted.
        title: of the figure.
        note: text below the title.

    Returns:
        A PNG on white, the same bytes for the same arguments.
    """
    drawn = taps[:MAX_TAPS]
    if len(drawn) < len(taps):
        note += f"; {pluralize(len(taps) - len(drawn), 'more tap')} not drawn"
    height = HEAD + ROW * len(drawn) + FOOT

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")  # all positions are fixed
        canvas = _Canvas(figure, height)
        _draw_head(canvas, title, note)
        for number, tap in enumerate(drawn):
            _draw_tap(canvas, tap, HEAD + ROW * number)
        for left, width in (SCORES, WEIGHTS):
            place = (left + width / 2, height - FOOT - 8)
            canvas.write(*place, "channels, highest score first", size=10, centred=True)

    return render(
        draw, "png", size=(WIDTH, height), title=f"{title}: {note}", background="white", dpi=DOTS
    )


class _Canvas:
    """A figure whose coordinates are CSS pixels from its upper left corner."""

    def __init__(self, figure: Figure, height: float) -> None:
        self._figure = figure
        self._height = height

    def write(
        self,
        left: float,
        top: float,
        text: str,
        *,
        size: float,
        colour: str = STRONG,
        bold: bool = False,
        centred: bool = False,
    ) -> None:
        """Write text, positioned by its upper left corner, or its upper middle if centred."""
        self._figure.text(
            left / WIDTH,
            1 - top / self._height,
            text,
            fontsize=size,
            color=colour,
            weight="bold" if bold else "normal",
            ha="center" if centred else "left",
            va="top",
        )

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes in a rectangle."""
        bottom = self._height - top - height
        across, up = WIDTH, self._height
        return self._figure.add_axes((left / across, bottom / up, width / across, height / up))


def _draw_head(canvas: _Canvas, title: str, note: str) -> None:
    canvas.write(20, 16, shorten(printable(title), 100), size=16, bold=True, colour=BLACK)
    canvas.write(20, 40, shorten(printable(note), 150), size=11.5)
    heads = (
        (SCORES[0], "Scores", "increase of the loss without the channel; band: standard error"),
        (WEIGHTS[0], "Attention", "weight times number of channels; 1 is uniform"),
        (NAMES, "Most influential images", "whose loss increases most without the channel"),
    )
    for left, head, below in heads:
        canvas.write(left, 72, head, size=12, bold=True, colour=BLACK)
        canvas.write(left, 89, below, size=10)


def _draw_tap(canvas: _Canvas, tap: TapFigure, top: float) -> None:
    rule = canvas.axes(20, top + 4, WIDTH - 40, 1)
    rule.set_axis_off()
    rule.axhline(0.5, color=LINE, alpha=0.5, linewidth=0.8)
    name = shorten(printable(tap.tap), 44)
    canvas.write(20, top + 13, name, size=12, bold=True, colour=SERIES[0])
    canvas.write(WEIGHTS[0], top + 14, tap.note, size=10)
    order = sorted(range(len(tap.scores)), key=lambda channel: -tap.scores[channel])
    _draw_scores(canvas.axes(SCORES[0], top + PLOT_TOP + 8, SCORES[1], PLOT), tap, order)
    _draw_weights(canvas.axes(WEIGHTS[0], top + PLOT_TOP + 8, WEIGHTS[1], PLOT), tap, order)
    for number, samples in enumerate(tap.influential_samples):
        _draw_influential_samples(canvas, samples, number, top + 12 + LINE_STEP * number)


def _draw_scores(axes: Axes, tap: TapFigure, order: Sequence[int]) -> None:
    scores = [tap.scores[channel] for channel in order]
    errors = [tap.standard_errors[channel] for channel in order]
    low = [score - error for score, error in zip(scores, errors, strict=True)]
    high = [score + error for score, error in zip(scores, errors, strict=True)]
    ranks = range(1, len(order) + 1)
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.fill_between(ranks, low, high, color=SERIES[0], alpha=0.25, linewidth=0)
    _draw_curve(axes, scores)
    _draw_top(axes, tap, order, scores)


def _draw_weights(axes: Axes, tap: TapFigure, order: Sequence[int]) -> None:
    weights = [tap.attention[channel] * len(order) for channel in order]
    ranks = range(1, len(order) + 1)
    axes.axhline(1, color=INK, linestyle="--", linewidth=1.1)
    axes.fill_between(ranks, weights, 1, color=SERIES[0], alpha=0.15, linewidth=0)
    _draw_curve(axes, weights)
    if max(weights) - min(weights) < 0.02:  # otherwise rounding errors would fill the plot
        axes.set_ylim(0.95, 1.05)
    _draw_top(axes, tap, order, weights)


def _draw_curve(axes: Axes, values: Sequence[float]) -> None:
    """Draw a line over the rank of channels."""
    ranks = range(1, len(values) + 1)
    marker = "o" if len(values) <= FEW else ""
    axes.plot(ranks, values, color=SERIES[0], marker=marker, markersize=3)
    axes.set_xlim(0.5 - 0.01 * len(values), len(values) + 0.5 + 0.01 * len(values))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _draw_top(axes: Axes, tap: TapFigure, order: Sequence[int], values: Sequence[float]) -> None:
    """Draw dots in the colours of the channels whose images are shown."""
    for number, samples in enumerate(tap.influential_samples):
        rank = order.index(samples.channel)
        axes.plot(
            [rank + 1], [values[rank]], "o", color=_COLOURS[number], markersize=6, clip_on=False
        )


def _draw_influential_samples(
    canvas: _Canvas, samples: InfluentialSamples, number: int, top: float
) -> None:
    colour = _COLOURS[number]
    canvas.write(NAMES, top + 18, "channel", size=10, colour=colour)
    canvas.write(NAMES, top + 30, str(samples.channel), size=12, bold=True, colour=colour)
    for column, (image, label) in enumerate(samples.images):
        left = IMAGES + STEP * column
        axes = canvas.axes(left, top, THUMBNAIL, THUMBNAIL)
        axes.imshow(ImageOps.fit(image, (PIXELS, PIXELS)))
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=colour, linewidth=1.2)
        name = shorten(printable(label), 12)
        canvas.write(left + THUMBNAIL / 2, top + THUMBNAIL + 2, name, size=8, centred=True)


_COLOURS = SERIES[1:4]


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS)
