import math
import re
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from delta_transfer.errors import UserError
from delta_transfer.report import write_comparison_report, write_run_report
from tests.report.made import Page, make_comparison

MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"
T_OF_3 = 4.302652729911275  # Student's t, 97.5%, two degrees of freedom
PROBE = {0: 0.80, 1: 0.82, 2: 0.81}
L2 = {0: 0.80, 1: 0.83, 2: 0.80}
DELTA = {0: 0.85, 1: 0.87, 2: 0.85}
LOST = {0: 0.79, 1: 0.85, 2: 0.81}  # like plain fine-tuning, within its noise

Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def page_of(folder: Path) -> Page:
    path = write_comparison_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def runs(**methods: Mapping[int, float]) -> Runs:
    return {
        (method, seed): {
            "test_accuracy": accuracy,
            "linear_probe_test_accuracy": PROBE[seed],
            "seconds": 60.0 + seed,
        }
        for method, accuracies in methods.items()
        for seed, accuracy in accuracies.items()
    }


def difference(values: Mapping[int, float], others: Mapping[int, float]) -> str:
    """Mean and 95% interval of a paired difference of three seeds, as they must be printed."""
    deltas = [100 * (values[seed] - others[seed]) for seed in values]
    mean, half = statistics.mean(deltas), T_OF_3 * statistics.stdev(deltas) / math.sqrt(3)
    said = [f"{value:+.1f}".replace("-", MINUS) for value in (mean, mean - half, mean + half)]
    said = [words if words[1:] != "0.0" else "0.0" for words in said]
    return f"{said[0]} {said[1]} to {said[2]}"


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return make_comparison(tmp_path / "runs", runs(probe=PROBE, l2=L2, l2sp=LOST, delta=DELTA))


class TestTable:
    def test_means_deviations_and_differences(self, comparison: Path) -> None:
        page = page_of(comparison)
        assert page.row("DELTA") == (
            f"DELTA 85.7% ± 1.2 3 {difference(DELTA, L2)} {difference(DELTA, PROBE)} 1 min 1 s"
        )
        assert page.row("L2-SP") == (
            f"L2-SP 81.7% ± 3.1 3 {difference(LOST, L2)} {difference(LOST, PROBE)} 1 min 1 s"
        )
        assert page.row("Linear probe 81") == (
            f"Linear probe 81.0% ± 1.0 3 {difference(PROBE, L2)} {NONE} 1 min 1 s"
        )
        assert page.row("Plain fine-tuning 81") == (
            f"Plain fine-tuning 81.0% ± 1.7 3 {NONE} {difference(L2, PROBE)} 1 min 1 s"
        )

    def test_only_clear_differences_are_bold(self, comparison: Path) -> None:
        bold = [element.text for element in page_of(comparison).all("strong")]
        assert bold == ["+4.7", "+4.7"]  # DELTA's, to plain fine-tuning and to the probe

    def test_without_baseline(self, tmp_path: Path) -> None:
        folder = make_comparison(tmp_path / "runs", runs(probe=PROBE, delta=DELTA))
        page = page_of(folder)
        assert "plain fine-tuning" not in page.text.lower()
        row = f"DELTA 85.7% ± 1.2 3 {difference(DELTA, PROBE)} 1 min 1 s"
        assert page.row("DELTA 8") == row

    def test_seeds_are_paired(self, tmp_path: Path) -> None:
        # Two seeds in common, +5 and +4 points; the third of l2 has no partner.
        some = {seed: DELTA[seed] for seed in (0, 1)}
        page = page_of(make_comparison(tmp_path / "runs", runs(l2=L2, delta=some)))
        half = 12.706204736432095 * statistics.stdev([5, 4]) / math.sqrt(2)
        assert f"+4.5 {MINUS}{half - 4.5:.1f} to +{4.5 + half:.1f}" in page.row("DELTA 8")

    def test_runs_are_listed_with_links_to_their_pages(self, comparison: Path) -> None:
        for name in ("delta-seed0", "l2-seed2"):
            write_run_report(comparison / name)
        page = page_of(comparison)
        links = [link.attributes["href"] for link in page.all("a")]
        assert links[:2] == ["l2-seed2/report.html", "delta-seed0/report.html"]
        assert all((comparison / link).is_file() for link in links[:2])
        assert page.row("delta-seed1") == "delta-seed1 DELTA 1 87.0% 82.0% 2 1 min 1 s"


