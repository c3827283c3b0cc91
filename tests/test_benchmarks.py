"""The scripts in benchmarks/: the sets that they cut, and the tables that they write."""

import argparse
import dataclasses
import importlib
import math
import re
from pathlib import Path, PurePosixPath

import pytest
import torch
from PIL import Image

from delta_transfer.data.registry import load_data
from delta_transfer.errors import ConfigError, DataError
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.report.comparison.runs import Comparison, Entry

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def image_sets():
    return importlib.import_module("image_sets")


@pytest.fixture
def accuracy():
    return importlib.import_module("accuracy")


@pytest.fixture
def averages():
    return importlib.import_module("averages")


@pytest.fixture
def peers():
    return importlib.import_module("peers")


@pytest.fixture
def shared(tmp_path) -> Path:
    """Make trashnet of four classes, with 12 training and 3 test images each."""
    for number, name in enumerate("abcd"):
        for split, count in (("train", 12), ("test", 3)):
            folder = tmp_path / "shared" / "images" / "trashnet" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                color = (60 * number, 20 * index, 255 * (split == "test"))
                Image.new("RGB", (8, 8), color).save(folder / f"{index}.png")
    return tmp_path / "shared"


def files(folder: str) -> set[str]:
    root = Path(folder)
    return {path.relative_to(root).as_posix() for path in root.rglob("*.png")}


