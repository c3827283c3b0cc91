import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from delta_transfer import compare as module
from delta_transfer.compare import compare, table
from delta_transfer.config import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.methods import METHODS
from delta_transfer.result import COMPARISON_COLUMNS, RunResult
from tests.runs import tiny


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def result(method: str, seed: int, test: float | None, *, val: float = 0.5) -> RunResult:
    return RunResult(
        folder=Path("comparison") / f"{method}-seed{seed}",
        method=method,
        seed=seed,
        metric="accuracy",
        test_accuracy=test,
        test_mean_class_accuracy=test,
        val_accuracy=val,
        linear_probe_test_accuracy=None if test is None else 0.25,
        linear_probe_val_accuracy=0.5,
        best_epoch=1,
        epochs=2,
        refitted=False,
        seconds=float(10 + seed),
        pictures=60,
        classes=3,
        strength=0.01,
        taps=(),
        versions={},
    )


class TestCompare:
    def test_every_method_has_a_run_for_every_seed(self, compared):
        folder = compared[0].folder.parent
        assert [(r.method, r.seed) for r in compared] == [(m, s) for s in (0, 1) for m in METHODS]
        for run in compared:
            assert run.folder == folder / f"{run.method}-seed{run.seed}"
            config = TrainConfig.load(run.folder / "config.yaml")
            assert (config.method, config.seed) == (run.method, run.seed)
            assert RunResult.load(run.folder).to_json() == run.to_json()

    def test_there_is_a_report_of_all_and_of_each(self, compared):
        for folder in (compared[0].folder.parent, *(run.folder for run in compared)):
            assert (folder / "report.html").is_file()

    def test_results_csv_has_a_row_for_each_run(self, compared):
        folder = compared[0].folder.parent
        found = rows(folder / "results.csv")
        assert tuple(found[0]) == COMPARISON_COLUMNS
        for row, run in zip(found, compared, strict=True):
            assert (row["method"], int(row["seed"])) == (run.method, run.seed)
            assert float(row["test_accuracy"]) == run.test_accuracy
            assert float(row["val_accuracy"]) == run.val_accuracy
            assert float(row["linear_probe_test_accuracy"]) == run.linear_probe_test_accuracy
            assert int(row["best_epoch"]) == run.best_epoch
            assert folder / row["folder"] == run.folder

    def test_all_methods_of_a_seed_see_the_same_pictures_and_seeds_differ(self, compared):
        paths = {
            seed: {
                tuple(row["path"] for row in rows(run.folder / "predictions.csv"))
                for run in compared
                if run.seed == seed
            }
            for seed in (0, 1)
        }
        assert len(paths[0]) == len(paths[1]) == 1
        assert paths[0] != paths[1]

    def test_a_run_is_the_same_as_one_made_alone(self, compared, pictures, tmp_path):
        from delta_transfer import train

        run = next(r for r in compared if (r.method, r.seed) == ("lp_ft", 1))
        config = TrainConfig.load(run.folder / "config.yaml")
        alone = train(dataclasses.replace(config, out=str(tmp_path / "alone")))
        for name in ("model/model.safetensors", "model/config.json", "predictions.csv"):
            assert (alone.folder / name).read_bytes() == (run.folder / name).read_bytes()

    @pytest.mark.parametrize(
        ("methods", "seeds", "options", "message"),
        [
            (["l2", "l3"], [0], {}, "unknown method 'l3'"),
            (["l2", "l2"], [0], {}, "--methods 'l2,l2': give at least one, and each once"),
            ([], [0], {}, "--methods '': give at least one"),
            (["l2"], [1, 1], {}, "--seeds '1,1': give at least one, and each once"),
            (["l2"], [], {}, "--seeds '': give at least one"),
            (["l2"], [0, -1], {}, "--seed must be at least 0, got -1"),
            (["probe"], [0], {"taps": "blocks.9"}, r"unknown tap 'blocks\.9'"),
            (["probe", "delta"], [0], {"attention": __file__}, "is no safetensors file"),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_is_written(
        self, pictures, tmp_path, methods, seeds, options, message
    ):
        out = tmp_path / "out"
        with pytest.raises(UserError, match=message):
            compare(tiny(pictures, out, **options), out, methods=methods, seeds=seeds)
        assert not out.exists()

    def test_an_attention_of_other_weights_is_refused_before_the_first_run(
        self, finished, pictures, tmp_path
    ):
        from delta_transfer.channel_attention import ChannelAttention

        attention = ChannelAttention.load(finished.folder / "attention.safetensors")
        file = tmp_path / "other.safetensors"
        dataclasses.replace(attention, source="0" * 64).save(file)
        out = tmp_path / "out"
        config = tiny(pictures, out, attention=str(file))
        with pytest.raises(UserError, match="made with other weights"):
            compare(config, out, methods=["probe", "delta"], seeds=[0])
        assert not out.exists()

    def test_an_attention_file_is_of_one_seeds_pictures(self, finished, pictures, tmp_path):
        file = str(finished.folder / "attention.safetensors")
        config = tiny(pictures, tmp_path / "out", attention=file)
        with pytest.raises(UserError, match="made on the pictures of one seed"):
            compare(config, tmp_path / "out", methods=["delta"], seeds=[0, 1])
        assert not (tmp_path / "out").exists()

    def test_the_runs_before_one_that_fails_are_in_the_report(
        self, pictures, tmp_path, monkeypatch
    ):
        def fail(prepared: object, config: TrainConfig, *arguments: object, **options: object):
            if config.method == "l2":
                raise UserError("training diverged")
            return original(prepared, config, *arguments, **options)

        original, out = module.train_prepared, tmp_path / "out"
        monkeypatch.setattr(module, "train_prepared", fail)
        with pytest.raises(UserError, match="training diverged"):
            compare(tiny(pictures, out), out, methods=["probe", "l2"], seeds=[0])
        assert (out / "report.html").is_file()
        assert [row["method"] for row in rows(out / "results.csv")] == ["probe"]

    def test_an_old_comparison_is_replaced_only_if_asked(self, pictures, tmp_path):
        out = tmp_path / "out"
        (out / "l2-seed7").mkdir(parents=True)
        (out / "results.csv").write_text(f"{','.join(COMPARISON_COLUMNS)}\n")
        config = tiny(pictures, out)
        with pytest.raises(UserError, match="is not empty"):
            compare(config, out, methods=["probe"], seeds=[0])
        assert (out / "l2-seed7").exists()
        overwriting = dataclasses.replace(config, overwrite=True)
        compare(overwriting, out, methods=["probe"], seeds=[3])
        assert sorted(path.name for path in out.iterdir()) == [
            "probe-seed3",
            "report.html",
            "results.csv",
        ]

    def test_a_comparison_that_was_cut_off_can_be_replaced(self, pictures, tmp_path, monkeypatch):
        def fail(*arguments: object, **options: object) -> RunResult:
            raise KeyboardInterrupt

        out = tmp_path / "out"
        config = tiny(pictures, out, overwrite=True)
        with monkeypatch.context() as patch:
            patch.setattr(module, "train_prepared", fail)
            with pytest.raises(KeyboardInterrupt):
                compare(config, out, methods=["probe"], seeds=[0])
        assert len(compare(config, out, methods=["probe"], seeds=[0])) == 1


class TestTable:
    L2, DELTA = [0.61, 0.55, 0.70], [0.66, 0.57, 0.68]

    def results(self) -> list[RunResult]:
        pairs = [("l2", self.L2), ("delta", self.DELTA), ("probe", [0.5])]
        return [result(m, seed, value) for m, values in pairs for seed, value in enumerate(values)]

    def test_means_deviations_and_intervals_are_those_of_scipy(self):
        l2, delta, probe = table(self.results())
        assert [row.method for row in (l2, delta, probe)] == ["l2", "delta", "probe"]
        for row, values in ((l2, self.L2), (delta, self.DELTA)):
            assert row.accuracy.mean == pytest.approx(np.mean(values))
            assert row.accuracy.deviation == pytest.approx(np.std(values, ddof=1))
            low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            assert (row.accuracy.low, row.accuracy.high) == pytest.approx((low, high))
            assert row.seconds == pytest.approx(11)
        assert math.isnan(probe.accuracy.deviation)

    def test_differences_are_paired_by_seed(self):
        l2, delta, probe = table(reversed(self.results()))[::-1]
        paired = stats.ttest_rel(self.DELTA, self.L2).confidence_interval(0.95)
        assert l2.difference is None
        assert delta.difference.mean == pytest.approx(np.mean(self.DELTA) - np.mean(self.L2))
        assert (delta.difference.low, delta.difference.high) == pytest.approx(tuple(paired))
        assert (probe.difference.count, probe.difference.mean) == (1, pytest.approx(0.5 - 0.61))

    def test_the_baseline_is_a_choice_and_may_be_missing(self):
        l2, delta, _ = table(self.results(), baseline="delta")
        assert delta.difference is None
        assert l2.difference.mean == pytest.approx(np.mean(self.L2) - np.mean(self.DELTA))
        assert [row.difference for row in table(self.results(), baseline="l2sp")] == [None] * 3

    def test_a_method_that_shares_no_seed_with_the_baseline_has_no_difference(self):
        rows = table([result("l2", 0, 0.5), result("delta", 1, 0.6)])
        assert rows[1].difference is None

    def test_without_a_test_split_validation_counts(self):
        (row,) = table([result("l2", 0, None, val=0.75)])
        assert row.accuracy.mean == 0.75
