import math
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from delta_transfer.metrics.run_result import RETENTION_COLUMNS
from delta_transfer.report.comparison.page import write_comparison_report
from delta_transfer.report.styles import STYLED_METHODS, method_style
from tests.report.large import make_large_comparison
from tests.report.made import (
    BESIDE,
    DELTA,
    L2,
    MINUS,
    PROBE,
    T_OF_3,
    Page,
    difference,
    make_comparison,
    runs,
)

NONE = "\N{EN DASH}"
RIGHT, WRONG = ("cat", "cat", 0.9), ("cat", "dog", 0.7)


def page_of(folder: Path) -> Page:
    path = write_comparison_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("comparison") / "runs"
    return make_comparison(folder, runs(probe=PROBE, l2=L2, l2sp=BESIDE, delta=DELTA))


@pytest.fixture(scope="module")
def page(comparison: Path) -> Page:
    return page_of(comparison)


class TestRanking:
    def test_means_deviations_and_differences(self, page: Page) -> None:
        rest = "1 min 1 s 812 MiB"
        assert page.row("DELTA 85.7% ±") == (
            f"DELTA 85.7% ± 1.2 3 {difference(DELTA, L2)} {difference(DELTA, PROBE)} {rest}"
        )
        assert page.row("L2-SP 81.7% ±") == (
            f"L2-SP 81.7% ± 3.1 3 {difference(BESIDE, L2)} {difference(BESIDE, PROBE)} {rest}"
        )
        assert page.row("Linear probe 81.0% ±") == (
            f"Linear probe 81.0% ± 1.0 3 {difference(PROBE, L2)} {NONE} {rest}"
        )
        assert page.row("Plain fine-tuning 81.0% ±") == (
            f"Plain fine-tuning 81.0% ± 1.7 3 {NONE} {difference(L2, PROBE)} {rest}"
        )

    def test_the_best_comes_first(self, page: Page) -> None:
        rows = [row.text for row in page.all("tr")]
        places = [
            rows.index(page.row(f"{name} ±"))
            for name in (
                "DELTA 85.7%",
                "L2-SP 81.7%",
                "Linear probe 81.0%",
                "Plain fine-tuning 81.0%",
            )
        ]
        assert places == sorted(places)
        terms = [term.text for term in page.all("dt")]
        figures = dict(zip(terms, [value.text for value in page.all("dd")], strict=True))
        assert figures == {
            "Best method": "DELTA",
            "Test accuracy": "85.7%",
            "vs plain fine-tuning, points": "+4.7",
            "Linear probe": "81.0%",
        }

    def test_only_significant_differences_are_bold(self, page: Page) -> None:
        bold = [element.text for element in page.all("strong")]
        assert bold == ["+4.7", "+4.7"]  # DELTA's, to plain fine-tuning and to the probe

    def test_figure(self, page: Page) -> None:
        half = 100 * T_OF_3 * statistics.stdev(DELTA.values()) / math.sqrt(3)
        mean = 100 * statistics.mean(DELTA.values())
        assert page.figure("Test accuracy per method.").startswith(
            "Test accuracy per method. "
            f"DELTA: mean 85.7%, 95% interval {mean - half:.1f}% to {mean + half:.1f}%, "
            "seeds 85.0%, 87.0%, 85.0%; L2-SP"
        )

    def test_without_baseline_seeds_in_common_or_test_split(self, tmp_path: Path) -> None:
        # Accuracies on the validation split, 10 and 15 points above the probe's.
        made = {
            ("delta", seed): {
                "test_accuracy": None,
                "linear_probe_test_accuracy": None,
                "val_accuracy": accuracy,
                "linear_probe_val_accuracy": probe,
            }
            for seed, (accuracy, probe) in {0: (0.8, 0.7), 1: (0.9, 0.75)}.items()
        }
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert "plain fine-tuning" not in page.text.lower()
        assert "All accuracies are on the validation split" in page.text
        assert "DELTA 85.0% ± 7.1 2 +12.5 " in page.row("DELTA 85.0% ±")
        assert "Linear probe: 72.5%." in page.figure("Validation accuracy per method")


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The last seed of DELTA with 20 images is not there yet."""
    made: dict[Any, Any] = {
        (method, seed, *size): {"test_accuracy": 0.5 + 0.1 * len(size) * delta + 0.01 * seed}
        for seed in (0, 1)
        for method, delta in (("l2", 0), ("delta", 1))
        for size in [(5,), (20,), ()]
    }
    for size in (5, 20):
        made["delta", 0, size]["test_accuracy"] = 0.45 + 0.01 * size
    del made["delta", 1, 20]
    return page_of(make_comparison(tmp_path_factory.mktemp("sizes") / "runs", made))


class TestSizes:
    def test_accuracy_of_each_method_and_size(self, sizes: Page) -> None:
        assert sizes.figure("Test accuracy by training images per class") == (
            "Test accuracy by training images per class. "
            "Plain fine-tuning: 5 images per class 50.5%, 20 images per class 50.5%, "
            "all training images 50.5%; "
            "DELTA: 5 images per class 55.5%, 20 images per class 65.0%, "
            "all training images 50.5%."
        )
        rows = [row.text for row in sizes.all("tr")]
        start = rows.index("Method 5 images per class 20 images per class All training images")
        half = 12.706204736432095 * math.sqrt(0.5) * 11 / math.sqrt(2)  # 50 and 61 per cent
        cells = rows[start + 2].split()
        assert cells[:2] == ["DELTA", "55.5%"]
        assert float(cells[2].rstrip("%").replace(MINUS, "-")) == pytest.approx(
            55.5 - half, abs=0.06
        )
        assert cells[5] == "65.0%"  # one seed: no interval
        assert cells[6] == "50.5%"

    def test_the_best_of_each_size(self, sizes: Page) -> None:
        said = [item.text for item in sizes.all("li")]
        assert said[1] == (
            "20 images per class: DELTA, 65.0%; +15.0 points vs plain fine-tuning "
            "(one seed, no interval)."
        )
        assert said[2].startswith("All training images: Plain fine-tuning and DELTA, 50.5%")

    def test_every_size_has_its_ranking(self, sizes: Page) -> None:
        opened = [element.text for element in sizes.all("summary")]
        assert opened[:2] == [
            "Ranking with 5 images per class",
            "Ranking with 20 images per class",
        ]
        told = [svg.attributes["aria-label"] for svg in sizes.all("svg")]
        assert sum(text.startswith("Test accuracy per method.") for text in told) == 3

    def test_graphs_are_not_called_images(self, tmp_path: Path) -> None:
        graphs = {"sample_type": "graph", **dict.fromkeys(RETENTION_COLUMNS)}
        made = {("l2", 0, 5): graphs, ("l2", 1): graphs}
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert "Accuracy by training set size" in page.headings
        assert "Plain fine-tuning with seed 0 on all training graphs" in page.text
        assert "Numbers are graphs;" in page.text
        assert "image" not in page.text.lower()

    def test_runs_that_are_missing_are_named(self, sizes: Page) -> None:
        assert "Of 12 runs, 1 is missing: DELTA with seed 1 on 20 images per class." in sizes.text

    def test_a_run_of_the_probe_has_no_trained_weights(self, page: Page) -> None:
        assert page.row("probe-seed0") == (
            f"probe-seed0 Linear probe 0 80.0% 80.0% 3 {NONE} 1 min 0 s 812 MiB"
        )

    def test_runs_are_listed(self, sizes: Page) -> None:
        assert sizes.row("20-per-class/l2-seed1") == (
            "20-per-class/l2-seed1 Plain fine-tuning 1 20 51.0% 62.5% 3 75.0% 2 min 13 s 812 MiB"
        )
        assert not [link for link in sizes.all("a") if "report.html" in link.attributes["href"]]


def test_without_files_of_training(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "runs", runs(delta={0: 0.8}))
    for name in ("metrics.csv", "drift.csv", "examples.csv"):
        (folder / "delta-seed0" / name).unlink()
    shutil.rmtree(folder / "delta-seed0" / "examples")
    page = page_of(folder)
    left = ["Test accuracy", "Accuracy per class", "Mistakes", "What fine-tuning kept"]
    assert page.headings == [*left, "Runs", "Configuration"]
    assert not page.all("img")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Page:
    owl = ("owl", "cat", 0.8)
    made = {
        ("probe", 0): {"answers": [RIGHT, WRONG, WRONG, RIGHT, owl], "test_accuracy": 0.5},
        ("l2", 0): {"answers": [WRONG, WRONG, WRONG, WRONG, owl], "test_accuracy": 0.0},
        ("delta", 0): {"answers": [WRONG, RIGHT, WRONG, RIGHT, owl], "test_accuracy": 0.6},
        ("delta", 1): {"answers": [("cat", "dog", 0.99), RIGHT, RIGHT, RIGHT, owl]},
    }
    return page_of(make_comparison(tmp_path_factory.mktemp("answers") / "runs", made))


class TestAnswers:
    def test_images_that_only_one_gets_right(self, answers: Page) -> None:
        assert (
            "Of 5 images with seed 0, DELTA classifies 1 correctly that the probe gets wrong, "
            "and 1 wrongly that the probe gets right." in answers.text
        )
        assert [image.attributes["alt"] for image in answers.all("img")][:2] == [
            "cat; the probe predicts dog with 70.0%, DELTA predicts cat with 90.0%",
            "cat; the probe predicts cat with 90.0%, DELTA predicts dog with 70.0%",
        ]

    def test_most_confident_mistakes_of_all_seeds_each_once(self, answers: Page) -> None:
        words = [caption.text for caption in answers.all("figcaption")]
        start = words.index("cat predicted as dog, 99.0% wrong in 2 of 2 runs")
        assert words[start + 1] == "owl predicted as cat, 80.0% wrong in 2 of 2 runs"
        assert words[start + 2] == "cat predicted as dog, 70.0% wrong in 1 of 2 runs"

    def test_accuracy_per_class(self, answers: Page) -> None:
        rows = [row.text for row in answers.all("tr")]
        heading = "Class DELTA Linear probe Plain fine-tuning Most frequent mistake (DELTA)"
        start = rows.index(heading)
        assert rows[start + 1 : start + 3] == [
            "owl 0.0% 0.0% 0.0% cat (2 of 2)",
            "cat 62.5% 50.0% 0.0% dog (3 of 8)",
        ]
        assert (
            "Compared to the linear probe, DELTA is better on 1 of 2 classes and worse on 0; "
            "the largest gain is on cat (+12.5 points)." in answers.text
        )

    def test_confusion_of_each_method(self, answers: Page) -> None:
        told = [svg.attributes["aria-label"] for svg in answers.all("svg")]
        assert [text for text in told if text.startswith("Confusion")] == [
            "Confusion matrix: 5 of 10 on the diagonal. "
            "Most frequent mistakes: cat predicted as dog (3), owl predicted as cat (2).",
            "Confusion matrix: 2 of 5 on the diagonal. "
            "Most frequent mistakes: cat predicted as dog (2), owl predicted as cat (1).",
            "Confusion matrix: 0 of 5 on the diagonal. "
            "Most frequent mistakes: cat predicted as dog (4), owl predicted as cat (1).",
        ]


class TestPage:
    def test_same_bytes_twice(self, comparison: Path, page: Page) -> None:
        assert write_comparison_report(comparison).read_text(encoding="utf-8") == page.content

    def test_configuration_shows_what_differs(self, page: Page) -> None:
        assert page.row("model") == "model pypi/efficientnet_lite0"
        assert page.row("strength") == "strength not set"
        assert "Made with python 3.12.0, torch 2.10.0." in page.text

    def test_escaped(self, tmp_path: Path) -> None:
        made = {
            ("<b>$x$", 0): {
                "answers": [("<i>", '"', 0.9)],
                "classes": ["<i>", '"'],
                "config": {"data": "<u>", "model": "<s>"},
            }
        }
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert not {element.tag for element in page.elements} & {"b", "i", "u", "s"}
        assert page.all("h1")[0].text == "Methods compared on <u>"
        assert page.all("img")[0].attributes["alt"].startswith('<i>, predicted as "')

    def test_stands_alone_and_is_accessible(self, page: Page) -> None:
        assert not page.all("script")
        for element in page.elements:
            if element.tag != "a":
                loaded = [element.attributes.get(name, "#") for name in ("src", "href")]
                assert all(value.startswith(("data:", "#")) for value in loaded)
        links = [link.attributes["href"] for link in page.all("a")]
        assert all(link.startswith("https://arxiv.org/abs/") for link in links)
        ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', page.content)) == set(ids)
        assert all(svg.attributes["aria-label"] for svg in page.all("svg"))
        assert all(image.attributes["alt"] for image in page.all("img"))

    def test_several_data_sets_are_named(self, tmp_path: Path) -> None:
        made = {
            ("delta", seed): {"config": {"data": data}}
            for seed, data in enumerate(["a/one", "two"])
        }
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert page.all("h1")[0].text == "Methods compared on a/one, two"
        assert page.row("data") == "data a/one; two"

    def test_six_methods_and_three_seeds_take_less_than_five_megabytes(
        self, tmp_path: Path
    ) -> None:
        folder = make_large_comparison(tmp_path / "runs")
        path = write_comparison_report(folder)
        assert 200_000 < path.stat().st_size < 5_000_000
        page = Page(path.read_text(encoding="utf-8"))
        assert len(page.all("img")) > 6 * 12
        assert sum("Confusion" in svg.attributes["aria-label"] for svg in page.all("svg")) == 6


def test_methods_that_share_a_colour_differ_in_marker_and_dashes() -> None:
    methods = ["probe", *STYLED_METHODS, "own", "other"]
    styles = [method_style(method, methods) for method in methods]
    for number, one in enumerate(styles):
        for other in styles[:number]:
            same = (
                (one.colour == other.colour)
                + (one.marker == other.marker)
                + (one.line_style == other.line_style)
            )
            assert same < 2
    assert method_style("delta", ["l2", "delta"]) == method_style("delta", methods)
