import csv
import dataclasses
import json
import logging
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import functional as F

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import BUILTIN_DATASETS, load_data
from delta_transfer.data.splits import SplitOptions
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError
from delta_transfer.inference.predictor import Prediction, Predictor
from delta_transfer.metrics.run_result import RunResult
from tests.run_folders import CLASSES, SPLITS


@pytest.fixture(scope="module")
def predictor(finished: RunResult) -> Predictor:
    return Predictor(finished.folder, device="cpu", num_workers=0)


@pytest.fixture
def run(finished: RunResult, tmp_path: Path) -> Path:
    """A copy, to be written to."""
    return shutil.copytree(finished.folder, tmp_path / "run")


def change(run: Path, **options: object) -> Predictor:
    """The network of a run that had other options."""
    config = TrainConfig.load(run / "config.yaml")
    changed = dataclasses.replace(config, **options)
    (run / "config.yaml").write_text(changed.to_yaml())
    return Predictor(run, device="cpu", num_workers=0)


def test_a_run_of_more_micro_batches_than_images_per_batch_predicts(run, predictor, images):
    folder = images / "test"
    found = change(run, batch_size=128, gradient_accumulation_steps=64).predict([folder])
    assert [one.values for one in found] == [
        pytest.approx(one.values) for one in predictor.predict([folder])
    ]


def accuracies(predictor: Predictor, folder: Path) -> tuple[float, float]:
    """Of all images, and the mean over the class folders, from predictions one by one."""
    by_class = []
    for name in CLASSES:
        if (folder / name).is_dir():
            found = predictor.predict([folder / name])
            by_class.append([next(iter(p.probabilities)) == name for p in found])
    every = [right for rights in by_class for right in rights]
    means = [sum(rights) / len(rights) for rights in by_class]
    return sum(every) / len(every), sum(means) / len(means)


def by_hand(model: Path, sample: Path) -> dict[str, float]:
    """Probabilities from the model folder alone: timm for the network, Pillow for the sample."""
    network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    config = json.loads((model / "config.json").read_text())
    spec = config["pretrained_cfg"]
    (_, _, size), mean, std = spec["input_size"], spec["mean"], spec["std"]
    assert spec["interpolation"] == "bicubic"
    image = Image.open(sample).convert("RGB")
    short = int(size / spec["crop_pct"])
    width, height = (int(short * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size))) / 255
    inputs = torch.tensor((pixels - mean) / std).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        exponentials = network(inputs)[0].double().exp()
    probabilities = exponentials / exponentials.sum()
    return dict(zip(config["label_names"], probabilities.tolist(), strict=True))