class TestTinySets:
    def test_it_has_the_classes_and_images_asked_for(self, image_sets, shared, tmp_path):
        (tiny,) = image_sets.parse_sets("trashnet@2x10")
        task = load_data(tiny.data(shared, tmp_path, seed=0), seed=0)
        assert len(task.classes) == 2
        assert sorted((*task.train.labels, *task.val.labels)) == [0] * 10 + [1] * 10
        assert sorted(task.test.labels) == [0] * 3 + [1] * 3
        for split in (task.train, task.test):
            for path, label in zip(split.paths, split.labels, strict=True):
                red, _, blue = split.read(path).getpixel((0, 0))
                assert red == 60 * "abcd".index(task.classes[label])
                assert blue == (255 if split is task.test else 0)

    def test_smaller_draws_of_a_seed_are_parts_of_larger_ones(self, image_sets, shared, tmp_path):
        sets = image_sets.parse_sets("trashnet@2x5,trashnet@2x10,trashnet@3x10")
        small, more, largest = [files(each.data(shared, tmp_path, seed=3)) for each in sets]
        assert small < more < largest

    def test_seeds_draw_other_classes_and_images(self, image_sets, shared, tmp_path):
        (tiny,) = image_sets.parse_sets("trashnet@2x5")
        drawn = [files(tiny.data(shared, tmp_path, seed=seed)) for seed in range(6)]
        assert len({frozenset(each) for each in drawn}) == 6
        classes = {frozenset(path.split("/")[1] for path in each) for each in drawn}
        assert len(classes) > 1

    def test_a_second_call_uses_the_same_folder(self, image_sets, shared, tmp_path):
        (tiny,) = image_sets.parse_sets("trashnet@2x5")
        folder = tiny.data(shared, tmp_path, seed=0)
        Path(folder, "mark").touch()
        assert tiny.data(shared, tmp_path, seed=0) == folder
        assert Path(folder, "mark").exists()
        assert [path.name for path in Path(folder).parent.iterdir()] == ["seed0"]

    def test_without_links_the_files_are_copied(self, image_sets, shared, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(image_sets.os, "symlink", refuse)
        (tiny,) = image_sets.parse_sets("trashnet@2x5")
        folder = tiny.data(shared, tmp_path, seed=0)
        assert len(files(folder)) == 16
        assert not any((Path(folder) / path).is_symlink() for path in files(folder))

    def test_sets_without_files_are_written_as_png(self, image_sets, shared, tmp_path):
        (tiny,) = image_sets.parse_sets("sklearn/digits@3x4")
        task = load_data(tiny.data(shared, tmp_path, seed=1), seed=1)
        whole = load_data("sklearn/digits", seed=1)
        path = task.train.paths[0]
        digit, number = re.fullmatch(r"train/(\d)/\d-(\d+)\.png", path).groups()
        written, original = task.train.read(path), whole.train.read(f"{digit}/{number}")
        assert written.tobytes() == original.tobytes()
        assert task.classes[task.train.labels[0]] == digit

    @pytest.mark.parametrize(("size", "part"), [("5x2", "4 classes"), ("2x13", "12 images")])
    def test_too_much_is_refused(self, image_sets, shared, tmp_path, size, part):
        (tiny,) = image_sets.parse_sets(f"trashnet@{size}")
        with pytest.raises(DataError, match=f"trashnet.*{part}"):
            tiny.data(shared, tmp_path, seed=0)

    @pytest.mark.parametrize("text", ["trashnett", "trashnet@2", "trashnet@1x10", "trashnet@2x"])
    def test_names_are_checked(self, image_sets, text):
        with pytest.raises(ConfigError, match=text):
            image_sets.parse_sets(text)

    def test_groups(self, image_sets):
        assert [str(each) for each in image_sets.parse_sets("full,dtd10")] == [*image_sets.FULL]
        assert len(image_sets.parse_sets("tiny")) == 4 * len(image_sets.FULL) - 2

    def test_a_missing_folder_names_the_option(self, image_sets, shared):
        with pytest.raises(DataError, match=r"dtd10.*shared"):
            image_sets.ImageSet("dtd10").source(shared)

    def test_sizes_that_a_set_lacks(self, image_sets, shared):
        data = image_sets.ImageSet("trashnet").source(shared)  # 2 of 12 are for validation
        assert image_sets.sizes_of(data, [5, None]) == ([5, None], [])
        found, notes = image_sets.sizes_of(data, [5, 11])
        assert found == [5]
        assert "at most 10" in notes[0]
        found, notes = image_sets.sizes_of(data, [20])
        assert found == [None]
        assert "All are used" in notes[0]


def comparison(scores: dict[str, list[float]], probe: list[float]) -> Comparison:
    entries = [
        Entry(
            method=method,
            seed=seed,
            samples_per_class=None,
            score=score,
            probe=probe[seed],
            trained_share=1.0,
            strength=None,
            wall_time_s=10.0 * (seed + 1),
            peak_memory_mib=100.0,
            retention={},
            folder=PurePosixPath(f"{method}-seed{seed}"),
        )
        for method, own in scores.items()
        for seed, score in enumerate(own)
    ]
    return Comparison(Path("none"), "test", ACCURACY, tuple(entries))


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Return the cells of each row of the only table, by its first cell."""
    table = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len({len(row) for row in cells}) == 1
    return {row[0]: row[1:] for row in cells}


@pytest.fixture
def results(accuracy, image_sets):
    first, second = image_sets.parse_sets("trashnet@2x10,dtd10@2x10")
    return {
        (first, None): comparison({"probe": [0.5, 0.6], "delta": [0.6, 0.57]}, [0.5, 0.6]),
        (second, None): comparison({"probe": [0.7, 0.8], "delta": [0.9, 0.79]}, [0.7, 0.8]),
    }


class TestTables:
    def test_a_set(self, accuracy, results):
        lines = list(accuracy.write_table("a", next(iter(results.values()))))
        assert "linear probe 55.0" in lines[1]
        found = rows(lines)
        assert found["method"] == ["mean", "std", "vs probe", "worst vs probe", "seconds", "MiB"]
        mean, std, vs_probe, worst, seconds, memory = found["delta"]
        assert (mean, std, worst, seconds, memory) == ("58.5", "2.1", "-3.0", "15", "100")
        # Differences +10 and -3: t(0.975, 1) = 12.706 times 13 / 2.
        assert vs_probe == "+3.5 (-79.1 to +86.1)"
        assert found["probe"][2:4] == ["", ""]

    def test_plain_fine_tuning_is_a_second_baseline(self, accuracy):
        found = rows(
            list(accuracy.write_table("a", comparison({"l2": [0.5], "delta": [0.6]}, [0.4])))
        )
        assert found["method"][2] == "vs l2"
        assert found["delta"][2:5] == ["+10.0", "+20.0", "+20.0"]

    def test_the_mean_over_sets(self, accuracy, results):
        lines = list(accuracy.write_means(results))
        assert sum(line.startswith("### ") for line in lines) == 1
        found = rows(lines)
        mean, vs_probe, worst, below, seconds = found["delta"]
        assert (mean, worst, below, seconds) == ("71.5", "-3.0", "1 of 4 (25%)", "15")
        assert vs_probe.startswith("+6.5 ")
        assert found["probe"] == ["65.0", "", "", "", "15"]

    def test_exactly_two_points_are_not_more(self, accuracy, image_sets):
        results = {(image_sets.ImageSet("dtd10"), 20): comparison({"delta": [0.28]}, [0.30])}
        assert rows(list(accuracy.write_means(results)))["delta"][3] == "0 of 1 (0%)"

    def test_sizes_are_groups(self, accuracy, image_sets, results):
        whole = {(image_sets.ImageSet("dtd10"), 20): comparison({"delta": [0.5, 0.5]}, [0.4, 0.4])}
        lines = list(accuracy.write_means({**results, **whole}))
        titles = [line.strip() for line in lines if line.startswith("### ")]
        assert titles == ["### 2 classes, 10 training images a class", "### All of them"]

    def test_other_tools_are_rows(self, accuracy, peers, results):
        of_one = next(iter(results.values()))
        result = peer_result(peers)
        extra = dataclasses.replace(result, seed=7)  # we have no run of this seed
        found = rows(list(accuracy.write_table("a", accuracy.with_peers(of_one, [result, extra]))))
        assert found["fastai, 10 epochs (1 seed)"] == ["57.0", "", "-3.0", "-3.0", "30", ""]

    def test_only_of_the_same_images_and_network(self, accuracy, peers, image_sets, tmp_path):
        options = argparse.Namespace(out=tmp_path, model="m", image_size=64)
        fitting = peer_result(peers)
        others = [{"set": "trashnet"}, {"samples_per_class": 5}, {"model": "n"}, {"image_size": 96}]
        for result in (fitting, *(dataclasses.replace(fitting, **other) for other in others)):
            peers.append(result, tmp_path / peers.PEERS_FILE)
        (tiny,) = image_sets.parse_sets("trashnet@2x10")
        assert accuracy.of_setting(options, tiny, None) == [fitting]


def peer_result(peers):
    return peers.PeerResult(
        peer="fastai",
        epochs=10,
        set="trashnet@2x10",
        samples_per_class=None,
        seed=1,
        model="m",
        image_size=64,
        test_accuracy=0.57,
        wall_time_s=30.0,
        num_train_samples=20,
        num_test_samples=160,
        num_threads=1,
        versions="torch 2, fastai 3",
    )


class TestPeers:
    def test_results_are_read_as_written(self, peers, tmp_path):
        file = tmp_path / "new" / "peers.csv"
        assert peers.read_peers(file) == []
        written = [peer_result(peers), dataclasses.replace(peer_result(peers), samples_per_class=5)]
        for result in written:
            peers.append(result, file)
        assert peers.read_peers(file) == written

    @pytest.mark.parametrize("script", ["accuracy", "peers"])
    def test_help_needs_no_fastai(self, script, monkeypatch, capsys):
        monkeypatch.setitem(importlib.sys.modules, "fastai", None)
        module = importlib.import_module(script)
        monkeypatch.setattr("sys.argv", [script, "--help"])
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == 0
        assert "--sets" in capsys.readouterr().out

    def test_without_fastai_the_extra_is_named(self, peers, monkeypatch):
        monkeypatch.setitem(importlib.sys.modules, "fastai", None)
        monkeypatch.setattr("sys.argv", ["peers", "--peers", "fastai"])
        with pytest.raises(SystemExit, match=r"delta-transfer\[peers\]"):
            peers.main()

    @pytest.mark.parametrize("option", [["--peers", "fastay"], ["--sets", "trashnett"]])
    def test_names_are_checked(self, peers, option, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["peers", *option])
        with pytest.raises(SystemExit):
            peers.main()
        assert option[1] in capsys.readouterr().err

    @pytest.mark.slow
    def test_timm_trains_on_the_images_of_a_run_and_resumes(
        self, peers, shared, tmp_path, monkeypatch, capsys
    ):
        options = ["--peers", "timm_sgd,timm_adamw", "--sets", "trashnet@2x10", "--seeds", "0"]
        options += ["--image-size", "32", "--epochs", "1"]
        options += ["--shared", str(shared), "--out", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["peers", *options])
        monkeypatch.setattr(peers.torch, "set_num_threads", lambda count: None)  # of all tests
        peers.main()
        results = peers.read_peers(tmp_path / "out" / peers.PEERS_FILE)
        assert [result.label for result in results] == [
            "timm_sgd, 1 epoch",
            "timm_adamw, 1 epoch",
        ]
        for result in results:
            assert (result.num_train_samples, result.num_test_samples) == (20, 6)
            assert math.isclose(6 * result.test_accuracy % 1, 0, abs_tol=1e-6)
        first = capsys.readouterr().out
        monkeypatch.setattr(peers, "PEERS", {})  # nothing is trained again
        monkeypatch.setattr(peers, "known_peers", lambda text: text.split(","))
        peers.main()
        assert capsys.readouterr().out == first


class TestAverages:
    def test_the_states_of_a_part_are_means_over_its_trainings(self, averages):
        def states(*values: float) -> list[dict[str, torch.Tensor]]:
            return [{"w": torch.tensor([float(value)])} for value in values]

        folds, on_all = [states(0, 1), states(3, 5)], states(6, 9)
        for part, expected in (
            ("one fold", [0, 1]),
            ("folds", [1.5, 3]),
            ("all images", [6, 9]),
            ("both", [3, 5]),
        ):
            found = averages.states_of(part, folds, on_all)
            assert [float(state["w"]) for state in found] == pytest.approx(expected)

    def test_a_row_has_the_means_over_seeds_and_the_worst_run(self, averages):
        found = {
            "a": [{"probe": 0.5, "1, both": 0.7}, {"probe": 0.6, "1, both": 0.5}],
            "b": [{"probe": 0.4, "1, both": 0.8}],
        }
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in averages.table(found)]
        assert rows[2] == ["probe", "55.0", "40.0", "47.5", "+0.0", "+0.0"]
        # Each set counts once in the mean, each run in what it gains.
        assert rows[3] == ["1, both", "60.0", "80.0", "70.0", "+16.7", "-10.0"]

    def test_it_measures_and_resumes(self, averages, shared, tmp_path, monkeypatch, capsys):
        command = ["averages", "--shared", str(shared), "--sets", "trashnet@2x6", "--image-size=32"]
        command += ["--strengths=1", "--device=cpu", "--out", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", command)
        monkeypatch.setattr("delta_transfer.config.train.TrainConfig.count_epochs", lambda *_: 1)
        averages.main()
        first = capsys.readouterr().out
        assert "| 1, both |" in first
        assert "| chosen |" in first
        monkeypatch.setattr(averages, "measure", None)
        averages.main()
        assert capsys.readouterr().out == first