class TestFindings:
    def test_a_win(self, comparison: Path) -> None:
        text = page_of(comparison).text
        assert "DELTA has the highest test accuracy: 85.7% (mean of 3 seeds)." in text
        mean, _, interval = difference(DELTA, L2).partition(" ")
        assert (
            f"Against plain fine-tuning: {mean} points (95% interval {interval}); "
            "that is above plain fine-tuning beyond what the choice of seed explains." in text
        )

    def test_an_interval_with_zero_is_no_win(self, tmp_path: Path) -> None:
        page = page_of(make_comparison(tmp_path / "runs", runs(l2=L2, l2sp=LOST)))
        said = "the interval includes zero, so these seeds do not tell the two apart."
        assert page.text.count(said) == 2
        assert "beyond what" not in page.text

    def test_below_the_probe(self, tmp_path: Path) -> None:
        low = {seed: accuracy - 0.05 - 0.001 * seed for seed, accuracy in PROBE.items()}
        page = page_of(make_comparison(tmp_path / "runs", runs(probe=PROBE, delta=low)))
        assert "DELTA has the highest test accuracy: 75.9%" in page.text
        assert "that is below the linear probe beyond what" in page.text

    def test_one_seed(self, tmp_path: Path) -> None:
        folder = make_comparison(tmp_path / "runs", runs(l2={0: 0.8}, delta={0: 0.85}))
        page = page_of(folder)
        assert page.row("DELTA 8") == (
            "DELTA 85.0% 1 +5.0 one seed, no interval +5.0 one seed, no interval 1 min 0 s"
        )
        assert not page.all("strong")
        assert "With fewer than two seeds there is no interval" in page.text
        assert "Against plain fine-tuning: +5.0 points, on one seed." in page.text
        assert "beyond what" not in page.text
        assert "nan" not in page.text

    def test_equals_share_the_first_place(self, tmp_path: Path) -> None:
        made = runs(probe={0: 0.9}, l2={0: 0.5}, l2sp={0: 0.7}, delta={0: 0.7})
        text = page_of(make_comparison(tmp_path / "runs", made)).text
        assert (
            "Of the fine-tuned methods, L2-SP and DELTA share the highest test accuracy: "
            "70.0% (one seed). What follows is said of L2-SP. "
            "Against plain fine-tuning: +20.0 points" in text
        )

    def test_the_probe_alone(self, tmp_path: Path) -> None:
        page = page_of(make_comparison(tmp_path / "runs", runs(probe=PROBE)))
        assert "Of the methods, Linear probe has the highest test accuracy: 81.0%" in page.text

    def test_no_test_split(self, tmp_path: Path) -> None:
        none = {"test_accuracy": None, "linear_probe_test_accuracy": None}
        values = {0: (0.8, 0.7), 1: (0.9, 0.75)}
        folder = make_comparison(
            tmp_path / "runs",
            {
                ("delta", seed): {
                    **none,
                    "val_accuracy": accuracy,
                    "linear_probe_val_accuracy": probe,
                }
                for seed, (accuracy, probe) in values.items()
            },
        )
        page = page_of(folder)
        assert "All accuracies are on the validation split" in page.text
        assert "DELTA 85.0% ± 7.1 2 +12.5 " in page.row("DELTA 8")  # 10 and 15 points
        assert "Linear probe: 72.5%." in page.figure("Validation accuracy per method")

    def test_one_run_without_test_puts_all_on_validation(self, tmp_path: Path) -> None:
        made = {**runs(delta=DELTA), ("delta", 2): {"test_accuracy": None}}
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert "There is no test accuracy for every run." in page.text
        assert "DELTA 80.0% ± 0.0 3" in page.row("DELTA 8")


