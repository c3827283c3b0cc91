import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from delta_transfer.errors import ModelError
from delta_transfer.metrics.run_result import ModelSelection
from delta_transfer.report.comparison.page import write_comparison_report
from delta_transfer.report.run_page import write_run_report
from delta_transfer.report.trade_off import trade_off
from tests.report.made import Page, make_comparison, make_run

HEADING = "Accuracy and kept knowledge"
TWO = ModelSelection(
    strengths=(1.0, 0.1),
    mixing_coefficients=(0.5, 0.25, 0.25),
    losses=dict.fromkeys(["0/50/50", "50/25/25", "0/100/0", "0/0/100", "100/0/0"], 0.5),
    folds=3,
    averaged=True,
    averages_folds=True,
    accuracies={"0/50/50": 0.9, "50/25/25": 0.8, "0/100/0": 0.7, "0/0/100": 0.6, "100/0/0": 0.5},
    agreements={"0/50/50": 0.4, "50/25/25": 0.6, "0/100/0": 0.8, "0/0/100": 0.2, "100/0/0": 1.0},
)
ONE = ModelSelection(
    strengths=(0.01,),
    mixing_coefficients=(0.0, 1.0),
    losses=dict.fromkeys(["0/100", "25/75", "50/50", "75/25"], 0.5),
    folds=0,
    averaged=True,
    averages_folds=False,
    accuracies={"0/100": 0.75, "25/75": 0.7, "50/50": 0.65, "75/25": 0.6},
    agreements={"0/100": 0.1, "25/75": 0.2, "50/50": 0.3, "75/25": 0.4},
)


def shifted(selection: ModelSelection, by: float, **changes: Any) -> ModelSelection:
    """As of another seed: every accuracy is larger by so much, every agreement smaller."""
    return dataclasses.replace(
        selection,
        accuracies={key: value + by for key, value in selection.accuracies.items()},
        agreements={key: value - by for key, value in selection.agreements.items()},
        **changes,
    )


def stored(selection: ModelSelection) -> dict[str, Any]:
    return {"model_selection": dataclasses.asdict(selection)}


def compared(folder: Path, runs: Mapping[tuple[str, int], ModelSelection | None]) -> Page:
    values = {
        key: {"model_selection": None if one is None else dataclasses.asdict(one)}
        for key, one in runs.items()
    }
    path = write_comparison_report(make_comparison(folder, values))
    return Page(path.read_text(encoding="utf-8"))


class TestComparison:
    def test_means_over_the_seeds(self, tmp_path: Path) -> None:
        other = shifted(TWO, 0.05, mixing_coefficients=(0.0, 0.5, 0.5))
        page = compared(tmp_path / "runs", {("delta", 0): TWO, ("delta", 1): other})
        assert page.headings.count(HEADING) == 1
        assert page.figure(HEADING) == (
            "Accuracy and kept knowledge. "
            "DELTA, strength 1 + 0.1: 100% trained (default) accuracy 92.5%, kept agreement 37.5%, "
            "50% trained accuracy 82.5%, kept agreement 57.5%, "
            "start accuracy 52.5%, kept agreement 97.5%; "
            "DELTA, strength 1: 100% trained accuracy 72.5%, kept agreement 77.5%, "
            "start accuracy 52.5%, kept agreement 97.5%; "
            "DELTA, strength 0.1: 100% trained accuracy 62.5%, kept agreement 17.5%, "
            "start accuracy 52.5%, kept agreement 97.5%."
        )
        assert "Means over the seeds." in page.text
        assert "each by the networks of a fold" in page.text

    def test_the_table_has_each_mixture_once_and_who_has_chosen_it(self, tmp_path: Path) -> None:
        other = shifted(TWO, 0.05, mixing_coefficients=(0.0, 0.5, 0.5))
        page = compared(tmp_path / "runs", {("delta", 0): TWO, ("delta", 1): other})
        rows = [row.text for row in page.all("tr") if row.text.startswith("DELTA, ")]
        assert rows == [
            "DELTA, strength 1 + 0.1, 100% trained (default) 37.5% 92.5% 1 of 2 runs",
            "DELTA, strength 1 + 0.1, 50% trained 57.5% 82.5% 1 of 2 runs",
            "DELTA, start 97.5% 52.5% 0 of 2 runs",
            "DELTA, strength 1, 100% trained 77.5% 72.5% 0 of 2 runs",
            "DELTA, strength 0.1, 100% trained 17.5% 62.5% 0 of 2 runs",
        ]

    def test_a_method_with_one_strength_and_no_start(self, tmp_path: Path) -> None:
        page = compared(tmp_path / "runs", {("probe", 0): None, ("l2", 0): ONE})
        assert page.figure(HEADING) == (
            "Accuracy and kept knowledge. "
            "Plain fine-tuning: 100% trained (default) accuracy 75.0%, kept agreement 10.0%, "
            "75% trained accuracy 70.0%, kept agreement 20.0%, "
            "50% trained accuracy 65.0%, kept agreement 30.0%, "
            "25% trained accuracy 60.0%, kept agreement 40.0%."
        )
        assert page.row("Plain fine-tuning, 100%").endswith("10.0% 75.0% 1 of 1 run")
        assert "through smaller shares towards the start." in page.text
        assert "by the networks of a fold" not in page.text

    @pytest.mark.parametrize("unknown", ["accuracies", "agreements"])
    def test_without_both_there_is_no_heading(self, tmp_path: Path, unknown: str) -> None:
        found = dataclasses.replace(TWO, **{unknown: {}})
        page = compared(tmp_path / "runs", {("delta", 0): found, ("probe", 0): None})
        assert HEADING not in page.headings
        assert HEADING not in page.content

    def test_runs_that_have_them_are_shown_beside_others(self, tmp_path: Path) -> None:
        without = dataclasses.replace(ONE, agreements={})
        page = compared(tmp_path / "runs", {("l2", 0): without, ("lwf", 0): ONE, ("lwf", 1): ONE})
        assert "Plain fine-tuning:" not in page.figure(HEADING)
        assert page.row("LwF, 100% trained").endswith("2 of 2 runs")


