import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

from delta_transfer.report.comparison.ranking import ranking_plot
from delta_transfer.report.comparison.runs import rank_methods, read_comparison, summarize_methods
from delta_transfer.report.figures import INK, Plot, inline_svg, printable, render
from tests.report.made import make_comparison

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return make_comparison(
        tmp_path / "runs",
        {
            (method, seed): {"test_accuracy": 0.8 + 0.02 * seed}
            for method in ("l2", "delta")
            for seed in range(3)
        },
    )


def draw_line(figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=INK, marker="o")
    axes.set_title("$a_1$ <b>")


def plot_ranking(folder: Path) -> Plot:
    comparison = read_comparison(folder)
    return ranking_plot(comparison, rank_methods(summarize_methods(comparison)), "ranking")


class TestRankingPlot:
    def test_describes_itself(self, comparison: Path) -> None:
        plot = plot_ranking(comparison)
        assert plot.title == "Test accuracy, seed by seed"
        root = ET.fromstring(plot.svg)
        assert root.attrib["aria-label"].startswith("Test accuracy per method. Plain fine-tuning: ")
        assert root.attrib["aria-label"].endswith("Linear probe: 62.5%.")

    def test_needs_the_table_alone(self, comparison: Path, tmp_path: Path) -> None:
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / "results.csv").write_bytes((comparison / "results.csv").read_bytes())
        assert plot_ranking(alone) == plot_ranking(comparison)

    def test_perfect_accuracies(self, tmp_path: Path) -> None:
        made = {("delta", seed): {"test_accuracy": value} for seed, value in enumerate([1, 1, 0.9])}
        plot = plot_ranking(make_comparison(tmp_path / "runs", made))
        assert "95% interval 82.3% to 111.0%" in plot.svg


class TestInlineSvg:
    def test_is_one_element_without_styles(self) -> None:
        svg = inline_svg(draw_line, "name", size=(300, 200), text='say "<1>"')
        root = ET.fromstring(svg)
        assert root.attrib["aria-label"] == 'say "<1>"'
        assert (root.attrib["width"], root.attrib["height"]) == ("300", "200")
        assert root.attrib["viewBox"] == "0 0 300 200"
        assert {"style", "metadata", "title"}.isdisjoint(element.tag for element in root.iter())
        assert "$a_1$ <b>" in [element.text for element in root.iter("text")]
        assert "DejaVu" not in svg

    def test_ids_of_two_figures_differ(self) -> None:
        ids = [
            set(re.findall(r'id="([^"]*)"', inline_svg(draw_line, name, size=(9e2, 9e2), text="a")))
            for name in ("one", "two")
        ]
        assert ids[0]
        assert ids[0].isdisjoint(ids[1])

    def test_colours_become_variables(self) -> None:
        svg = inline_svg(draw_line, "name", size=(300, 200), text="a line")
        assert "var(--ink-2)" in svg
        assert INK not in svg


class TestRender:
    def test_png_is_transparent(self) -> None:
        with Image.open(io.BytesIO(render(draw_line, "png", size=(360, 180), title="a"))) as image:
            assert image.mode == "RGBA"
            assert image.getchannel("A").getpixel((0, 0)) == 0
            assert image.info["Title"] == "a"

    def test_letters_are_drawn_so_that_no_font_is_needed(self) -> None:
        root = ET.fromstring(render(draw_line, "svg", size=(300, 200)))
        assert root.tag == f"{SVG}svg"
        assert not root.findall(f".//{SVG}text")

    @pytest.mark.parametrize("kind", ["png", "svg"])
    def test_same_bytes_twice(self, kind: str) -> None:
        first, second = (render(draw_line, kind, size=(300, 200)) for _ in range(2))
        assert first == second
        assert not re.search(rb"dc:date|tIME", first)

    def test_leaves_no_trace(self) -> None:
        before = dict(matplotlib.rcParams)
        render(draw_line, "png", size=(300, 200))
        assert dict(matplotlib.rcParams) == before

    def test_a_persons_own_style_does_not_show(self) -> None:
        plain = render(draw_line, "svg", size=(300, 200))
        with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
            assert render(draw_line, "svg", size=(300, 200)) == plain

    def test_size(self) -> None:
        with Image.open(io.BytesIO(render(draw_line, "png", size=(360, 180)))) as image:
            assert image.size == (1000, 500)  # 200 dots an inch of 72 CSS pixels

    def test_printable(self) -> None:
        assert printable("a\x00b\x1bc\td") == "a\ufffdb\ufffdc\ufffdd"
        assert printable("ä 猫") == "ä 猫"
