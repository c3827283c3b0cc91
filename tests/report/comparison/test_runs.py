import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from delta_transfer.errors import UserError
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.run_result import comparison_columns
from delta_transfer.report.comparison.page import write_comparison_report
from delta_transfer.report.comparison.runs import rank_methods, read_comparison, summarize_methods
from delta_transfer.report.comparison.summary import summary_sentences
from tests.report.made import (
    BESIDE,
    DELTA,
    L2,
    PROBE,
    difference,
    make_comparison,
    runs,
    write_csv,
)


def said(folder: Path) -> str:
    comparison = read_comparison(folder)
    return " ".join(summary_sentences(comparison, summarize_methods(comparison)))


def rows(*changes: Mapping[str, object]) -> list[list[object]]:
    """Rows of `results.csv` that differ from a good one."""
    good = dict(
        zip(
            comparison_columns(ACCURACY),
            ("delta", 0, "", 0.5, 0.5, 0.5, 1, 3.0, 9, 800, 0.9, 0.4, 0.3, "", "", "delta"),
            strict=True,
        )
    )
    rows = [list({**good, **change}.values()) for change in changes]
    return [list(comparison_columns(ACCURACY)), *rows]


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    return make_comparison(tmp_path / "runs", runs(probe=PROBE, l2=L2, l2sp=BESIDE, delta=DELTA))


class TestRuns:
    def test_sizes_ascend_and_all_images_come_last(self, tmp_path: Path) -> None:
        changes = [
            {"samples_per_class": size, "seed": seed} for size in (20, "", 5) for seed in (1, 0)
        ]
        write_csv(tmp_path / "results.csv", rows(*changes))
        found = read_comparison(tmp_path)
        assert found.sizes == (5, 20, None)
        for size in found.sizes:
            part = found.with_size(size)
            assert part.sizes == (size,)
            assert [run.samples_per_class for run in part.entries] == [size, size]
            assert part.seeds == (0, 1)
        assert len(found.entries) == 6

    def test_values_of_a_run(self, tmp_path: Path) -> None:
        changes = {"seed": 1, "strength": "", "peak_memory_mib": 400.5}
        write_csv(tmp_path / "results.csv", rows({}, changes))
        first, second = read_comparison(tmp_path).entries
        assert (first.strength, first.peak_memory_mib, first.samples_per_class) == (3.0, 800, None)
        assert (second.strength, second.peak_memory_mib) == (None, 400.5)
        (summary,) = summarize_methods(read_comparison(tmp_path))
        assert summary.peak_memory_mib == 600.25

    def test_best_first(self, comparison: Path) -> None:
        summaries = summarize_methods(read_comparison(comparison))
        assert [found.method for found in summaries] == ["probe", "l2", "l2sp", "delta"]
        # the probe and plain fine-tuning have 81.0% each
        assert [found.method for found in rank_methods(summaries)] == [
            "delta",
            "l2sp",
            "probe",
            "l2",
        ]

    def test_missing_are_those_that_others_have_a_counterpart_to(self, tmp_path: Path) -> None:
        changes: list[dict[str, object]] = [
            {"method": "l2", "seed": 0, "samples_per_class": 5},
            {"method": "l2", "seed": 1, "samples_per_class": 5},
            {"method": "delta", "seed": 0, "samples_per_class": 5},
            {"method": "l2", "seed": 0},
        ]
        write_csv(tmp_path / "results.csv", rows(*changes))
        missing = read_comparison(tmp_path).missing
        assert set(missing) == {
            ("l2", 1, None),
            ("delta", 1, 5),
            ("delta", 0, None),
            ("delta", 1, None),
        }
        write_csv(tmp_path / "results.csv", rows(*changes[:2]))
        assert read_comparison(tmp_path).missing == ()