class TestFigures:
    def test_accuracies(self, comparison: Path) -> None:
        told = page_of(comparison).figure("Test accuracy per method.")
        half = 100 * T_OF_3 * statistics.stdev(DELTA.values()) / math.sqrt(3)
        mean = 100 * statistics.mean(DELTA.values())
        assert (
            f"DELTA: mean 85.7%, 95% interval {mean - half:.1f}% to {mean + half:.1f}%, "
            "seeds 85.0%, 87.0%, 85.0%. Linear probe: 81.0%." in told
        )

    def test_curves_are_means_over_seeds(self, tmp_path: Path) -> None:
        made = {
            ("l2", 0): {"curve": [0.1, 0.4, 0.6], "linear_probe_val_accuracy": 0.5},
            ("l2", 1): {"curve": [0.3, 0.6, 0.7, 0.9], "linear_probe_val_accuracy": 0.6},
        }
        folder = make_comparison(tmp_path / "runs", made)
        assert page_of(folder).figure("Validation accuracy, mean") == (
            "Validation accuracy, mean over seeds, by epoch. Plain fine-tuning: epoch 0 20.0%, "
            "epoch 1 50.0%, epoch 2 65.0%. Linear probe: 55.0%."
        )

    def test_many_methods(self, tmp_path: Path) -> None:
        names = [f"a_method_with_quite_a_long_name_{number}" for number in range(12)]
        page = page_of(
            make_comparison(tmp_path / "runs", runs(**{name: {0: 0.5} for name in names}))
        )
        assert page.figure("Test accuracy per method").count("one seed 50.0%") == 12

    def test_without_metrics(self, comparison: Path) -> None:
        for path in comparison.glob("*/metrics.csv"):
            path.unlink()
        assert len(page_of(comparison).all("svg")) == 1


RIGHT, WRONG = ("cat", "cat", 0.9), ("cat", "dog", 0.7)


class TestExamples:
    def test_pictures_that_only_one_gets_right(self, tmp_path: Path) -> None:
        made = {
            ("probe", 0): {"answers": [RIGHT, WRONG, WRONG, RIGHT], "test_accuracy": 0.5},
            ("l2", 0): {"answers": [WRONG, WRONG, WRONG, WRONG], "test_accuracy": 0.0},
            ("delta", 0): {"answers": [WRONG, RIGHT, WRONG, RIGHT], "test_accuracy": 0.6},
        }
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert "DELTA beside the linear probe" in page.headings
        assert (
            "Of 4 pictures with seed 0, DELTA has 1 right that the probe gets wrong, "
            "and 1 wrong that the probe gets right." in page.text
        )
        assert [picture.attributes["alt"] for picture in page.all("img")] == [
            "cat; the probe says dog with 70.0%, DELTA says cat with 90.0%",
            "cat; the probe says cat with 90.0%, DELTA says dog with 70.0%",
        ]

    def test_same_seed_of_both(self, tmp_path: Path) -> None:
        made = {
            ("probe", 0): {"answers": [RIGHT]},
            ("probe", 3): {"answers": [WRONG, WRONG]},
            ("delta", 3): {"answers": [RIGHT, RIGHT]},
        }
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert "Of 2 pictures with seed 3, DELTA has 2 right" in page.text

    def test_other_pictures_or_no_probe(self, tmp_path: Path) -> None:
        made: dict[tuple[str, int], dict[str, Any]] = {
            ("probe", 0): {"answers": [WRONG]},
            ("delta", 0): {"answers": [RIGHT, WRONG]},
        }
        page = page_of(make_comparison(tmp_path / "others", made))
        assert "Example predictions of DELTA" in page.headings
        assert [picture.attributes["alt"] for picture in page.all("img")] == [
            "cat, taken for dog with probability 70.0%",
            "cat, recognised with probability 90.0%",
        ]
        del made["probe", 0]
        page = page_of(make_comparison(tmp_path / "alone", made))
        assert "Example predictions of DELTA" in page.headings

    def test_no_pictures(self, comparison: Path) -> None:
        for path in [*comparison.glob("*/examples.csv")]:
            path.unlink()
            shutil.rmtree(path.parent / "examples")
        assert not page_of(comparison).all("img")


