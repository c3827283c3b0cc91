import csv
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import delta_transfer
from delta_transfer.cli import main as cli
from delta_transfer.cli.main import COMMANDS, main
from delta_transfer.experiments.comparison.compare import ComparisonResult
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.run_result import RunResult
from tests.run_folders import CLASSES, OPTIONS, SPLITS, flags

SLOW_TO_IMPORT = ("torch", "lightning", "timm", "sklearn", "torchvision", "scipy", "matplotlib")
LITE0_TAPS = ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]


def python(code: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False
    )


class TestHelp:
    @pytest.mark.parametrize(
        "args", [["--help"], [], ["--version"], *([name, "--help"] for name in COMMANDS)]
    )
    def test_it_imports_nothing_slow(self, args):
        done = python(
            "import sys\n"
            "from delta_transfer.cli.main import main\n"
            "try:\n"
            f"    main({args})\n"
            "except SystemExit as stop:\n"
            "    assert not stop.code\n"
            f"slow = [name for name in {SLOW_TO_IMPORT} if name in sys.modules]\n"
            "assert not slow, slow\n"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout

    def test_every_command_has_a_line(self, capsys):
        assert main(["--help"]) == 0
        text = capsys.readouterr().out
        for name, summary in COMMANDS.items():
            assert f"  {name}" in text
            assert summary in text

    def test_version_is_that_of_the_package(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out.strip() == version("delta-transfer")


def test_importing_the_package_imports_nothing_slow():
    done = python(
        "import sys\n"
        "import delta_transfer\n"
        "from delta_transfer import RunResult, TrainConfig, UserError\n"
        f"slow = [name for name in {SLOW_TO_IMPORT} if name in sys.modules]\n"
        "assert not slow, slow\n"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    stub = Path(delta_transfer.__file__).with_suffix(".pyi").read_text()
    names = [line.split(" as ")[1] for line in stub.splitlines() if " as " in line]
    assert sorted(names) == sorted(delta_transfer.__all__)
    for name in names:
        assert getattr(delta_transfer, name).__name__ == name


class TestTrain:
    def test_it_says_where_everything_is(self, images, tmp_path, capsys):
        out = tmp_path / "run"
        assert main(["train", str(images), f"--out={out}", *flags(method="probe")]) == 0
        said = capsys.readouterr()
        assert said.out.splitlines() == [
            f"model    {out / 'model'}",
            f"report   {out / 'report.html'}",
        ]
        for part in (
            "3 classes, 24 training, 15 validation, 12 test",
            "model    pypi/efficientnet_lite0",
            "method   probe",
            "test accuracy",
        ):
            assert part in said.err
        assert (out / "report.html").is_file()

    def test_a_file_flags_and_defaults_in_this_order(self, images, tmp_path):
        out = tmp_path / "run"
        file = tmp_path / "options.yaml"
        options = {"data": str(images), "method": "l2", "seed": 4, "out": str(out), **OPTIONS}
        file.write_text(yaml.safe_dump(options))
        assert main(["train", "--method=probe", "-c", str(file)]) == 0
        saved = yaml.safe_load((out / "config.yaml").read_text())
        assert (saved["method"], saved["seed"], saved["optimizer"]) == ("probe", 4, "adamw")
        assert saved["data"] == str(images)

    def test_steps_as_a_flag_take_the_place_of_epochs_in_a_file(self, images, tmp_path):
        out, file = tmp_path / "run", tmp_path / "options.yaml"
        options = {"data": str(images), "method": "l2", "out": str(out), **OPTIONS}
        file.write_text(yaml.safe_dump({**options, "epochs": 7}))
        assert main(["train", "-c", str(file), "--steps=4"]) == 0
        saved = yaml.safe_load((out / "config.yaml").read_text())
        assert (saved["epochs"], saved["steps"]) == (None, 4)
        assert RunResult.load(out).epochs == 2  # of three steps

    def test_the_config_of_a_run_repeats_it(self, finished, tmp_path):
        config = finished.folder / "config.yaml"
        out = tmp_path / "again"
        assert main(["train", "-c", str(config), "--method=probe", f"--out={out}"]) == 0
        assert RunResult.load(out).linear_probe_test_accuracy == finished.linear_probe_test_accuracy

    def test_overwrite_is_asked_for_by_its_flag(self, finished, images, tmp_path):
        out = shutil.copytree(finished.folder, tmp_path / "run")
        command = ["train", str(images), f"--out={out}", *flags(method="probe")]
        assert main(command) == 2
        assert main([*command, "--overwrite"]) == 0
        assert RunResult.load(out).method == "probe"


def error_of(capsys: pytest.CaptureFixture[str], args: Sequence[str]) -> str:
    """The one message of a command that must end with exit code 2."""
    assert main(args) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said.err.rstrip().endswith(errors[0])  # nothing comes after it
    assert "Traceback" not in said.err
    assert said.out == ""
    return errors[0]


class TestUnexpected:
    def test_it_is_a_traceback_and_exit_code_1(self):
        done = python(
            "import sys\n"
            "from delta_transfer.cli import main\n"
            "def fail(args): raise RuntimeError('a bug')\n"
            "main.find_command = lambda name: fail\n"
            "sys.exit(main.main(['methods']))\n"
        )
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "RuntimeError: a bug" in done.stderr

    @staticmethod
    def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        """Makes `methods` raise an error."""

        def command(args: Sequence[str]) -> None:
            raise error

        monkeypatch.setattr("delta_transfer.cli.main.find_command", lambda name: command)

    def test_an_interruption_is_no_traceback(self, capsys, monkeypatch):
        self.fail(monkeypatch, KeyboardInterrupt())
        assert main(["methods"]) == 1
        assert capsys.readouterr().err == "interrupted\n"

    def test_a_full_disk_is_a_message(self, capsys, monkeypatch):
        self.fail(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "a/last.ckpt"))
        assert "'a/last.ckpt' could not be written" in error_of(capsys, ["methods"])

    def test_output_that_nobody_reads_is_silent(self, capsys, monkeypatch):
        self.fail(monkeypatch, BrokenPipeError())
        assert main(["methods"]) == 1
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("args", [["methods"], ["--help"]])
    @pytest.mark.parametrize("buffered", [True, False])
    def test_a_closed_pipe_is_no_traceback(self, args, buffered):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "delta_transfer", *args],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
            check=False,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (1, "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_output_onto_a_full_disk_is_one_message(self):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "delta_transfer", "methods"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: the output could not be written (No space left on device)")

    @pytest.mark.parametrize("code", [0, 2])
    def test_logging_is_given_back(self, code):
        before = list(cli._log.handlers)
        assert main(["methods"] if code == 0 else ["methods", "--x"]) == code
        assert cli._log.handlers == before


class TestEvaluate:
    @pytest.fixture
    def run(self, finished: RunResult, tmp_path: Path) -> Path:
        """A copy, to be written to."""
        return shutil.copytree(finished.folder, tmp_path / "run")

    def test_it_prints_figures_and_leaves_files(self, capsys, run, finished, images):
        command = ["evaluate", str(run), str(images), "--device=cpu", "--num-workers=0"]
        assert main(command) == 0
        said = capsys.readouterr()
        folder = run / "evaluation" / images.name
        lines = said.out.splitlines()
        figures = dict(line.rsplit(maxsplit=1) for line in lines[:5])
        assert figures["images"] == str(sum(SPLITS["test"]))
        assert figures["accuracy"] == f"{100 * finished.test_accuracy:.1f}%"
        table = [line.split() for line in lines[7:10]]
        assert [row[1] for row in table] == list(CLASSES)
        values = json.loads((folder / "evaluation.json").read_text())
        confusion = [[int(n.replace(".", "0")) for n in row[4:]] for row in table]
        assert values["confusion"] == confusion
        assert lines[-1] == f"files    {folder}"
        assert {path.name for path in folder.iterdir()} == {
            "evaluation.json",
            "predictions.csv",
            "confusion.csv",
        }
        # The very table that the run itself wrote of its test split.
        own = (run / "predictions.csv").read_text()
        assert (folder / "predictions.csv").read_text() == own
        assert said.err == ""

    def test_json_is_what_is_in_the_file(self, capsys, finished, images, tmp_path):
        out = tmp_path / "figures"
        command = ["evaluate", str(finished.folder), str(images), "--num-workers=0", f"--out={out}"]
        assert main([*command, "--json"]) == 0
        text = capsys.readouterr().out
        assert text == (out / "evaluation.json").read_text()
        assert json.loads(text)["accuracy"] == pytest.approx(finished.test_accuracy)
        assert main(command) == 0  # an older evaluation is replaced
        (out / "evaluation.json").unlink()
        capsys.readouterr()
        assert "evaluation.json" in error_of(capsys, command)

    def test_a_run_that_cannot_be_written_is_evaluated(self, capsys, run, images):
        (run / "evaluation").write_text("in the way")
        assert main(["evaluate", str(run), str(images), "--num-workers=0"]) == 0
        said = capsys.readouterr()
        assert "warning: no files are written: " in said.err
        assert "accuracy" in said.out
        assert "files" not in said.out

    def test_it_warns_of_images_that_were_learnt_from(self, capsys, run, images):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"] = str(images / "train")
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["evaluate", str(run), str(images / "train"), "--num-workers=0"]) == 0
        said = capsys.readouterr().err
        assert f"warning: the run was trained on images of {images / 'train'}: these met" in said