class TestFindings:
    def test_a_win(self, comparison: Path) -> None:
        text = said(comparison)
        assert "DELTA has the highest test accuracy: 85.7% (mean of 3 seeds)." in text
        mean, _, interval = difference(DELTA, L2).partition(" ")
        assert (
            f"Difference to plain fine-tuning: {mean} points (95% interval {interval}), "
            "significantly higher." in text
        )

    def test_an_interval_with_zero_is_no_win(self, tmp_path: Path) -> None:
        text = said(make_comparison(tmp_path / "runs", runs(l2=L2, l2sp=BESIDE)))
        assert text.count("not significant, because the interval includes zero") == 2
        assert "significantly" not in text

    def test_below_the_probe(self, tmp_path: Path) -> None:
        low = {seed: accuracy - 0.05 - 0.001 * seed for seed, accuracy in PROBE.items()}
        text = said(make_comparison(tmp_path / "runs", runs(probe=PROBE, delta=low)))
        assert "DELTA has the highest test accuracy: 75.9%" in text
        assert re.search(r"Difference to the linear probe: .*, significantly lower\.", text)

    def test_one_seed(self, tmp_path: Path) -> None:
        folder = make_comparison(tmp_path / "runs", runs(l2={0: 0.8}, delta={0: 0.85}))
        text = said(folder)
        assert "A single seed has no confidence interval" in text
        assert "Difference to plain fine-tuning: +5.0 points, on one seed." in text
        assert "significant" not in text
        assert "nan" not in text

    def test_ties_share_the_first_place(self, tmp_path: Path) -> None:
        made = runs(probe={0: 0.9}, l2={0: 0.5}, l2sp={0: 0.7}, delta={0: 0.7})
        text = said(make_comparison(tmp_path / "runs", made))
        assert (
            "Of the fine-tuned methods, L2-SP and DELTA share the highest test accuracy: "
            "70.0% (one seed). The differences below are those of L2-SP. "
            "Difference to plain fine-tuning: +20.0 points" in text
        )

    def test_the_probe_alone(self, tmp_path: Path) -> None:
        text = said(make_comparison(tmp_path / "runs", runs(probe=PROBE)))
        assert "Of the methods, Linear probe has the highest test accuracy: 81.0%" in text


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"folder": "/delta"}, "line 2: folder must be inside"),
            ({"folder": "../delta"}, "line 2: folder must be inside"),
            ({"folder": ""}, "line 2: folder must be inside"),
            ({"test_accuracy": 50}, "test_accuracy must be between 0 and 1, got '50'"),
            ({"linear_probe_test_accuracy": ""}, "linear_probe_test_accuracy must be a number"),
            ({"seed": "x"}, "seed must be a number, got 'x'"),
            ({"samples_per_class": 2.5}, "samples_per_class must be a whole number, got '2.5'"),
            ({"strength": "auto"}, "strength must be a number, got 'auto'"),
            ({"peak_memory_mib": ""}, "peak_memory_mib must be a number, got ''"),
            ({"test_accuracy": "", "linear_probe_test_accuracy": ""}, "no finished run in"),
        ],
    )
    def test_cell(self, tmp_path: Path, change: Mapping[str, object], message: str) -> None:
        write_csv(tmp_path / "results.csv", rows(change))
        with pytest.raises(UserError, match=re.escape(message)):
            write_comparison_report(tmp_path)
        assert not (tmp_path / "report.html").exists()

    def test_no_runs(self, tmp_path: Path) -> None:
        write_csv(tmp_path / "results.csv", rows())
        with pytest.raises(UserError, match=r"results\.csv has no runs"):
            read_comparison(tmp_path)

    def test_short_line(self, tmp_path: Path) -> None:
        write_csv(tmp_path / "results.csv", [comparison_columns(ACCURACY), ["delta", 0]])
        with pytest.raises(UserError, match="line 2: 16 cells expected, got 2"):
            read_comparison(tmp_path)

    def test_twice(self, tmp_path: Path) -> None:
        write_csv(tmp_path / "results.csv", rows({}, {"samples_per_class": 5}, {}))
        with pytest.raises(UserError, match="line 4: delta with seed 0 is listed twice"):
            read_comparison(tmp_path)

    def test_no_comparison(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"results\.csv is missing"):
            write_comparison_report(tmp_path)

    def test_no_column(self, tmp_path: Path) -> None:
        (tmp_path / "results.csv").write_text("method,seed\ndelta,0\n")
        with pytest.raises(UserError, match="has no column samples_per_class, test_accuracy"):
            read_comparison(tmp_path)

    @pytest.mark.parametrize("name", ["config.yaml", "predictions.csv", "result.json"])
    def test_file_of_a_run(self, tmp_path: Path, name: str) -> None:
        folder = make_comparison(tmp_path / "runs", runs(delta={0: 0.8}))
        (folder / "delta-seed0" / name).unlink()
        with pytest.raises(UserError, match=f"delta-seed0.*{re.escape(name)}"):
            write_comparison_report(folder)
