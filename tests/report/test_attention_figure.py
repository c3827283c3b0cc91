import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from delta_transfer.report import attention_figure as module
from delta_transfer.report.attention_figure import (
    DOTS,
    WIDTH,
    InfluentialSamples,
    TapFigure,
    draw_attention_figure,
)
from delta_transfer.report.figures import _style

LONG = "stages.3.blocks.17.a_module.with_quite.a_long_name.conv3"


def drivers(
    channels: Sequence[int], images: int = 4, label: str = "rings"
) -> list[InfluentialSamples]:
    return [
        InfluentialSamples(
            channel=channel,
            images=[
                (Image.new("RGB", (30, 20 + 40 * n), (80 * row, 60 * n, 9)), f"{label} {n}")
                for n in range(images)
            ],
        )
        for row, channel in enumerate(channels)
    ]


def tap(name: str = "layer1", channels: int = 24, scale: float = 0.01, **changes: Any) -> TapFigure:
    """A tap with random scores, and attention that goes with them."""
    scores = np.random.default_rng(channels).normal(size=channels) * scale
    weights = np.exp(scores / scale)
    made = TapFigure(
        tap=name,
        note=f"{channels:,} channels · effective {0.9 * channels:,.1f} · entropy 0.987 · error 12%",
        scores=scores.tolist(),
        standard_errors=[0.1 * scale * (1 + number % 3) for number in range(channels)],
        attention=(weights / weights.sum()).tolist(),
        influential_samples=drivers(np.argsort(-scores, kind="stable")[:3].tolist()),
    )
    return dataclasses.replace(made, **changes)


def drawn(monkeypatch: pytest.MonkeyPatch, taps: Sequence[TapFigure]) -> Figure:
    """The figure itself, as it was before it became a file."""
    made = []

    def render(draw: Any, kind: str, *, size: tuple[float, float], **options: Any) -> bytes:
        with _style({}):
            figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
            draw(figure)
            FigureCanvasAgg(figure).draw()
        made.append(figure)
        return b""

    monkeypatch.setattr(module, "render", render)
    draw_attention_figure(
        taps, title="Channel attention of resnet50 on pets", note="exact, 9 images"
    )
    return made[0]


def plots(figure: Figure) -> list[Any]:
    """Scores and attention of each tap, in turn."""
    return [axes for axes in figure.axes if len(axes.lines) > 1]


class TestFile:
    def test_it_is_a_image_on_white(self) -> None:
        content = draw_attention_figure([tap(), tap("layer2")], title="Attention", note="9 images")
        with Image.open(io.BytesIO(content)) as image:
            assert image.width == WIDTH * DOTS / 72
            assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
            assert image.info["Title"] == "Attention: 9 images"
            assert len(image.convert("L").getcolors()) > 50

    def test_each_tap_has_a_row(self) -> None:
        heights = []
        for count in (1, 2, 3):
            taps = [tap(channels=3, influential_samples=[])] * count
            content = draw_attention_figure(taps, title="Attention", note="")
            with Image.open(io.BytesIO(content)) as image:
                heights.append(image.height)
        assert heights[2] - heights[1] == heights[1] - heights[0] > 300

    def test_same_bytes_twice_and_others_of_other_scores(self) -> None:
        first, second, third = (
            draw_attention_figure([tap(channels=3, scale=scale)], title="Attention", note="")
            for scale in (0.01, 0.01, 0.02)
        )
        assert first == second != third

    def test_of_many_taps_the_first_are_drawn_and_the_others_counted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_TAPS", 2)
        few = tap(channels=3, influential_samples=[])
        titles = []
        for count in (2, 4):
            content = draw_attention_figure([few] * count, title="Attention", note="exact")
            with Image.open(io.BytesIO(content)) as image:
                titles.append((image.height, image.info["Title"]))
        (height, whole), (same, cut) = titles
        assert height == same
        assert (whole, cut) == ("Attention: exact", "Attention: exact; 2 more taps not drawn")