class TestPage:
    def test_same_bytes_twice(self, comparison: Path) -> None:
        first = write_comparison_report(comparison).read_bytes()
        assert write_comparison_report(comparison).read_bytes() == first

    def test_escaped(self, tmp_path: Path) -> None:
        made = {
            ("<b>$x$", 0): {
                "answers": [("<i>", '"', 0.9)],
                "classes": ["<i>", '"'],
                "config": {"data": "<u>", "model": "<s>"},
            }
        }
        folder = make_comparison(tmp_path / "runs", made)
        write_run_report(folder / "<b>$x$-seed0")
        page = page_of(folder)
        assert not {element.tag for element in page.elements} & {"b", "i", "u", "s"}
        assert page.all("h1")[0].text == "Methods compared on <u>"
        assert page.all("a")[0].attributes["href"] == "%3Cb%3E%24x%24-seed0/report.html"
        assert page.all("img")[0].attributes["alt"].startswith('<i>, taken for "')

    def test_stands_alone_and_is_accessible(self, comparison: Path) -> None:
        page = page_of(comparison)
        assert not page.all("script")
        for element in page.elements:
            if element.tag != "a":
                loaded = [element.attributes.get(name, "#") for name in ("src", "href")]
                assert all(value.startswith(("data:", "#")) for value in loaded)
        ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', page.content)) == set(ids)
        assert all(svg.attributes["aria-label"] for svg in page.all("svg"))
        assert all(picture.attributes["alt"] for picture in page.all("img"))

    def test_several_data_sets_are_named(self, tmp_path: Path) -> None:
        made = {
            ("delta", seed): {"config": {"data": data}}
            for seed, data in enumerate(["a/one", "two", "two"])
        }
        page = page_of(make_comparison(tmp_path / "runs", made))
        assert page.all("h1")[0].text == "Methods compared on a/one, two"


class TestDamage:
    HEADER = "method,seed,test_accuracy,val_accuracy,linear_probe_test_accuracy"
    HEADER += ",best_epoch,seconds,folder"

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("", "holds no runs"),
            ("delta,0,0.5,0.5,0.5,1,9,/delta", "line 2: folder must lie in"),
            ("delta,0,0.5,0.5,0.5,1,9,../delta", "line 2: folder must lie in"),
            ("delta,0,0.5,0.5,0.5,1,9,", "line 2: folder must lie in"),
            ("delta,0,50,0.5,0.5,1,9,delta", "test_accuracy must lie between 0 and 1, got '50'"),
            ("delta,0,0.5,0.5,,1,9,delta", "linear_probe_test_accuracy must be a number, got ''"),
            ("delta,x,0.5,0.5,0.5,1,9,delta", "seed must be a number, got 'x'"),
            ("delta,0,0.5,0.5,0.5,1,9", "line 2: 8 cells expected, got 7"),
            ("delta,0,,0.5,,1,9,delta", "no finished run in"),
            ("\n".join(["delta,0,0.5,0.5,0.5,1,9,delta"] * 2), "delta with seed 0 is there twice"),
        ],
    )
    def test_table(self, tmp_path: Path, rows: str, message: str) -> None:
        (tmp_path / "results.csv").write_text(f"{self.HEADER}\n{rows}\n")
        with pytest.raises(UserError, match=re.escape(message)):
            write_comparison_report(tmp_path)
        assert not (tmp_path / "report.html").exists()

    def test_no_comparison(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"results\.csv is missing"):
            write_comparison_report(tmp_path)

    def test_no_column(self, tmp_path: Path) -> None:
        (tmp_path / "results.csv").write_text("method,seed\ndelta,0\n")
        with pytest.raises(UserError, match="has no column test_accuracy, val_accuracy"):
            write_comparison_report(tmp_path)

    @pytest.mark.parametrize("name", ["config.yaml", "predictions.csv", "result.json"])
    def test_file_of_a_run(self, comparison: Path, name: str) -> None:
        (comparison / "delta-seed0" / name).unlink()
        with pytest.raises(UserError, match=f"delta-seed0.*{re.escape(name)}"):
            write_comparison_report(comparison)
