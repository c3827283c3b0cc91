import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

from delta_transfer.errors import UserError
from delta_transfer.report.comparison.ranking import save_ranking_plot
from delta_transfer.report.figures import INK, inline_svg, printable, render
from tests.report.made import make_comparison

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    folder = make_comparison(
        tmp_path / "runs",
        {
            (method, seed): {"test_accuracy": 0.8 + 0.02 * seed}
            for method in ("l2", "delta")
            for seed in range(3)
        },
    )
    (tmp_path / "images").mkdir()
    return folder


def draw_line(figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=INK, marker="o")
    axes.set_title("$a_1$ <b>")


class TestPlotAccuracies:
    def test_png(self, comparison: Path, tmp_path: Path) -> None:
        path = tmp_path / "images" / "a.png"
        save_ranking_plot(comparison, path)
        with Image.open(path) as image:
            assert image.mode == "RGBA"
            assert image.width > 1000
            assert image.getchannel("A").getpixel((0, 0)) == 0
            assert image.info["Title"].startswith("Test accuracy per method. Plain fine-tuning: ")

    def test_svg(self, comparison: Path, tmp_path: Path) -> None:
        path = tmp_path / "images" / "a.svg"
        save_ranking_plot(comparison, path)
        root = ET.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        assert not root.findall(f".//{SVG}text")  # letters are drawn: no font is needed
        assert "Linear probe: 62.5%." in path.read_text()

    def test_needs_the_table_alone(self, comparison: Path, tmp_path: Path) -> None:
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / "results.csv").write_bytes((comparison / "results.csv").read_bytes())
        save_ranking_plot(alone, alone / "a.png")

    @pytest.mark.parametrize("name", ["a.png", "a.svg"])
    def test_same_bytes_twice(self, comparison: Path, tmp_path: Path, name: str) -> None:
        for folder in ("first", "second"):
            (tmp_path / folder).mkdir()
            save_ranking_plot(comparison, tmp_path / folder / name)
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
        assert first == second
        assert not re.search(rb"dc:date|tIME", first)

    def test_perfect_accuracies(self, tmp_path: Path) -> None:
        made = {("delta", seed): {"test_accuracy": value} for seed, value in enumerate([1, 1, 0.9])}
        folder = make_comparison(tmp_path / "runs", made)
        save_ranking_plot(folder, tmp_path / "a.svg")
        assert "95% interval 82.3% to 111.0%" in (tmp_path / "a.svg").read_text()

    def test_other_kinds(self, comparison: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"a\.pdf must end in \.png or \.svg"):
            save_ranking_plot(comparison, tmp_path / "a.pdf")

    def test_no_comparison(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"results\.csv is missing"):
            save_ranking_plot(tmp_path, tmp_path / "a.png")


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