class TestPredict:
    def test_it_says_what_network_and_image_say_by_hand(self, predictor, finished, tmp_path):
        generator = np.random.default_rng(0)
        for name, shape in (("wide.png", (50, 83, 3)), ("high.png", (97, 61, 3))):
            noise = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name)
        for prediction in predictor.predict([tmp_path]):
            expected = by_hand(finished.folder / "model", Path(prediction.path))
            assert prediction.probabilities == pytest.approx(expected, abs=1e-5)
            assert prediction.top_class == max(expected, key=expected.__getitem__)

    def test_it_says_what_the_run_wrote_of_its_test_split(self, predictor, finished, images):
        with (finished.folder / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        found = predictor.predict([images / row["path"] for row in rows])
        for row, prediction in zip(rows, found, strict=True):
            assert prediction.top_class == row["prediction"]
            for name in CLASSES:
                assert prediction.probabilities[name] == pytest.approx(float(row[name]), abs=1e-4)

    def test_a_run_of_the_paper_protocol_averages_ten_crops(self, run, images):
        sample = images / "test" / "rings" / "0.png"
        (found,) = change(run, preset="paper").predict([sample])
        network = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
        spec = json.loads((run / "model" / "config.json").read_text())["pretrained_cfg"]
        side, size = round(32 * 256 / 224), 32
        image = Image.open(sample).resize((side * 40 // 36, side), Image.Resampling.BICUBIC)
        crops = [
            F.normalize(F.to_tensor(c), spec["mean"], spec["std"])
            for c in F.ten_crop(image, [size, size])
        ]
        with torch.no_grad():
            expected = network(torch.stack(crops)).mean(dim=0).softmax(dim=0)
        assert [found.probabilities[name] for name in CLASSES] == pytest.approx(
            expected.tolist(), abs=1e-4
        )

    def test_the_most_probable_class_comes_first_and_they_sum_to_one(self, predictor, images):
        for prediction in predictor.predict([images / "test"]):
            values = list(prediction.probabilities.values())
            assert values == sorted(values, reverse=True)
            assert sum(values) == pytest.approx(1, abs=1e-5)
            assert set(prediction.probabilities) == set(CLASSES)

    def test_files_and_folders_come_in_the_order_given(self, predictor, images):
        first, folder = images / "val" / "rings" / "3.png", images / "test" / "checks"
        found = predictor.predict([first, folder, first])
        expected = [first, *sorted(folder.iterdir()), first]  # again, as it is named again
        assert [p.path for p in found] == [str(path) for path in expected]

    def test_links_lead_to_images_and_folders(self, predictor, images, tmp_path):
        (tmp_path / "linked.png").symlink_to(images / "val" / "rings" / "3.png")
        (tmp_path / "below").symlink_to(images / "test" / "checks")
        found = [prediction.path for prediction in predictor.predict([tmp_path])]
        assert found == [
            *(str(tmp_path / "below" / f"{number}.png") for number in range(3)),
            str(tmp_path / "linked.png"),
        ]

    def test_a_csv_file_lists_images_relative_to_itself(self, predictor, images, tmp_path):
        data = shutil.copytree(images / "test", tmp_path / "data")
        listed = ["rings/2.png", "checks/0.png", "rings/2.png"]
        (data / "new.csv").write_text("id,path\n" + "".join(f"7,{path}\n" for path in listed))
        found = predictor.predict([data / "new.csv", data / "checks"])
        expected = [*(data / path for path in listed), *sorted((data / "checks").iterdir())]
        assert [p.path for p in found] == [str(path) for path in expected]
        assert found[0].probabilities == pytest.approx(found[2].probabilities)

    def test_batches_and_workers_change_nothing(self, predictor, finished, images):
        other = Predictor(finished.folder, device="cpu", batch_size=5, num_workers=2)
        paths = [images / "val"]
        expected = predictor.predict(paths)
        for mine, its in zip(other.predict(paths), expected, strict=True):
            assert mine.path == its.path
            assert mine.probabilities == pytest.approx(its.probabilities, abs=1e-5)

    def test_it_predicts_while_it_reads(self, finished, images, monkeypatch):
        read = []
        monkeypatch.setattr(
            "delta_transfer.inference.input_files.read_image",
            lambda path: read.append(path) or Image.new("RGB", (40, 40)),
        )
        few = Predictor(finished.folder, device="cpu", batch_size=2, num_workers=0)
        answers = few.stream([images / "val"])
        next(answers)
        assert len(read) == 2
        answers.close()
        assert len(read) == 2

    def test_every_image_is_read_once(self, predictor, images, monkeypatch):
        read = []
        monkeypatch.setattr(
            "delta_transfer.inference.input_files.read_image",
            lambda path: read.append(str(path)) or Image.new("RGB", (40, 40)),
        )
        found = predictor.predict([images / "val"])
        assert read == [prediction.path for prediction in found]

    def test_it_says_how_many_and_how_fast(self, predictor, images, caplog):
        caplog.set_level(logging.INFO, "delta_transfer")
        predictor.predict([images / "test"])
        (message,) = caplog.messages
        assert re.fullmatch(r"12 images, \d+(\.\d)? images/s", message)

    def test_nothing_gives_nothing(self, predictor, caplog):
        assert predictor.predict([]) == []
        assert not caplog.records

    def test_what_is_not_there_is_refused(self, predictor, tmp_path):
        with pytest.raises(UserError, match="there is no file or folder"):
            predictor.predict([tmp_path / "nothing.png"])
        with pytest.raises(UserError, match="there is no file or folder"):
            predictor.predict([tmp_path / ("long" * 1000)])
        with pytest.raises(UserError, match=r"no images in .*\.jpeg, \.jpg"):
            predictor.predict([tmp_path])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("file\na.png\n", "lacks the column 'path'"),
            ("path\nnothing.png\n", r"line 2 \('nothing.png'\): there is no such file"),
            ("path\n../a.png\n", "leads out of"),
        ],
    )
    def test_a_csv_file_is_checked(self, predictor, tmp_path, content, message):
        (tmp_path / "new.csv").write_text(content)
        with pytest.raises(UserError, match=message):
            predictor.predict([tmp_path / "new.csv"])


class TestUnreadable:
    @pytest.fixture
    def data(self, images: Path, tmp_path: Path) -> Path:
        """The test split, with a letter, a link to nowhere and an empty file in it."""
        data = shutil.copytree(images / "test", tmp_path / "data")
        (data / "checks" / "0.png").write_text("Dear Sir")
        (data / "rings" / "gone.png").symlink_to(data / "nowhere.png")
        (data / "stripes" / "4.png").write_bytes(b"")
        return data

    BAD = ("checks/0.png", "rings/gone.png", "stripes/4.png")

    @pytest.mark.parametrize(("workers", "batch_size"), [(0, 32), (2, 4), (0, 1)])
    def test_they_are_named_counted_and_left_out(
        self, predictor, finished, data, caplog, workers, batch_size
    ):
        some = Predictor(finished.folder, device="cpu", num_workers=workers, batch_size=batch_size)
        found = some.predict([data])
        good = [
            path
            for path in sorted(data.rglob("*.png"))
            if path.relative_to(data).as_posix() not in self.BAD
        ]
        assert [p.path for p in found] == [str(path) for path in good]
        for prediction, expected in zip(found, predictor.predict(good), strict=True):
            assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        text = warning.getMessage()
        assert text.startswith("3 of 13 images cannot be read and are left out; replace or")
        assert all(f"'{data / path}' (" in text for path in self.BAD)
        assert "Traceback" not in text

    def test_the_metrics_are_those_of_the_others(self, predictor, data, caplog):
        found = predictor.evaluate(str(data))
        assert "3 of 13 images cannot be read" in caplog.text
        assert (found.num_samples, found.num_unreadable) == (10, 3)
        for path in self.BAD:
            (data / path).unlink()
        clean = predictor.evaluate(str(data))
        assert (clean.num_samples, clean.num_unreadable) == (10, 0)
        assert clean.accuracy == found.accuracy
        assert clean.confusion == found.confusion
        assert clean.split.paths == found.split.paths

    def test_if_all_are_it_is_an_error(self, predictor, tmp_path, caplog):
        for name in CLASSES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "letter.png").write_text("Dear Sir")
        with pytest.raises(UserError, match=r"none of the 3 .* can be read; .*checks/letter.png"):
            predictor.predict([tmp_path])
        with pytest.raises(UserError, match=r"none of the 3 .* can be read; .*checks/letter.png"):
            predictor.evaluate(str(tmp_path))
        with pytest.raises(UserError, match=r"cannot read the image '.*rings/letter.png' \("):
            predictor.predict([tmp_path / "rings" / "letter.png"])
        assert not caplog.records

    def test_only_the_first_are_named(self, predictor, images, tmp_path, caplog):
        shutil.copy(images / "test" / "rings" / "0.png", tmp_path)
        for number in range(25):
            (tmp_path / f"bad{number:02d}.png").write_text("Dear Sir")
        assert len(predictor.predict([tmp_path])) == 1
        assert "bad19.png" in caplog.text
        assert "bad20.png" not in caplog.text
        assert "and 5 more" in caplog.text