class TestPredict:
    @pytest.fixture
    def command(self, finished: RunResult) -> list[str]:
        return ["predict", str(finished.folder), "--device=cpu", "--num-workers=0"]

    def test_it_prints_a_line_for_each_image(self, capsys, command, images):
        folder, image = images / "test" / "checks", images / "val" / "rings" / "1.png"
        command = [*command, str(image), str(folder)]
        assert main([*command, "--top=2"]) == 0
        said = capsys.readouterr()
        assert said.err.startswith("4 images, ")
        assert said.err.endswith(" images/s\n")
        lines = [line.split("\t") for line in said.out.splitlines()]
        assert [line[0] for line in lines] == [str(p) for p in (image, *sorted(folder.iterdir()))]
        assert main([*command, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        for row, (path, first, best, second, next_best) in zip(rows, lines, strict=True):
            assert (row["path"], row["prediction"]) == (path, first)
            assert set(row["probabilities"]) == set(CLASSES)
            assert row["probabilities"][first] == pytest.approx(float(best), abs=1e-4)
            assert row["probabilities"][second] == pytest.approx(float(next_best), abs=1e-4)
            assert float(best) >= float(next_best)
        assert main([*command, "--json", "--top=2"]) == 0
        for row, few in zip(rows, json.loads(capsys.readouterr().out), strict=True):
            assert few["probabilities"] == dict(list(row["probabilities"].items())[:2])

    def test_top_may_be_more_than_there_are(self, capsys, command, images):
        image = images / "val" / "rings" / "1.png"
        assert main([*command, str(image), "--top=99"]) == 0
        assert len(capsys.readouterr().out.strip().split("\t")) == 1 + 2 * len(CLASSES)
        assert main([*command, str(image)]) == 0
        assert len(capsys.readouterr().out.strip().split("\t")) == 3

    def test_a_table_holds_what_json_says(self, capsys, command, images, tmp_path):
        table = tmp_path / "new.csv"
        command = [*command, str(images / "test"), f"--csv={table}"]
        assert main(command) == 0
        said = capsys.readouterr()
        assert said.out == f"csv      {table}\n"
        assert said.err.startswith("12 images, ")
        assert "already exists" in error_of(capsys, command)
        assert main([*command, "--overwrite", "--json"]) == 0
        expected = json.loads(capsys.readouterr().out)
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row, values in zip(rows, expected, strict=True):
            assert list(row) == ["path", "prediction", "probability", *CLASSES]
            assert (row["path"], row["prediction"]) == (values["path"], values["prediction"])
            assert row["probability"] == row[row["prediction"]]
            for name in CLASSES:
                assert float(row[name]) == pytest.approx(values["probabilities"][name], abs=1e-6)

    def test_unreadable_images_are_no_rows(self, capsys, command, images, tmp_path):
        data = shutil.copytree(images / "test" / "rings", tmp_path / "data")
        (data / "1.png").write_text("Dear Sir")
        table = tmp_path / "new.csv"
        assert main([*command, str(data), "--json", f"--csv={table}"]) == 0
        said = capsys.readouterr()
        assert [Path(row["path"]).name for row in json.loads(said.out)] == [
            "0.png",
            "2.png",
            "3.png",
        ]
        assert "1.png" not in table.read_text()
        warning, summary = said.err.splitlines()
        assert warning.startswith("warning: 1 of 4 images cannot be read and are left out; ")
        assert summary.startswith("3 images, ")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--overwrite"], "--overwrite is ignored"),
            (["--top=2", "--csv=new.csv"], "--top is ignored"),
        ],
    )
    def test_an_option_without_effect_is_told_of(
        self, capsys, command, images, tmp_path, monkeypatch, flags, message
    ):
        monkeypatch.chdir(tmp_path)
        assert main([*command, str(images / "val" / "rings" / "1.png"), *flags]) == 0
        assert f"warning: {message}" in capsys.readouterr().err

    def test_a_file_name_that_is_no_text_is_printed(self, finished, images, tmp_path):
        try:
            shutil.copy(images / "val" / "rings" / "1.png", tmp_path / "caf\udce9.png")
        except OSError:
            pytest.skip("this file system takes no such names")
        args = ["predict", str(finished.folder), str(tmp_path), "--device=cpu", "--num-workers=0"]
        done = python(
            f"import sys; from delta_transfer.cli.main import main; sys.exit(main({args}))"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{tmp_path}/caf\\udce9.png\t")


class TestLayers:
    def test_it_marks_what_auto_takes(self, capsys):
        assert main(["taps", "pypi/efficientnet_lite0", "--image-size=64"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines if line.startswith("* blocks")] == LITE0_TAPS
        assert "64 pixels" in lines[-1]

    def test_json_has_names_shapes_and_marks(self, capsys):
        args = ["taps", "pypi/efficientnet_lite0", "--image-size=64", "--json"]
        assert main(args) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["name"] for row in rows if row["auto"]] == LITE0_TAPS
        (last,) = [row for row in rows if row["name"] == "blocks.6"]
        assert (last["shape"], last["channel_dim"]) == ([1, 320, 2, 2], 1)

    def test_networks_for_graphs_have_features_of_nodes(self, capsys):
        assert main(["taps", "pretrain-gnns/gin"]) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        listed = {line[2:].split()[0]: line[2:].split()[1:] for line in lines}
        assert [line.split()[1] for line in lines if line.startswith("*")] == [
            f"layers.{i}" for i in range(1, 5)
        ]
        assert listed["layers.4"] == "2x300 channels in dim 1".split()
        assert listed.keys().isdisjoint(["pool", "head"])
        assert "one graph of 2 nodes" in last

    def test_there_is_no_size_for_graphs(self, capsys):
        assert main(["taps", "pretrain-gnns/gin", "--image-size=64"]) == 2
        assert "error: --image-size: model 'pretrain-gnns/gin' is for" in capsys.readouterr().err


def test_methods_are_listed_with_what_they_are(capsys):
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"{name} " in text
        assert method.summary in text
        assert method.paper in text
    assert "by optimal transport (strength 1); for graphs" in text
    assert text.count("; for ") == 3


class TestCompare:
    def test_a_table_for_each_size_and_where_the_files_are(self, capsys, images, tmp_path):
        out = tmp_path / "out"
        command = ["compare", str(images), f"--out={out}", *flags(epochs=1), "--jobs=1"]
        options = ["--methods=probe", "--seeds=3", "--samples-per-class=all,4"]
        assert main([*command, *options]) == 0
        said = capsys.readouterr()
        lines = [line.strip() for line in said.out.splitlines()]
        titles = [line for line in lines if "accuracy" in line]
        title = "Test accuracy in percent, 1 seed"
        assert titles == [f"{title}, 4 training images per class", title]
        assert lines[-2:] == [f"results  {out / 'results.csv'}", f"report   {out / 'report.html'}"]
        with (out / "results.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["samples_per_class"], row["folder"]) for row in rows] == [
            ("4", "4-per-class/probe-seed3"),
            ("", "probe-seed3"),
        ]
        shown = [line.split()[2] for line in lines if line.startswith("probe ")]
        assert shown == [f"{100 * float(row['test_accuracy']):.1f}" for row in rows]
        assert (out / "report.html").is_file()
        for row in rows:
            assert RunResult.load(out / row["folder"]).num_train_samples == (
                12 if row["samples_per_class"] else 24
            )

    def test_a_run_that_fails_is_in_the_table_and_the_exit_code(self, capsys, images, tmp_path):
        out = tmp_path / "out"
        command = ["compare", str(images), f"--out={out}", *flags(epochs=1, lr=1e6), "--jobs=1"]
        assert main([*command, "--methods=probe,lp_ft", "--seeds=0"]) == 2
        said = capsys.readouterr()
        assert re.search(r"^lp_ft +1 failed *$", said.out, re.MULTILINE)
        assert f"report   {out / 'report.html'}" in said.out
        error = said.err.splitlines()[-1]
        for part in (
            "error: 1 run failed",
            f"--out {out} to retry",
            "lp_ft, seed 0: training diverged in epoch 1",
        ):
            assert part in error

    @pytest.fixture
    def folders(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Where comparisons were to go, none of which is made."""
        from delta_transfer.experiments.comparison import compare

        found = []

        def note(config, folder, **rest):
            found.append(folder)
            return ComparisonResult(folder=folder, results=[], failures=[])

        monkeypatch.setattr(compare, "compare", note)
        return found

    def test_by_default_it_is_named_after_data_and_time(self, folders, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("delta_transfer.runs.folder.time_stamp", lambda: "now")
        assert main(["compare", "sklearn/digits"]) == 0
        assert main(["demo"]) == 0
        assert folders == [Path("runs/compare-sklearn-digits-now"), Path("runs/demo-now")]

    @pytest.mark.parametrize("command", [["compare", "sklearn/digits"], ["demo"]])
    def test_a_tilde_is_home(self, command, folders, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert main([*command, "--out=~/runs"]) == 0
        assert folders == [tmp_path / "runs"]


class TestDemo:
    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch, images: Path) -> None:
        """The demo on tiny images and with few methods."""
        monkeypatch.setattr("delta_transfer.cli.commands.demo.DEMO_IMAGE_SIZE", 32)
        monkeypatch.setattr("delta_transfer.cli.commands.demo.DEMO_METHODS", ("probe", "l2"))
        from delta_transfer.data.registry import BUILTIN_DATASETS, load_data

        def load(options):
            return load_data(str(images), seed=options.seed)

        monkeypatch.setitem(BUILTIN_DATASETS, "skimage/patches", load)
        monkeypatch.setattr(
            "delta_transfer.experiments.scheduling.placement.cpu_count", lambda: 1
        )  # no other processes

    @pytest.mark.usefixtures("small")
    def test_it_prints_a_table_and_leaves_a_report(self, capsys, tmp_path):
        out = tmp_path / "demo"
        assert main(["demo", f"--out={out}", "--seeds=0,1", "--epochs=1", "--device=cpu"]) == 0
        said = capsys.readouterr()
        for part in ("probe", "l2", "2 seeds", f"report   {out}"):
            assert part in said.out.replace("\n", "")
        assert {path.name for path in out.iterdir()} >= {
            "results.csv",
            "report.html",
            "probe-seed0",
            "l2-seed1",
        }
        assert (out / "l2-seed1" / "report.html").is_file()

    @pytest.mark.slow
    @pytest.mark.usefixtures("small")
    def test_one_seed_has_no_deviation(self, capsys, tmp_path):
        args = ["demo", f"--out={tmp_path / 'demo'}", "--seeds=3", "--epochs=1", "--device=cpu"]
        assert main(args) == 0
        text = capsys.readouterr().out
        assert "1 seed" in text
        assert "1 seeds" not in text
        assert "nan" not in text

    @pytest.mark.slow
    def test_the_real_one_compares_four_methods(self, capsys, tmp_path):
        out = tmp_path / "demo"
        assert main(["demo", f"--out={out}", "--seeds=0", "--epochs=1"]) == 0
        text = capsys.readouterr().out
        assert all(f"{method} " in text for method in ("probe", "l2", "l2sp", "delta"))


def test_the_console_script_runs_main(tmp_path):
    script = Path(sys.executable).with_name("delta-transfer")
    if not script.exists():
        pytest.skip("the package is not installed with its script")
    done = subprocess.run(
        [script, "taps", "resnet5O"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'resnet5O'")
    assert logging.getLogger("delta_transfer").handlers == []