def drawn_line(svg: str, num_points: int) -> list[tuple[float, float]]:
    """The corners of the first line of a method with so many points, in the plot's pixels."""
    corners = r"M [\d.]+ [\d.]+" + r"\s+L [\d.]+ [\d.]+" * (num_points - 1)
    path = re.search(rf'd="({corners})\s*" style="fill: none; [^"]*--series-', svg)
    assert path is not None
    numbers = [float(number) for number in re.findall(r"[\d.]+", path[1])]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


class TestPlot:
    def test_the_start_is_a_star_and_the_default_a_large_point(self) -> None:
        found = trade_off({"delta": [TWO]})
        assert found is not None
        assert found.plot.title == HEADING
        assert "to the start, the star" in found.plot.caption
        assert "Means" not in found.plot.caption
        for name in ("DELTA, strength 1 + 0.1", "DELTA, strength 0.1", "start"):
            assert f">{name}</text>" in found.plot.svg

    def test_points_are_where_the_numbers_are(self) -> None:
        """Agreement to the right, accuracy upwards: by proportions of the first line."""
        values = [(0.4, 0.9), (0.6, 0.8), (1.0, 0.5)]  # 100%, 50%, the start
        found = trade_off({"delta": [TWO]})
        assert found is not None
        corners = drawn_line(found.plot.svg, 3)
        (left, top), (right, bottom) = corners[0], corners[-1]
        assert (left < right, top < bottom) == (True, True)
        for (x, y), (agreement, accuracy) in zip(corners, values, strict=True):
            assert (x - left) / (right - left) == pytest.approx((agreement - 0.4) / 0.6, abs=1e-3)
            assert (y - top) / (bottom - top) == pytest.approx((0.9 - accuracy) / 0.4, abs=1e-3)

    def test_a_single_mixture_is_a_point(self) -> None:
        key = "0/100"
        paper = dataclasses.replace(ONE, accuracies={key: 0.5}, agreements={key: 0.25})
        found = trade_off({"l2": [paper]})
        assert found is not None
        assert found.table.rows == [
            ("Plain fine-tuning, 100% trained (default)", ["25.0%", "50.0%", "1 of 1 run"])
        ]
        assert "A line" not in found.plot.caption

    def test_nothing_trained(self) -> None:
        assert trade_off({"probe": []}) is None
        assert trade_off({}) is None

    def test_without_averages_strengths_end_at_the_start(self) -> None:
        keys = ("0/100/0", "0/0/100", "100/0/0")
        alone = dataclasses.replace(
            TWO,
            mixing_coefficients=(1.0, 0.0, 0.0),
            averaged=False,
            accuracies={key: TWO.accuracies[key] for key in keys},
            agreements={key: TWO.agreements[key] for key in keys},
        )
        found = trade_off({"delta": [alone]})
        assert found is not None
        assert found.table.rows == [
            ("DELTA, strength 1, 100% trained (default)", ["80.0%", "70.0%", "0 of 1 run"]),
            ("DELTA, start", ["100.0%", "50.0%", "1 of 1 run"]),
            ("DELTA, strength 0.1, 100% trained", ["20.0%", "60.0%", "0 of 1 run"]),
        ]


class TestRunPage:
    def test_of_one_run(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "run", **stored(TWO))
        page = Page(write_run_report(folder).read_text(encoding="utf-8"))
        assert HEADING in page.headings
        assert page.row("DELTA, strength 1 + 0.1, 50%").endswith("60.0% 80.0% 1 of 1 run")

    def test_of_a_run_without_them(self, run: Path) -> None:
        assert HEADING not in write_run_report(run).read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        "changes",
        [
            {"agreements": {"0/50/50": 40}},
            {"accuracies": {"0/50/50": None}},
            {"accuracies": [0.5]},
            {"agreements": {"another": 0.5}},
            {"losses": {"0/1/x": 0.5}, "agreements": {"0/1/x": 0.5}},
            {"losses": {"0/100": 0.5}, "agreements": {"0/100": 0.5}},
        ],
    )
    def test_damaged(self, run: Path, changes: Mapping[str, Any]) -> None:
        values = json.loads((run / "result.json").read_text())
        values["model_selection"] = {**dataclasses.asdict(TWO), **changes}
        (run / "result.json").write_text(json.dumps(values))
        with pytest.raises(ModelError, match=r"result\.json is damaged: a fraction is not valid"):
            write_run_report(run)
