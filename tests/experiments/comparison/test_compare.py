import csv
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError, UserError
from delta_transfer.experiments.comparison import compare as module
from delta_transfer.experiments.comparison.compare import ComparisonResult, compare
from delta_transfer.experiments.comparison.folder import ComparisonPlan, initialize_folder
from delta_transfer.experiments.scheduling import placement, worker
from delta_transfer.experiments.scheduling.pool import Worker, local_workers
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.run_result import RunResult, comparison_columns
from tests.conftest import METHODS
from tests.run_folders import tiny


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
        assert tuple(found[0]) == comparison_columns(ACCURACY)
        for row, run in zip(found, compared, strict=True):
            assert (row["method"], int(row["seed"])) == (run.method, run.seed)
            assert row["samples_per_class"] == ""
            assert float(row["test_accuracy"]) == run.test_accuracy
            assert float(row["val_accuracy"]) == run.val_accuracy
            assert float(row["linear_probe_test_accuracy"]) == run.linear_probe_test_accuracy
            assert float(row["trained_share"]) == run.trained_share
            assert row["strength"] == ("" if run.strength is None else str(run.strength))
            assert (float(row["wall_time_s"]), float(row["peak_memory_mib"])) == (
                run.wall_time_s,
                run.peak_memory_mib,
            )
            assert folder / row["folder"] == run.folder

    def test_memory_is_that_of_a_process_with_torch_in_it(self, compared):
        assert all(100 < run.peak_memory_mib < 100_000 for run in compared)

    def test_all_methods_of_a_seed_see_the_same_images_and_seeds_differ(self, compared):
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

    def test_a_run_is_the_same_as_one_made_alone(self, compared, images, tmp_path):
        from delta_transfer import train

        run = next(r for r in compared if (r.method, r.seed) == ("l2sp", 1))
        config = TrainConfig.load(run.folder / "config.yaml")
        alone = train(dataclasses.replace(config, out=str(tmp_path / "alone")))
        for name in ("model/model.safetensors", "model/config.json", "predictions.csv"):
            assert (alone.folder / name).read_bytes() == (run.folder / name).read_bytes()

    @pytest.mark.parametrize(
        ("methods", "seeds", "options", "message"),
        [
            (["l2", "l3"], [0], {}, "unknown method 'l3'"),
            (["l2", "l2"], [0], {}, "`methods=l2,l2`"),
            ([], [0], {}, "`methods=`"),
            (
                ["delta_attention", "delta"],
                [0],
                {"attention": "none"},
                "`attention=none`: `methods=delta_attention,delta` are the same",
            ),
            (["l2"], [1, 1], {}, "`seeds=1,1`"),
            (["l2"], [], {}, "`seeds=`"),
            (["l2"], [0, -1], {}, "seed.*at least 0.*got -1"),
            (["probe"], [0], {"taps": "blocks.9"}, r"unknown tap 'blocks\.9'"),
            (
                ["probe", "delta_attention"],
                [0],
                {"attention": __file__},
                "is not a safetensors file",
            ),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_is_written(
        self, images, tmp_path, methods, seeds, options, message
    ):
        out = tmp_path / "out"
        with pytest.raises(UserError, match=message):
            compare(tiny(images, out, **options), out, methods=methods, seeds=seeds, n_jobs=1)
        assert not out.exists()

    def test_a_size_that_the_data_does_not_have_is_said_before_anything_is_written(
        self, images, tmp_path
    ):
        out = tmp_path / "out"
        with pytest.raises(UserError, match=r"`samples_per_class=20` .* 'rings' has 8"):
            compare(
                tiny(images, out), out, methods=["l2"], seeds=[0], sizes=[5, 20, None], n_jobs=1
            )
        assert not out.exists()

    def test_an_attention_of_other_weights_is_refused_before_the_first_run(
        self, finished, images, tmp_path
    ):
        from delta_transfer.attention.channel_attention import ChannelAttention

        attention = ChannelAttention.load(finished.folder / "attention.safetensors")
        file = tmp_path / "other.safetensors"
        dataclasses.replace(attention, source="0" * 64).save(file)
        out = tmp_path / "out"
        config = tiny(images, out, attention=str(file))
        with pytest.raises(UserError, match="other weights than"):
            compare(config, out, methods=["probe", "delta"], seeds=[0], n_jobs=1)
        assert not out.exists()

    def test_a_method_that_the_folder_has_by_another_name_is_refused(self, images, tmp_path):
        out = tmp_path / "out"
        config = tiny(images, out, attention="none")
        plan = ComparisonPlan(
            config=config, methods=("delta_attention",), seeds=(0,), sizes=(None,), num_threads=1
        )
        initialize_folder(out, plan)
        with pytest.raises(ConfigError, match="`methods=delta_attention,delta` are the same"):
            compare(config, out, methods=["delta"], seeds=[0])
        assert [path.name for path in out.iterdir()] == ["compare.yaml"]

    @pytest.mark.parametrize(("seeds", "sizes"), [([0, 1], [None]), ([0], [5, None])])
    def test_an_attention_file_is_of_one_seeds_images(
        self, finished, images, tmp_path, seeds, sizes
    ):
        file = str(finished.folder / "attention.safetensors")
        config = tiny(images, tmp_path / "out", attention=file)
        with pytest.raises(UserError, match=r"`attention=.* one seed"):
            compare(config, tmp_path / "out", methods=["delta"], seeds=seeds, sizes=sizes)
        assert not (tmp_path / "out").exists()


class Fakes:
    """In the place of training: runs whose accuracy is what method, seed and size say.

    Args:
        diverging: methods whose runs fail.
        breaking: what is raised instead of a run, by method.
    """

    task = None
    taps = ()

    def __init__(self) -> None:
        self.prepared: list[tuple[int, int | None]] = []
        self.trained: list[str] = []
        self.reported: list[list[str]] = []
        self.diverging: set[str] = set()
        self.breaking: dict[str, BaseException] = {}

    def prepare(self, config: TrainConfig, *, check: object) -> "Fakes":
        self.prepared.append((config.seed, config.samples_per_class))
        return self

    @property
    def description(self) -> tuple[str, ...]:
        return ("data     fake", "warning: two images are alike")

    def train(self, prepared: object, config: TrainConfig, folder: Path, *, started: float):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").touch()
        (folder / "config.yaml").write_text(config.to_yaml())
        if config.method in self.breaking:
            raise self.breaking[config.method]
        if config.method in self.diverging:
            raise UserError("training diverged")
        self.trained.append(str(folder))
        accuracy = (len(config.method) + config.seed + (config.samples_per_class or 0)) / 100
        result = RunResult(
            folder=folder,
            method=config.method,
            seed=config.seed,
            samples_per_class=config.samples_per_class,
            metric_name="accuracy",
            test_accuracy=accuracy,
            test_mean_class_accuracy=accuracy,
            val_accuracy=0.5,
            linear_probe_test_accuracy=0.25,
            linear_probe_val_accuracy=0.5,
            epochs=2,
            wall_time_s=float(10 * len(config.method)),
            peak_memory_mib=100.0,
            sample_type="image",
            num_train_samples=60,
            num_classes=3,
            strength=None,
            model_selection=None,
            taps=(),
            versions={},
        )
        (folder / "result.json").write_text(result.to_json())
        (folder / "report.html").touch()
        return result

    def report(self, folder: Path) -> None:
        self.reported.append([row["folder"] for row in rows(folder / "results.csv")])


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    found = Fakes()
    monkeypatch.setattr(worker, "prepare", found.prepare)
    monkeypatch.setattr(worker, "train_prepared", found.train)
    monkeypatch.setattr(worker, "load_given_attention", lambda prepared, config: None)
    monkeypatch.setattr(worker, "run_fingerprint", lambda prepared: "fake")
    monkeypatch.setattr(worker, "count_fit_samples", lambda config, task: 40)
    monkeypatch.setattr(module, "write_comparison_report", found.report)
    return found


def made(
    out: Path,
    methods: Sequence[str] = ("probe", "l2"),
    seeds: Sequence[int] = (0, 1),
    sizes: Sequence[int | None] = (None,),
    *,
    jobs: int | None = 1,
    threads: int | None = None,
    **options: object,
) -> ComparisonResult:
    """Comparisons of existing and requested runs."""
    config = tiny(Path("images"), out, **options)
    return compare(
        config, out, methods=methods, seeds=seeds, sizes=sizes, n_jobs=jobs, num_threads=threads
    )


def names(out: Path) -> list[str]:
    return [row["folder"] for row in rows(out / "results.csv")]


class TestGoingOn:
    def test_nothing_is_made_twice(self, fakes, tmp_path):
        first = made(tmp_path / "out")
        table = (tmp_path / "out" / "results.csv").read_bytes()
        again = made(tmp_path / "out")
        assert len(fakes.trained) == 4
        assert again.results == first.results
        assert (tmp_path / "out" / "results.csv").read_bytes() == table

    def test_what_the_methods_of_a_seed_and_size_share_is_made_once(self, fakes, tmp_path):
        made(tmp_path / "out", ["probe", "l2", "delta"], sizes=[5, None])
        assert sorted(fakes.prepared, key=str) == [(0, 5), (0, None), (1, 5), (1, None)]

    def test_more_of_everything_is_just_more_runs(self, fakes, tmp_path):
        out = tmp_path / "out"
        made(out, ["l2"], [1], [10])
        made(out, ["probe"], [0, 1], [None])
        made(out, ["l2"], [0], [5])
        assert names(out) == [
            "5-per-class/l2-seed0",
            "10-per-class/l2-seed1",
            "probe-seed0",
            "probe-seed1",
        ]
        assert len(fakes.trained) == 4
        assert fakes.reported[-1] == names(out)
        options = yaml.safe_load((out / "compare.yaml").read_text())
        assert options["methods"] == "l2,probe"
        assert (options["seeds"], options["samples_per_class"]) == ("1,0", "10,all,5")

    def test_an_interrupted_run_is_repeated(self, fakes, tmp_path):
        out = tmp_path / "out"
        made(out)
        whole = (out / "results.csv").read_bytes()
        (out / "l2-seed0" / "result.json").unlink()
        (out / "l2-seed0" / "config.yaml").write_text("data: pict")  # half of it
        (out / "l2-seed0" / ".result.json.a1_b2c3d").write_text("{")
        made(out)
        assert len(fakes.trained) == 5
        assert (out / "results.csv").read_bytes() == whole

    def test_a_report_that_was_broken_off_is_written(self, fakes, tmp_path, monkeypatch):
        out = tmp_path / "out"
        made(out)
        (out / "l2-seed0" / "report.html").unlink()
        written: list[Path] = []
        monkeypatch.setattr(module, "write_run_report", written.append)
        made(out)
        assert written == [out / "l2-seed0"]

    def test_a_file_of_the_users_in_the_way_is_not_deleted(self, fakes, tmp_path):
        out = tmp_path / "out"
        made(out)
        (out / "l2-seed0" / "result.json").unlink()
        (out / "l2-seed0" / "thesis.tex").touch()
        with pytest.raises(UserError, match=r"\(thesis\.tex\).* move it away"):
            made(out)
        assert (out / "l2-seed0" / "thesis.tex").exists()

    def test_options_of_before_are_given_or_overwritten(self, fakes, tmp_path):
        out = tmp_path / "out"
        made(out)
        said = r"`taps` was auto and is .*; `epochs` was 2 and"
        with pytest.raises(UserError, match=said) as error:
            made(out, epochs=3, taps="blocks.1")
        for part in (f"`out={out}` contains a comparison with other options", "`overwrite`"):
            assert part in str(error.value)
        made(out, ["probe"], epochs=3, overwrite=True)
        assert names(out) == ["probe-seed0", "probe-seed1"]
        assert sorted(path.name for path in out.iterdir()) == [
            "compare.yaml",
            "probe-seed0",
            "probe-seed1",
            "results.csv",
        ]

    def test_where_images_are_loaded_changes_no_figure(self, fakes, tmp_path):
        made(tmp_path / "out", ["probe"])
        made(tmp_path / "out", num_workers=1)
        assert len(fakes.trained) == 4

    def test_threads_stay_what_they_were(self, fakes, tmp_path, monkeypatch):
        out = tmp_path / "out"
        monkeypatch.setattr(placement, "cpu_count", lambda: 12)
        made(out, ["probe"], [0, 1])
        made(out, ["l2"], [0, 1, 2])
        assert yaml.safe_load((out / "compare.yaml").read_text())["num_threads"] == 6
        with pytest.raises(UserError, match="`num_threads` was 6 and is 1"):
            made(out, threads=1)

    @pytest.mark.parametrize(("gib", "at_once"), [(100, 4), (10, 2), (4, 1), (0, 1)])
    def test_as_many_at_a_time_as_memory_allows(
        self, fakes, tmp_path, monkeypatch, caplog, gib, at_once
    ):
        """The threads of each, on which figures depend, have nothing to do with it."""

        def alone(methods: Sequence[str], *, count: int, **options: Any) -> Iterator[Worker]:
            return local_workers(methods, count=1, **options)

        monkeypatch.setattr(placement, "local_workers", alone)
        monkeypatch.setattr(module, "find_data", lambda config: None)
        monkeypatch.setattr(placement, "cpu_count", lambda: 12)
        free = psutil.virtual_memory()._replace(available=gib * 2**30)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
        with caplog.at_level(logging.INFO):
            made(tmp_path / "out", jobs=None)
        expected = f"runs     4 to train; {at_once} in parallel, 3 threads each"
        assert expected in caplog.messages

    def test_a_folder_of_something_else_is_refused(self, fakes, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UserError, match="is not empty"):
            made(tmp_path)
        with pytest.raises(UserError, match=r"no train\.log and config\.yaml of one"):
            made(tmp_path, overwrite=True)

    def test_what_a_killed_write_of_the_options_left_is_no_obstacle(self, fakes, tmp_path):
        (tmp_path / ".compare.yaml.x7_aaaaa").write_text("data: pi")
        made(tmp_path)
        assert len(names(tmp_path)) == 4
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize("content", ["", "[1, 2]", "data: [", "data: images\n"])
    def test_options_that_are_damaged_are_named(self, fakes, tmp_path, content):
        (tmp_path / "compare.yaml").write_text(content)
        with pytest.raises(UserError, match=r"compare\.yaml"):
            made(tmp_path)

    def test_its_options_are_options_of_the_command(self, fakes, tmp_path):
        from delta_transfer.cli.arguments import parse_options
        from delta_transfer.config.commands import CompareOptions, merge_with_train_options

        made(tmp_path / "one", sizes=[5, None], taps="blocks.1", threads=1)
        file = tmp_path / "one" / "compare.yaml"
        kind = merge_with_train_options(
            CompareOptions, without=["method", "seed", "resume", "devices", "num_nodes", "strategy"]
        )
        found = parse_options(
            kind, ["-c", str(file)], prog="x", summary="", positional=["data"], config_file=True
        )
        for name, value in yaml.safe_load(file.read_text()).items():
            assert getattr(found, name) == value


class TestFailures:
    def test_a_run_that_fails_leaves_the_others_alone_and_is_tried_again(
        self, fakes, tmp_path, caplog
    ):
        caplog.set_level(logging.INFO, "delta_transfer")
        out = tmp_path / "out"
        fakes.diverging = {"l2"}
        first = made(out, ["probe", "l2", "delta"])
        assert [(run.method, run.seed, why) for run, why in first.failures] == [
            ("l2", 0, "training diverged"),
            ("l2", 1, "training diverged"),
        ]
        assert names(out) == ["probe-seed0", "delta-seed0", "probe-seed1", "delta-seed1"]
        assert "2/6 l2, seed 0 failed: training diverged" in caplog.text
        fakes.diverging = set()
        second = made(out, ["probe", "l2", "delta"])
        assert not second.failures
        assert len(fakes.trained) == 6
        assert names(out)[1] == "l2-seed0"

    def test_an_interruption_explains_how_to_resume(self, fakes, tmp_path):
        out = tmp_path / "out"
        fakes.breaking = {"l2": KeyboardInterrupt("whatever a run says")}
        with pytest.raises(KeyboardInterrupt) as stop:
            made(out)
        assert str(stop.value) == (
            f"interrupted, 3 of 4 runs left: to resume, rerun the command with `out={out}`"
        )
        assert fakes.reported == [["probe-seed0"]]
        fakes.breaking = {}
        assert len(made(out).results) == 4
        assert len(fakes.trained) == 4

    def test_an_error_of_ours_ends_it_and_what_is_there_is_in_the_report(self, fakes, tmp_path):
        fakes.breaking = {"l2": RuntimeError("a bug")}
        with pytest.raises(RuntimeError, match="a bug"):
            made(tmp_path / "out")
        assert fakes.reported == [["probe-seed0"]]

    def test_without_any_run_there_is_no_report(self, fakes, tmp_path):
        fakes.breaking = {"probe": KeyboardInterrupt()}
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "out")
        assert fakes.reported == []

    def test_data_that_is_wrong_keeps_what_was_to_be_overwritten(
        self, fakes, tmp_path, monkeypatch
    ):
        def fail(config: TrainConfig, *, check: object) -> None:
            raise UserError("no images")

        made(tmp_path / "out")
        before = json.dumps([str(p) for p in sorted(tmp_path.glob("**/*"))])
        monkeypatch.setattr(worker, "prepare", fail)
        with pytest.raises(UserError, match="no images"):
            made(tmp_path / "out", overwrite=True)
        assert json.dumps([str(p) for p in sorted(tmp_path.glob("**/*"))]) == before


def test_it_says_what_is_done_and_what_remains(fakes, tmp_path, caplog):
    caplog.set_level(logging.INFO, "delta_transfer")
    made(tmp_path / "out", ["l2", "probe"], threads=1)
    said = [record.getMessage() for record in caplog.records if "ignored" not in record.message]
    assert said == [
        "data     fake",
        "warning: two images are alike",  # once
        f"folder   {tmp_path / 'out'}",
        "runs     4 to train; 1 in parallel, 1 thread each",
        "1/4 l2, seed 0: 2.0%, 20 s; about 60 s left",
        "2/4 probe, seed 0: 5.0%, 50 s; about 70 s left",
        "3/4 l2, seed 1: 3.0%, 20 s; about 50 s left",
        "4/4 probe, seed 1: 6.0%, 50 s",
    ]
    caplog.clear()
    made(tmp_path / "out", ["l2", "probe"], [0, 1, 2, 3], sizes=[None, 7])
    said = [record.getMessage() for record in caplog.records if "ignored" not in record.message]
    assert "runs     12 to train, 4 finished already; 1 in parallel, 1 thread each" in said
    assert "1/12 l2, 7 per class, seed 0: 9.0%, 20 s; about 7 minutes left" in said
