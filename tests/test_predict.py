import csv
import dataclasses
import shutil
import warnings
from pathlib import Path

import pytest

from delta_transfer.config import TrainConfig
from delta_transfer.data import SOURCES, Task, load_task
from delta_transfer.errors import UserError
from delta_transfer.predict import Prediction, Predictor
from delta_transfer.result import RunResult
from tests.runs import CLASSES, SPLITS


@pytest.fixture(scope="module")
def predictor(finished: RunResult) -> Predictor:
    return Predictor(finished.folder, device="cpu", workers=0)


def accuracies(predictor: Predictor, folder: Path) -> tuple[float, float]:
    """Of all pictures, and the mean over the class folders, from predictions one by one."""
    by_class = []
    for name in CLASSES:
        if (folder / name).is_dir():
            found = predictor.predict([folder / name])
            by_class.append([next(iter(p.probabilities)) == name for p in found])
    every = [right for rights in by_class for right in rights]
    means = [sum(rights) / len(rights) for rights in by_class]
    return sum(every) / len(every), sum(means) / len(means)


class TestPredict:
    def test_it_says_what_the_run_wrote_of_its_test_split(self, predictor, finished, pictures):
        with (finished.folder / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        found = predictor.predict([pictures / row["path"] for row in rows])
        for row, prediction in zip(rows, found, strict=True):
            assert next(iter(prediction.probabilities)) == row["prediction"]
            for name in CLASSES:
                assert prediction.probabilities[name] == pytest.approx(float(row[name]), abs=1e-4)

    def test_the_most_probable_class_comes_first_and_they_sum_to_one(self, predictor, pictures):
        for prediction in predictor.predict([pictures / "test"]):
            values = list(prediction.probabilities.values())
            assert values == sorted(values, reverse=True)
            assert sum(values) == pytest.approx(1, abs=1e-5)
            assert set(prediction.probabilities) == set(CLASSES)

    def test_files_and_folders_come_in_the_order_given(self, predictor, pictures):
        first, folder = pictures / "val" / "rings" / "3.png", pictures / "test" / "checks"
        found = predictor.predict([first, folder])
        assert [p.path for p in found] == [str(path) for path in (first, *sorted(folder.iterdir()))]

    def test_batches_and_workers_change_nothing(self, predictor, finished, pictures):
        other = Predictor(finished.folder, device="cpu", batch_size=5, workers=2)
        paths = [pictures / "val"]
        expected = predictor.predict(paths)
        for mine, its in zip(other.predict(paths), expected, strict=True):
            assert mine.path == its.path
            assert mine.probabilities == pytest.approx(its.probabilities, abs=1e-5)

    def test_what_cannot_be_read_is_named(self, predictor, tmp_path):
        (tmp_path / "letter.png").write_text("Dear Sir")
        with pytest.raises(UserError, match=r"cannot read the picture '.*letter\.png'"):
            predictor.predict([tmp_path])

    def test_what_is_not_there_is_refused(self, predictor, tmp_path):
        with pytest.raises(UserError, match="there is no file or folder"):
            predictor.predict([tmp_path / "nothing.png"])
        with pytest.raises(UserError, match=r"no pictures in .*\.jpeg, \.jpg"):
            predictor.predict([tmp_path])

    def test_nothing_gives_nothing(self, predictor):
        assert predictor.predict([]) == []


class TestEvaluate:
    def test_a_folder_with_a_test_split_is_measured_on_it(self, predictor, finished, pictures):
        found = predictor.evaluate(str(pictures))
        accuracy, mean = accuracies(predictor, pictures / "test")
        assert found.accuracy == pytest.approx(accuracy)
        assert found.accuracy == pytest.approx(finished.test_accuracy)
        assert found.mean_class_accuracy == pytest.approx(mean)
        assert (found.pictures, found.seen) == (sum(SPLITS["test"]), False)

    def test_of_a_flat_folder_all_pictures_count(self, predictor, pictures, tmp_path):
        flat = shutil.copytree(pictures / "val", tmp_path / "flat")
        found = predictor.evaluate(str(flat))
        expected = accuracies(predictor, flat)
        assert (found.accuracy, found.mean_class_accuracy) == pytest.approx(expected)
        assert (found.pictures, found.seen) == (sum(SPLITS["val"]), False)

    def test_a_test_split_that_the_seed_drew_is_drawn_again(self, compared, pictures):
        run = next(r for r in compared if (r.method, r.seed) == ("l2", 1))
        found = Predictor(run.folder, device="cpu", workers=0).evaluate(str(pictures / "train"))
        with (run.folder / "predictions.csv").open() as file:
            count = len(list(csv.DictReader(file)))
        assert (found.pictures, found.seen) == (count, False)
        assert found.accuracy == pytest.approx(run.test_accuracy)

    def test_the_classes_may_be_a_part_of_those_known(self, predictor, pictures, tmp_path):
        for name in CLASSES[1:]:
            shutil.copytree(pictures / "train" / name, tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = predictor.evaluate(str(tmp_path))
        expected = accuracies(predictor, tmp_path)
        assert (found.accuracy, found.mean_class_accuracy) == pytest.approx(expected)
        shutil.rmtree(tmp_path / CLASSES[1])
        one = predictor.evaluate(str(tmp_path))
        assert one.accuracy == one.mean_class_accuracy

    def test_a_class_that_was_never_learnt_is_refused(self, predictor, pictures, tmp_path):
        shutil.copytree(pictures / "train" / "rings", tmp_path / "circles")
        shutil.copytree(pictures / "train" / "rings", tmp_path / "rings")
        with pytest.raises(UserError, match="does not know: circles; it knows checks, rings"):
            predictor.evaluate(str(tmp_path))

    def test_pictures_that_were_learnt_from_are_marked(
        self, predictor, finished, pictures, tmp_path
    ):
        assert predictor.evaluate(str(pictures / "train")).seen  # inside of the run's data
        assert predictor.evaluate(f"{pictures}/val/").seen
        assert not predictor.evaluate(str(pictures)).seen  # this is its test split
        other = shutil.copytree(pictures / "train", tmp_path / "other")
        assert not predictor.evaluate(str(other)).seen
        # A run of a flat folder, without a test split.
        run = shutil.copytree(finished.folder, tmp_path / "run")
        config = TrainConfig.load(run / "config.yaml")
        dataclasses.replace(config, data=str(other)).save(run / "config.yaml")
        of_flat = Predictor(run, device="cpu", workers=0)
        assert of_flat.evaluate(str(other)).seen
        assert not of_flat.evaluate(str(pictures / "train")).seen

    def test_the_test_split_may_have_another_name(self, finished, pictures, tmp_path):
        data = shutil.copytree(pictures, tmp_path / "data")
        (data / "test").rename(data / "exam")
        run = shutil.copytree(finished.folder, tmp_path / "run")
        config = TrainConfig.load(run / "config.yaml")
        dataclasses.replace(config, test_split="exam").save(run / "config.yaml")
        found = Predictor(run, device="cpu", workers=0).evaluate(str(data))
        assert found.accuracy == pytest.approx(finished.test_accuracy)

    def test_a_named_data_set_is_measured_on_the_test_split_of_the_runs_seed(
        self, predictor, finished, pictures, monkeypatch
    ):
        seeds = []

        def load(*, seed: int, val_fraction: float, test_split: str) -> Task:
            seeds.append(seed)
            return load_task(str(pictures), seed=seed)

        monkeypatch.setitem(SOURCES, "patterns/tiny", load)
        found = predictor.evaluate("patterns/tiny")
        assert (found.pictures, found.seen) == (sum(SPLITS["test"]), False)
        assert found.accuracy == pytest.approx(finished.test_accuracy)
        assert seeds == [finished.seed]

    def test_a_named_data_set_of_other_classes_is_refused(self, predictor):
        with pytest.raises(UserError, match=r"sklearn/digits has classes .* not know: 0, 1, 2"):
            predictor.evaluate("sklearn/digits")

    def test_data_that_is_not_there_is_refused(self, predictor, tmp_path):
        with pytest.raises(UserError, match="there is no folder"):
            predictor.evaluate(str(tmp_path / "nothing"))


def test_a_folder_that_is_no_run_is_refused(tmp_path, pictures):
    with pytest.raises(UserError, match=r"there is no run .*nowhere"):
        Predictor(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no model in .*model\.safetensors"):
        Predictor(pictures)


def test_a_device_that_is_not_there_is_refused(finished, monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    with pytest.raises(UserError, match="--device cuda"):
        Predictor(finished.folder, device="cuda")


def test_a_prediction_is_a_record(finished):
    assert Prediction("a.png", {"x": 1.0}) == Prediction("a.png", {"x": 1.0})
