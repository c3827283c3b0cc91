from pathlib import Path

import numpy as np

from delta_transfer.report.comparison.attention_ranks import attention_of_methods
from delta_transfer.report.comparison.curves import drift_curves, learning_curves
from delta_transfer.report.comparison.runs import read_comparison
from delta_transfer.report.run_files import read_attention
from tests.report.large import write_attention
from tests.report.made import make_comparison, runs, write_csv


class TestCurves:
    def test_means_over_seeds(self, tmp_path: Path) -> None:
        made = {
            ("l2", 0): {"curve": [0.1, 0.4, 0.6], "linear_probe_val_accuracy": 0.5},
            ("l2", 1): {"curve": [0.3, 0.6, 0.7, 0.9], "linear_probe_val_accuracy": 0.6},
        }
        curves = learning_curves(read_comparison(make_comparison(tmp_path / "runs", made)))
        assert curves is not None
        accuracy, loss = (
            plot.svg.partition('aria-label="')[2].partition('"')[0] for plot in curves.plots
        )
        assert accuracy == (
            "Validation accuracy, mean over seeds, by epoch. Plain fine-tuning: epoch 0 20.0%, "
            "epoch 1 50.0%, epoch 2 65.0%. Linear probe: 55.0%."
        )
        assert loss == (
            "Plain fine-tuning: task loss by epoch. training: epoch 1 1, epoch 2 0.5; "
            "validation: epoch 0 1.5, epoch 1 1.4, epoch 2 1.3."
        )
        assert curves.table.rows == [("0", ["20.0%"]), ("1", ["50.0%"]), ("2", ["65.0%"])]
        assert curves.conclusion.startswith("No method overfits")

    def test_overfitting_is_reported(self, tmp_path: Path) -> None:
        folder = make_comparison(tmp_path / "runs", {("l2", 0): {}, ("delta", 0): {}})
        header = ["epoch", "val_loss", "val_accuracy"]
        for method, last in (("l2", 1.5), ("delta", 1.1)):
            rows = [[0, 2, 0.5], [1, 1, 0.5], [2, last, 0.5]]
            write_csv(folder / f"{method}-seed0" / "metrics.csv", [header, *rows])
        curves = learning_curves(read_comparison(folder))
        assert curves is not None
        assert curves.conclusion.startswith("Plain fine-tuning overfits most")
        assert curves.conclusion.endswith("from 1 at epoch 1 to 1.5 at the end.")

    def test_drift_by_tap_and_method(self, tmp_path: Path) -> None:
        made = {(method, seed): {} for method in ("l2", "delta") for seed in (0, 1)}
        folder = make_comparison(tmp_path / "runs", made)
        for (method, seed), scale in zip(made, (1, 3, 0.5, 0.5), strict=True):
            rows = [
                [e, tap, scale * e * n] for e in range(3) for n, tap in enumerate(["a", "b"], 1)
            ]
            write_csv(
                folder / f"{method}-seed{seed}" / "drift.csv", [["epoch", "tap", "distance"], *rows]
            )
        drift = drift_curves(read_comparison(folder))
        assert drift is not None
        assert drift.table.headings == ["Tap", "Plain fine-tuning", "DELTA"]
        assert drift.table.rows == [("a", ["4", "1"]), ("b", ["8", "2"])]
        assert [plot.title for plot in drift.plots] == ["Distance at a", "Distance at b"]
        assert "Plain fine-tuning: epoch 0 0, epoch 1 2, epoch 2 4; DELTA" in drift.plots[0].svg
        assert drift.conclusion == (
            "At the last epoch, averaged over the taps, Plain fine-tuning is furthest from the "
            "pretrained network (6), DELTA is nearest (1.5)."
        )


def test_attention_per_tap(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "runs", runs(delta={0: 0.8, 1: 0.8}))
    # In other orders of channels: ranks are compared, not channels. The entropy is 1.5 ln 2.
    for seed, weights in enumerate(([0.5, 0.25, 0.25], [0.25, 0.25, 0.5])):
        taps = {"first": np.array(weights, np.float32), "even": np.full(2, 0.5, np.float32)}
        write_attention(folder / f"delta-seed{seed}", taps)
    assert read_attention(folder / "delta-seed0") == {
        "first": (0.5, 0.25, 0.25),
        "even": (0.5, 0.5),
    }
    (found,) = attention_of_methods(read_comparison(folder))
    assert found.table.rows == [
        ("first", ["3", f"{2**1.5:.1f}", "1.50", "0.75"]),
        ("even", ["2", "2.0", "1.00", "1.00"]),
    ]
    assert "Channel attention of DELTA, 1 is uniform. first: 1.5 to 0.75, " in found.plot.svg
