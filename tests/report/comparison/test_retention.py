import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from delta_transfer.errors import DataError
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.run_result import RETENTION_COLUMNS, comparison_columns
from delta_transfer.report.comparison.page import write_comparison_report
from delta_transfer.report.comparison.retention import method_retention
from delta_transfer.report.comparison.runs import read_comparison
from tests.report.made import Page, make_comparison, write_csv

HEADING = "What fine-tuning kept"


def made(folder: Path, runs: Mapping[tuple[str, int], Mapping[str, Any]]) -> Page:
    make_comparison(folder, runs)
    return Page(write_comparison_report(folder).read_text(encoding="utf-8"))


RUNS: dict[tuple[str, int], dict[str, Any]] = {
    ("probe", 0): {"test_accuracy": 0.5, "kept_agreement": 1.0},
    ("probe", 1): {"test_accuracy": 0.6, "kept_agreement": 1.0},
    ("l2", 0): {"test_accuracy": 0.6, "kept_agreement": 0.3, "corruption_accuracy": 0.25},
    ("l2", 1): {"test_accuracy": 0.7, "kept_agreement": 0.5, "corruption_accuracy": 0.5},
}


class TestPage:
    def test_means_by_method(self, tmp_path: Path) -> None:
        page = made(tmp_path / "runs", RUNS)
        assert HEADING in page.headings
        (heading,) = [row.text for row in page.all("tr") if row.text.startswith("Method Kept")]
        assert heading == "Method Kept agreement Corrupted images Linear probe, corrupted"
        assert page.row("Plain fine-tuning 40.0%") == "Plain fine-tuning 40.0% 37.5% 50.0%"
        assert page.row("Linear probe 100.0%") == "Linear probe 100.0% 55.0% 50.0%"

    def test_accuracy_against_kept_agreement(self, tmp_path: Path) -> None:
        assert made(tmp_path / "runs", RUNS).figure("Test accuracy against") == (
            "Test accuracy against kept agreement. Linear probe: accuracy 55.0%, kept agreement "
            "100.0%; Plain fine-tuning: accuracy 65.0%, kept agreement 40.0%."
        )

    def test_shifted_images_have_columns(self, tmp_path: Path) -> None:
        shifted = {"shifted_accuracy": 0.375, "linear_probe_shifted_accuracy": 0.25}
        page = made(tmp_path / "runs", {key: {**run, **shifted} for key, run in RUNS.items()})
        assert page.row("Plain fine-tuning 40.0%").endswith("37.5% 25.0%")

    def test_a_line_over_the_strengths_of_a_method(self, tmp_path: Path) -> None:
        runs = {
            ("delta", seed): {
                "test_accuracy": accuracy,
                "kept_agreement": kept,
                "strength": strength,
            }
            for seed, (strength, accuracy, kept) in enumerate(
                [(1.0, 0.7, 0.9), (0.1, 0.8, 0.6), (0.1, 0.6, 0.4)]
            )
        }
        runs |= {("probe", s): {"kept_agreement": 1.0, "strength": 0.1 + s} for s in range(3)}
        text = made(tmp_path / "runs", runs).figure("Test accuracy against")
        assert "(strength 0.1 70.0% and 50.0%, strength 1 70.0% and 90.0%)" in text
        assert text.count("strength") == 2  # that of the probe is chosen, for each seed
        plot = method_retention(read_comparison(tmp_path / "runs")).plot
        assert "Small points on a line" in plot.caption
        assert "95% confidence intervals" in plot.caption

    def test_a_single_seed_has_no_bars(self, tmp_path: Path) -> None:
        make_comparison(tmp_path / "runs", {("l2", 0): RUNS["l2", 0]})
        plot = method_retention(read_comparison(tmp_path / "runs")).plot
        assert plot.caption == "Up and to the right is better."

    def test_without_a_classifier_there_is_no_plot(self, tmp_path: Path) -> None:
        page = made(tmp_path / "runs", {("l2", 0): {"kept_agreement": None}})
        assert HEADING in page.headings
        assert "against kept agreement" not in page.content

    def test_nothing_was_measured(self, tmp_path: Path) -> None:
        nothing = dict.fromkeys(RETENTION_COLUMNS)
        assert HEADING not in made(tmp_path / "runs", {("l2", 0): nothing}).headings


class TestTable:
    def test_the_columns_may_be_missing(self, tmp_path: Path) -> None:
        columns = [c for c in comparison_columns(ACCURACY) if c not in RETENTION_COLUMNS]
        row = ["delta", 0, "", 0.5, 0.5, 0.5, 1, 3.0, 9, 800, "delta"]
        write_csv(tmp_path / "results.csv", [columns, row])
        (entry,) = read_comparison(tmp_path).entries
        assert entry.retention == {}

    def test_values(self, tmp_path: Path) -> None:
        make_comparison(tmp_path / "runs", {("l2", 0): RUNS["l2", 0]})
        (entry,) = read_comparison(tmp_path / "runs").entries
        assert entry.retention == {
            "kept_agreement": 0.3,
            "corruption_accuracy": 0.25,
            "linear_probe_corruption_accuracy": 0.5,
        }

    def test_a_value_that_is_no_fraction(self, tmp_path: Path) -> None:
        make_comparison(tmp_path / "runs", {("l2", 0): RUNS["l2", 0]})
        path = tmp_path / "runs" / "results.csv"
        path.write_text(re.sub(r",0\.3,0\.25,", ",30,0.25,", path.read_text()))
        with pytest.raises(DataError, match="kept_agreement must be between 0 and 1, got '30'"):
            read_comparison(tmp_path / "runs")
