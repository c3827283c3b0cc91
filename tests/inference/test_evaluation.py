import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from delta_transfer.data.task import Split
from delta_transfer.inference.evaluation import Evaluation, calibration_error, evaluate_multiclass

CLASSES = ("cat", "path", 'a "big", dog', "owl")


def split(labels: list[int]) -> Split:
    paths = tuple(f"images/{number}.png" for number in range(len(labels)))
    return Split(paths, tuple(labels), lambda path: Image.new("RGB", (2, 2)))


def evaluation(labels: list[int], probabilities: torch.Tensor) -> Evaluation:
    return evaluate_multiclass(
        split(labels),
        probabilities,
        CLASSES,
        data="/data",
        metric_name="accuracy",
        overlaps_training_data=False,
        num_unreadable=2,
        samples_per_second=12.5,
    )


def drawn(count: int, *, seed: int = 0, sharpness: float = 2.0) -> tuple[list[int], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count, len(CLASSES), generator=generator)
    labels = torch.randint(3, (count,), generator=generator).tolist()  # there is no owl
    return labels, logits.softmax(dim=1)


def slow_calibration_error(probabilities: np.ndarray, labels: list[int]) -> float:
    """Bin by bin, image by image; the last bin includes probability 1."""
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        right, sure = [], []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = row.max()
            if low <= confidence < high or (number == 14 and confidence == 1):
                right.append(row.argmax() == label)
                sure.append(confidence)
        if sure:
            total += len(sure) / len(labels) * abs(np.mean(right) - np.mean(sure))
    return total


class TestCalibrationError:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
    def test_it_is_that_of_a_slow_reference(self, seed, sharpness):
        labels, probabilities = drawn(200, seed=seed, sharpness=sharpness)
        expected = slow_calibration_error(probabilities.numpy(), labels)
        found = calibration_error(probabilities, torch.tensor(labels))
        assert found == pytest.approx(expected, abs=1e-5)

    def test_whole_certainty_shares_the_last_bin(self):
        """In a bin of its own, which is what torchmetrics gives it, the error would be 0.505."""
        probabilities = torch.tensor([[1.0, 0, 0], [0.99, 0.01, 0]])
        labels = [1, 0]
        found = calibration_error(probabilities, torch.tensor(labels))
        assert found == pytest.approx(abs(0.5 - 0.995), abs=1e-5)
        assert found == pytest.approx(
            slow_calibration_error(probabilities.numpy(), labels), abs=1e-5
        )

    def test_rounding_above_one_is_no_logit(self):
        probabilities = torch.tensor([[1.0000001, 0.0], [0.6, 0.4]])
        found = calibration_error(probabilities, torch.tensor([0, 0]))
        assert found == pytest.approx(0.2, abs=1e-5)

    def test_any_dtype_will_do(self):
        labels, probabilities = drawn(50)
        expected = calibration_error(probabilities, torch.tensor(labels))
        found = calibration_error(probabilities.double(), torch.tensor(labels))
        assert found == pytest.approx(expected, abs=1e-6)


def test_figures_are_those_of_a_slow_reference():
    labels, probabilities = drawn(100)
    found = evaluation(labels, probabilities)
    said = [int(row.argmax()) for row in probabilities.numpy()]
    by_class = {
        label: np.mean([s == label for s, own in zip(said, labels, strict=True) if own == label])
        for label in range(3)
    }
    assert found.num_samples == 100
    assert found.num_unreadable == 2
    assert found.accuracy == pytest.approx(
        np.mean([s == o for s, o in zip(said, labels, strict=True)])
    )
    assert found.mean_class_accuracy == pytest.approx(np.mean(list(by_class.values())))
    for label, figures in enumerate(found.classes):
        assert figures.name == CLASSES[label]
        assert figures.num_samples == labels.count(label)
        if label < 3:
            assert figures.accuracy == pytest.approx(by_class[label])
    assert found.classes[3].accuracy is None
    pairs = list(zip(labels, said, strict=True))
    for row in range(4):
        for column in range(4):
            assert found.confusion[row][column] == pairs.count((row, column))


class TestFiles:
    def test_json_is_all_but_the_images(self):
        labels, probabilities = drawn(20)
        found = evaluation(labels, probabilities)
        values = json.loads(found.to_json())
        assert set(values) == {
            "data",
            "num_samples",
            "num_unreadable",
            "accuracy",
            "mean_class_accuracy",
            "calibration_error",
            "metric_name",
            "overlaps_training_data",
            "samples_per_second",
            "classes",
            "confusion",
        }
        assert values["accuracy"] == found.accuracy
        assert values["confusion"] == [list(row) for row in found.confusion]
        assert values["classes"][3] == {"name": "owl", "num_samples": 0, "accuracy": None}
        assert len(found.to_json().splitlines()) == 9 + 2 * (len(CLASSES) + 2) + 2

    def test_tables_have_unambiguous_columns(self, tmp_path):
        labels, probabilities = drawn(20)
        found = evaluation(labels, probabilities)
        found.save(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            "evaluation.json",
            "predictions.csv",
            "confusion.csv",
        }
        assert (tmp_path / "evaluation.json").read_text() == found.to_json()
        names = ["cat", "path (class)", 'a "big", dog', "owl"]
        with (tmp_path / "confusion.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["label"] for row in rows] == names
        assert [[int(row[name]) for name in names] for row in rows] == [
            list(row) for row in found.confusion
        ]
        with (tmp_path / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["path"] for row in rows] == list(found.split.paths)
        assert [row["label"] for row in rows] == [names[label] for label in labels]
        for row, values in zip(rows, probabilities.tolist(), strict=True):
            assert [float(row[name]) for name in names] == pytest.approx(values, abs=1e-6)
            assert float(row[row["prediction"]]) == pytest.approx(max(values), abs=1e-6)