class TestDrawing:
    def test_scores_and_weights_are_sorted_by_score(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = tap(channels=30)
        scores, weights = plots(drawn(monkeypatch, [one]))
        order = np.argsort(-np.array(one.scores), kind="stable")
        curve = max(scores.lines, key=lambda line: len(line.get_xdata()))
        assert list(curve.get_xdata()) == list(range(1, 31))
        assert list(curve.get_ydata()) == np.array(one.scores)[order].tolist()
        curve = max(weights.lines, key=lambda line: len(line.get_xdata()))
        assert curve.get_ydata() == pytest.approx(30 * np.array(one.attention)[order])

    def test_a_band_shows_standard_errors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = tap(channels=5)
        (scores, _) = plots(drawn(monkeypatch, [one]))
        (band,) = scores.collections
        corners = {
            (int(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices if x == int(x)
        }
        for rank, channel in enumerate(np.argsort(-np.array(one.scores)), start=1):
            for sign in (-1, 1):
                value = one.scores[channel] + sign * one.standard_errors[channel]
                assert (rank, round(value, 9)) in corners

    def test_uniform_is_a_line_at_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flat = tap(
            scores=[0.0] * 4,
            standard_errors=[0.0] * 4,
            attention=[0.25] * 4,
            influential_samples=[],
        )
        (_, weights) = plots(drawn(monkeypatch, [flat]))
        assert [line.get_ydata()[0] for line in weights.lines if line.is_dashed()] == [1]
        low, high = weights.get_ylim()
        assert low < 0.96 < 1.04 < high  # rounding does not fill the plot

    def test_top_channels_are_dots_in_the_colour_of_their_images(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = tap()
        figure = drawn(monkeypatch, [one])
        scores, weights = plots(figure)
        images = [axes for axes in figure.axes if axes.images]
        assert len(images) == 12
        for number, driver in enumerate(one.influential_samples):
            own = images[4 * number : 4 * number + 4]
            colours = {axes.spines.left.get_edgecolor() for axes in own}
            assert len(colours) == 1
            for axes, values in ((scores, one.scores), (weights, 24 * np.array(one.attention))):
                dot = [line for line in axes.lines if len(line.get_xdata()) == 1][number]
                assert dot.get_ydata()[0] == pytest.approx(values[driver.channel])
                assert dot.get_xdata()[0] == number + 1
            words = {text.get_text() for text in figure.texts}
            assert {str(driver.channel), "rings 0", "rings 3"} <= words
            for axes, (image, _) in zip(own, driver.images, strict=True):
                shown = axes.images[0].get_array()
                assert shown.shape[0] == shown.shape[1]
                assert tuple(shown[0, 0]) == image.getpixel((0, 0))


STRANGE = {
    "one channel": tap(channels=1),
    "no errors": tap(standard_errors=[math.nan] * 24),
    "many channels": tap(
        LONG, 2048, 3e-5, influential_samples=drivers([2047, 0, 1999], label="a" * 40)
    ),
    "large scores": tap(channels=320, scale=2e7),
    "negative scores": tap(scores=[-1e-6 * n for n in range(24)]),
    "few images": tap(influential_samples=drivers([3, 4], 1, "strange \x00 $x$ <b> 猫")),
    "nothing to see": tap(scores=[0.0] * 24, attention=[1 / 24] * 24, influential_samples=[]),
}


@pytest.mark.parametrize("name", STRANGE)
def test_no_words_overlap_or_leave_the_image(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    figure = drawn(monkeypatch, [STRANGE[name], tap()])
    words = [text for text in figure.texts if text.get_text()]
    for axes in plots(figure):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            words += [
                tick.label1
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_text()
            ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in words]
    images = [axes.get_window_extent() for axes in figure.axes if axes.images]
    assert len(boxes) > 30
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
        assert not any(box.overlaps(image) for image in images), text
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), (first, second)
