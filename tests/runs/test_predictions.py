import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from delta_transfer.data.task import Split
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.report.run_files import read_predictions
from delta_transfer.runs.predictions import column_names, write_examples, write_predictions

CLASSES = ("cat", 'a "big", dog')


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def split(labels: list[int]) -> Split:
    def read(path: str) -> Image.Image:
        return Image.new("RGB", (400, 200), (int(path), 0, 0))

    return Split(tuple(str(i) for i in range(len(labels))), tuple(labels), read)


def probabilities(of_first: list[float]) -> torch.Tensor:
    return torch.tensor([[p, 1 - p] for p in of_first], dtype=torch.float64)


def test_predictions_are_a_row_for_each_image_with_all_probabilities(tmp_path):
    write_predictions(
        tmp_path / "predictions.csv",
        split([0, 1]),
        probabilities([0.25, 0.5]),
        CLASSES,
        Multiclass(),
    )
    assert rows(tmp_path / "predictions.csv") == [
        {
            "path": "0",
            "label": "cat",
            "prediction": 'a "big", dog',
            "cat": "0.250000",
            'a "big", dog': "0.750000",
        },
        {
            "path": "1",
            "label": 'a "big", dog',
            "prediction": "cat",  # the first of equals
            "cat": "0.500000",
            'a "big", dog': "0.500000",
        },
    ]


def test_no_class_is_called_like_another_column(tmp_path):
    classes = ("label", "path", "path (class)", "Path", "prediction", "probability")
    values = torch.eye(6, dtype=torch.float64)
    write_predictions(
        tmp_path / "predictions.csv", split(list(range(6))), values, classes, Multiclass()
    )
    names = [
        "label (class)",
        "path (class)",
        "path (class) (class)",
        "Path",
        "prediction (class)",
        "probability (class)",
    ]
    assert column_names(classes) == names
    for number, row in enumerate(rows(tmp_path / "predictions.csv")):
        assert list(row) == ["path", "label", "prediction", *names]
        assert (row["path"], row["label"], row["prediction"]) == (
            str(number),
            names[number],
            names[number],
        )
        assert row[row["prediction"]] == "1.000000"


def test_the_report_reads_them_under_these_names(tmp_path):
    classes = ("label", "path")
    write_predictions(
        tmp_path / "predictions.csv",
        split([0, 1]),
        probabilities([0.25, 0.5]),
        classes,
        Multiclass(),
    )
    found = read_predictions(tmp_path)
    assert found.classes == ("label (class)", "path (class)")
    assert [(row.label, row.prediction, row.probability) for row in found.rows] == [
        ("label (class)", "path (class)", 0.75),
        ("path (class)", "label (class)", 0.5),
    ]


def test_a_path_that_is_no_text_can_be_written(tmp_path):
    strange = Split(("caf\udce9.png",), (0,), lambda path: Image.new("RGB", (1, 1)))
    write_predictions(
        tmp_path / "predictions.csv", strange, probabilities([0.75]), CLASSES, Multiclass()
    )
    assert rows(tmp_path / "predictions.csv")[0]["path"] == "caf\\udce9.png"


def examples(tmp_path: Path, labels: list[int], own: list[float], probe: list[float]):
    write_examples(tmp_path, split(labels), probabilities(own), probabilities(probe), CLASSES)
    return rows(tmp_path / "examples.csv")


def test_examples_are_the_surest_mistakes_and_then_the_surest_right_answers(tmp_path):
    own = [0.5 + i / 100 for i in range(1, 41)]  # all said to be cats, the last ones most surely
    labels = [i % 2 for i in range(40)]
    found = examples(tmp_path, labels, own, own)
    mistakes = [str(i) for i in range(39, 0, -2)][:12]
    right = [str(i) for i in range(38, -1, -2)][:8]
    assert [row["path"] for row in found] == mistakes + right
    assert [row["file"] for row in found] == [f"{number:02d}.jpg" for number in range(20)]
    assert found[0] == {
        "file": "00.jpg",
        "path": "39",
        "label": 'a "big", dog',
        "prediction": "cat",
        "probability": "0.9000",
    }


def test_examples_show_where_network_and_probe_disagree(tmp_path):
    """Of 40 right answers the surest are shown, and those that the probe gets wrong."""
    own = [0.99 - i / 100 for i in range(40)]
    probe = [0.9] * 40
    probe[30] = probe[35] = 0.1
    found = examples(tmp_path, [0] * 40, own, probe)
    assert [row["path"] for row in found] == [*map(str, range(8)), "30", "35"]


def test_no_image_is_shown_twice(tmp_path):
    found = examples(tmp_path, [0, 1], [0.9, 0.8], [0.1, 0.1])
    assert [row["path"] for row in found] == ["1", "0"]


def test_examples_are_small_copies(tmp_path):
    found = examples(tmp_path, [0, 200 % 2], [0.9, 0.8], [0.9, 0.8])
    for row in found:
        with Image.open(tmp_path / "examples" / row["file"]) as image:
            assert image.size == (160, 80)
            assert image.getpixel((80, 40))[0] == pytest.approx(int(row["path"]), abs=3)
