"""How good predictions are: figures of labelled images, class by class, and their files."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import confusion_matrix, recall_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from delta_transfer.data.task import Split
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.runs.predictions import column_names, to_csv, write_predictions
from delta_transfer.utils.files import write_atomically

BINS = 15
EVALUATION_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """How often one class is recognised.

    Args:
        name: of the class.
        num_samples: how many it has.
        accuracy: the fraction that is recognised; None without images.
    """

    name: str
    num_samples: int
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """How good a network is on labelled images. Accuracies are fractions.

    Args:
        data: the folder or file that the images are from, or the data set's name.
        num_samples: how many were measured.
        num_unreadable: how many could not be read.
        accuracy: of all images.
        mean_class_accuracy: the mean of the accuracies of the classes that have images.
        calibration_error: how far confidence is from accuracy (see `calibration_error`).
        metric_name: which of the two accuracies is the figure of this data set.
        overlaps_training_data: some of the images have been trained on.
        samples_per_second: from the reading to the answer.
        classes: that the network knows, in the order of its outputs.
        confusion: how often each label, a row each, got each prediction, a column each.
        split: the images, labelled by position in `classes`.
        probabilities: of each image, `[N, K]`.
    """

    data: str
    num_samples: int
    num_unreadable: int
    accuracy: float
    mean_class_accuracy: float
    calibration_error: float
    metric_name: MetricName
    overlaps_training_data: bool
    samples_per_second: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    split: Split = dataclasses.field(repr=False)
    probabilities: Tensor = dataclasses.field(repr=False)

    def to_json(self) -> str:
        """All but the images and their probabilities."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("split", "probabilities")
        }
        values["classes"] = [dataclasses.asdict(figures) for figures in self.classes]
        return dump_json_by_line(values, by_row=["classes", "confusion"])

    def save(self, folder: Path) -> None:
        """Writes `evaluation.json`, `predictions.csv` as a run does, and `confusion.csv`."""
        names = [figures.name for figures in self.classes]
        write_predictions(folder / "predictions.csv", self.split, self.probabilities, names)
        columns = column_names(names)
        counts = [[name, *map(str, row)] for name, row in zip(columns, self.confusion, strict=True)]
        write_atomically(folder / "confusion.csv", to_csv([["label", *columns], *counts]))
        write_atomically(folder / EVALUATION_FILE, self.to_json())


def dump_json_by_line(values: Mapping[str, Any], *, by_row: Sequence[str]) -> str:
    """JSON with a line for each value; of some that are lists for each of their rows."""
    lines = []
    for name, value in values.items():
        text = json.dumps(value)
        if name in by_row:
            rows = ",\n".join(f"    {json.dumps(row)}" for row in value)
            text = f"[\n{rows}\n  ]"
        lines.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def evaluate_multiclass(
    split: Split,
    probabilities: Tensor,
    classes: Sequence[str],
    *,
    data: str,
    metric_name: MetricName,
    overlaps_training_data: bool,
    num_unreadable: int,
    samples_per_second: float,
) -> Evaluation:
    """The figures of predictions.

    Args:
        split: the images, at least one, labelled by position in `classes`.
        probabilities: of each image, `[N, K]`.
        classes: the names of the K classes.
        data: as in `Evaluation`, like the rest.
        metric_name: likewise.
        overlaps_training_data: likewise.
        num_unreadable: likewise.
        samples_per_second: likewise.
    """
    labels, predicted = split.targets, probabilities.argmax(dim=1).tolist()
    confusion = confusion_matrix(split.class_indices, predicted, labels=range(len(classes)))
    right, counts = confusion.diagonal().tolist(), confusion.sum(axis=1).tolist()
    by_class = [n / count if count else None for n, count in zip(right, counts, strict=True)]
    return Evaluation(
        data=data,
        num_samples=len(split),
        num_unreadable=num_unreadable,
        accuracy=sum(right) / len(split),
        mean_class_accuracy=mean_class_accuracy(split.class_indices, predicted),
        calibration_error=calibration_error(probabilities, labels),
        metric_name=metric_name,
        overlaps_training_data=overlaps_training_data,
        samples_per_second=samples_per_second,
        classes=tuple(map(ClassMetrics, classes, counts, by_class)),
        confusion=tuple(map(tuple, confusion.tolist())),
        split=split,
        probabilities=probabilities,
    )


def mean_class_accuracy(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """The mean of the accuracies of the classes that occur among the labels."""
    present = sorted(set(labels))
    return float(recall_score(labels, predicted, labels=present, average="macro"))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The expected calibration error: how far confidence is from accuracy, on average.

    Images are put into 15 equal bins by the probability of their prediction, and

        ECE = sum_b  n_b / N  |accuracy_b - confidence_b|

    over the bins b with their n_b of N images (Naeini et al. 2015; Guo et al.,
    https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: `[N, K]`.
        labels: `[N]`.
    """
    # Just below 1: torchmetrics would give whole certainty a bin of its own, and takes numbers
    # above 1 for logits.
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    clamped = probabilities.float().clamp(max=below)
    found = multiclass_calibration_error(
        clamped, labels, num_classes=probabilities.shape[1], n_bins=BINS, norm="l1"
    )
    return float(found)