class TestEvaluate:
    def test_a_folder_with_a_test_split_is_measured_on_it(self, predictor, finished, images):
        found = predictor.evaluate(str(images))
        accuracy, mean = accuracies(predictor, images / "test")
        assert found.accuracy == pytest.approx(accuracy)
        assert found.accuracy == pytest.approx(finished.test_accuracy)
        assert found.mean_class_accuracy == pytest.approx(mean)
        assert (found.num_samples, found.overlaps_training_data) == (sum(SPLITS["test"]), False)

    def test_every_metric_follows_from_the_predictions(self, predictor, images):
        found = predictor.evaluate(str(images))
        answers = predictor.predict([images / "test"])
        pairs = [(Path(p.path).parent.name, p.top_class) for p in answers]
        assert found.confusion == tuple(
            tuple(pairs.count((label, said)) for said in CLASSES) for label in CLASSES
        )
        for figures, name, count in zip(found.classes, CLASSES, SPLITS["test"], strict=True):
            assert (figures.name, figures.num_samples) == (name, count)
            assert figures.accuracy == pytest.approx(pairs.count((name, name)) / count)
        assert found.metric_name == "accuracy"
        assert found.data == str(images)
        assert found.samples_per_second > 0
        sure = [max(p.probabilities.values()) for p in answers]
        right = [label == said for label, said in pairs]
        error = 0.0
        for b in range(15):
            inside = [i for i, s in enumerate(sure) if b / 15 <= s < (b + 1) / 15]
            if inside:
                gap = np.mean([right[i] for i in inside]) - np.mean([sure[i] for i in inside])
                error += len(inside) / len(sure) * abs(gap)
        assert found.calibration_error == pytest.approx(error, abs=1e-4)

    def test_of_a_flat_folder_all_images_count(self, predictor, images, tmp_path):
        flat = shutil.copytree(images / "val", tmp_path / "flat")
        found = predictor.evaluate(str(flat))
        expected = accuracies(predictor, flat)
        assert (found.accuracy, found.mean_class_accuracy) == pytest.approx(expected)
        assert (found.num_samples, found.overlaps_training_data) == (sum(SPLITS["val"]), False)

    def test_a_csv_file_is_measured_on_its_test_split_or_as_a_whole(
        self, predictor, images, tmp_path
    ):
        data = shutil.copytree(images, tmp_path / "data")
        paths = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
        rows = [(path, path.split("/")[1], path.split("/")[0]) for path in paths]
        with_splits = ["path,label,split", *map(",".join, rows)]
        (data / "all.csv").write_text("\n".join(with_splits))
        found = predictor.evaluate(str(data / "all.csv"))
        expected = predictor.evaluate(str(data))
        assert found.confusion == expected.confusion
        assert found.split.paths == expected.split.paths
        assert not found.overlaps_training_data
        val = ["path,label", *(f"{path},{label}" for path, label, split in rows if split == "val")]
        (data / "val.csv").write_text("\n".join(val))
        found = predictor.evaluate(str(data / "val.csv"))
        assert found.accuracy == pytest.approx(accuracies(predictor, data / "val")[0])

    def test_a_test_split_that_the_seed_drew_is_drawn_again(self, compared, images):
        run = next(r for r in compared if (r.method, r.seed) == ("l2", 1))
        other = Predictor(run.folder, device="cpu", num_workers=0)
        with (run.folder / "predictions.csv").open() as file:
            paths = [row["path"] for row in csv.DictReader(file)]
        for data in (str(images / "train"), f"{images}/val/../train/"):
            found = other.evaluate(data)
            assert (list(found.split.paths), found.overlaps_training_data) == (paths, False)
            assert found.accuracy == pytest.approx(run.test_accuracy)

    def test_the_classes_may_be_a_part_of_those_known(self, predictor, images, tmp_path):
        for name in CLASSES[1:]:
            shutil.copytree(images / "train" / name, tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = predictor.evaluate(str(tmp_path))
        expected = accuracies(predictor, tmp_path)
        assert (found.accuracy, found.mean_class_accuracy) == pytest.approx(expected)
        assert [figures.name for figures in found.classes] == list(CLASSES)
        assert (found.classes[0].num_samples, found.classes[0].accuracy) == (0, None)
        shutil.rmtree(tmp_path / CLASSES[1])
        one = predictor.evaluate(str(tmp_path))
        assert one.accuracy == one.mean_class_accuracy

    def test_an_unknown_class_is_refused(self, predictor, images, tmp_path):
        shutil.copytree(images / "train" / "rings", tmp_path / "circles")
        shutil.copytree(images / "train" / "rings", tmp_path / "rings")
        with pytest.raises(UserError, match="does not know: circles; it knows checks, rings"):
            predictor.evaluate(str(tmp_path))

    def test_training_images_are_marked(self, predictor, run, images, tmp_path):
        assert predictor.evaluate(
            str(images / "train")
        ).overlaps_training_data  # inside of the run's data
        assert predictor.evaluate(f"{images}/val/").overlaps_training_data
        assert not predictor.evaluate(str(images / "test")).overlaps_training_data
        assert not predictor.evaluate(str(images)).overlaps_training_data  # this is its test split
        other = shutil.copytree(images / "train", tmp_path / "other")
        assert not predictor.evaluate(str(other)).overlaps_training_data
        # A run of a flat folder, without a test split.
        of_flat = change(run, data=str(other))
        assert of_flat.evaluate(str(other)).overlaps_training_data
        assert not of_flat.evaluate(str(images / "train")).overlaps_training_data

    def test_of_a_folder_that_has_changed_nobody_knows(self, run, images, tmp_path):
        data = shutil.copytree(images, tmp_path / "data")
        predictor = change(run, data=str(data))
        assert not predictor.evaluate(str(data / "test")).overlaps_training_data
        shutil.rmtree(data / "train")
        assert predictor.evaluate(str(data / "test")).overlaps_training_data

    def test_the_test_split_may_have_another_name(self, run, finished, images, tmp_path):
        data = shutil.copytree(images, tmp_path / "data")
        (data / "test").rename(data / "exam")
        found = change(run, test_split="exam").evaluate(str(data))
        assert found.accuracy == pytest.approx(finished.test_accuracy)

    def test_a_named_data_set_is_measured_on_the_test_split_of_the_runs_seed(
        self, predictor, finished, images, monkeypatch
    ):
        seeds = []

        def load(options: SplitOptions) -> TaskData:
            seeds.append(options.seed)
            task = load_data(str(images), seed=options.seed)
            return dataclasses.replace(task, metric="mean_class_accuracy")

        monkeypatch.setitem(BUILTIN_DATASETS, "patterns/tiny", load)
        found = predictor.evaluate("patterns/tiny")
        assert (found.num_samples, found.overlaps_training_data) == (sum(SPLITS["test"]), False)
        assert found.accuracy == pytest.approx(finished.test_accuracy)
        assert (found.data, found.metric_name) == ("patterns/tiny", "mean_class_accuracy")
        assert seeds == [finished.seed]

    def test_a_data_set_of_a_collection_lies_in_the_data_root(
        self, run, finished, images, monkeypatch
    ):
        asked = []

        def load(name: str, options: SplitOptions, data_root: str | None) -> TaskData:
            asked.append((name, options.test_split, data_root))
            return load_data(str(images), seed=options.seed)

        monkeypatch.setattr("delta_transfer.data.sources.torchvision.load_torchvision", load)
        predictor = change(run, data_root="/runs/own", test_split="0.25")
        for data_root in (None, "/other"):
            found = predictor.evaluate("torchvision/pets", data_root=data_root)
            assert found.accuracy == pytest.approx(finished.test_accuracy)
            assert (found.data, found.overlaps_training_data) == ("torchvision/pets", False)
        assert asked == [("pets", "test", "/runs/own"), ("pets", "test", "/other")]

    def test_a_named_data_set_without_a_test_split_was_trained_on(self, run, images, monkeypatch):
        def load(options: SplitOptions) -> TaskData:
            return dataclasses.replace(load_data(str(images), seed=options.seed), test=None)

        monkeypatch.setitem(BUILTIN_DATASETS, "patterns/tiny", load)
        found = change(run, data="patterns/tiny").evaluate("patterns/tiny")
        assert (found.num_samples, found.overlaps_training_data) == (
            sum(SPLITS["train"]) + sum(SPLITS["val"]),
            True,
        )

    def test_a_named_data_set_of_other_classes_is_refused(self, predictor):
        with pytest.raises(UserError, match=r"sklearn/digits has classes .* not know: 0, 1, 2"):
            predictor.evaluate("sklearn/digits")

    def test_an_unused_data_root_is_reported(self, predictor, images, tmp_path, caplog):
        predictor.evaluate(str(images), data_root=str(tmp_path))
        assert "`data_root` is ignored" in caplog.text

    def test_data_that_is_not_there_is_refused(self, predictor, tmp_path):
        with pytest.raises(UserError, match=r"unknown dataset .*nothing"):
            predictor.evaluate(str(tmp_path / "nothing"))


def test_a_folder_that_is_no_run_is_refused(tmp_path, images):
    with pytest.raises(UserError, match=r"there is no run .*nowhere"):
        Predictor(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no model in .*model\.safetensors"):
        Predictor(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size.*at least 1.*got 0"),
        ({"num_workers": -1}, "num_workers.*at least 0.*got -1"),
    ],
)
def test_numbers_are_checked(finished, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(finished.folder, **options)


def test_a_device_that_is_not_there_is_refused(finished, monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    with pytest.raises(UserError, match="`device=cuda`"):
        Predictor(finished.folder, device="cuda")


def test_a_prediction_is_a_record(finished):
    assert Prediction("a.png", {"x": 1.0}) == Prediction("a.png", {"x": 1.0})
