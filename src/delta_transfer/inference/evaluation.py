"""Evaluate a classifier's predictions: metrics, per-class results, and their files."""

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
from delta_transfer.runs.predictions import column_names, write_predictions
from delta_transfer.utils.files import to_csv, write_atomically

BINS = 15
EVALUATION_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """The accuracy of one class.

    Args:
        name: of the class.
        num_samples: its number of samples.
        accuracy: fraction of its samples that are classified correctly; None without samples.
    """

    name: str
    num_samples: int
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The results of a classifier on labelled samples. Accuracies are fractions.

    Args:
        data: folder or file of the samples, or the data set's name.
        num_samples: number of evaluated samples.
        num_unreadable: number of samples that could not be read.
        accuracy: over all samples.
        mean_class_accuracy: mean over the classes that have samples.
        calibration_error: expected calibration error (see `calibration_error`).
        metric_name: which of the two accuracies is the primary metric of this data set.
        overlaps_training_data: True if the run was trained on some of the samples.
        samples_per_second: throughput, including reading.
        classes: of the network, in the order of its outputs.
        confusion: the confusion matrix: a row per label, a column per prediction.
        split: the samples, labelled by position in `classes`.
        probabilities: `[N, K]`.
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
        """Return all but the samples and their probabilities as JSON."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("split", "probabilities")
        }
        values["classes"] = [dataclasses.asdict(one) for one in self.classes]
        return dump_json_by_line(values, by_row=["classes", "confusion"])

    def save(self, folder: Path) -> None:
        """Write `evaluation.json`, `confusion.csv`, and `predictions.csv` like a run's."""
        names = [one.name for one in self.classes]
        write_predictions(folder / "predictions.csv", self.split, self.probabilities, names)
        columns = column_names(names)
        counts = [[name, *map(str, row)] for name, row in zip(columns, self.confusion, strict=True)]
        write_atomically(folder / "confusion.csv", to_csv([["label", *columns], *counts]))
        write_atomically(folder / EVALUATION_FILE, self.to_json())


def dump_json_by_line(values: Mapping[str, Any], *, by_row: Sequence[str]) -> str:
    """Return JSON with a line for each value, or for each row of the lists named in `by_row`."""
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
    """Compute the metrics of a classifier's predictions.

    Args:
        split: at least one sample, labelled by position in `classes`.
        probabilities: `[N, K]`.
        classes: the names of the K classes.
        data: as in `Evaluation`.
        metric_name: as in `Evaluation`.
        overlaps_training_data: as in `Evaluation`.
        num_unreadable: as in `Evaluation`.
        samples_per_second: as in `Evaluation`.
    """
    labels, predicted = split.targets, probabilities.argmax(dim=1).tolist()
    confusion = confusion_matrix(split.class_indices, predicted, labels=range(len(classes)))
    correct, counts = confusion.diagonal().tolist(), confusion.sum(axis=1).tolist()
    by_class = [n / count if count else None for n, count in zip(correct, counts, strict=True)]
    return Evaluation(
        data=data,
        num_samples=len(split),
        num_unreadable=num_unreadable,
        accuracy=sum(correct) / len(split),
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
    """Return the mean accuracy of the classes that occur among the labels."""
    present = sorted(set(labels))
    return float(recall_score(labels, predicted, labels=present, average="macro"))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error (ECE) with 15 equal-width bins.

        ECE = sum_b  n_b / N  |accuracy_b - confidence_b|

    where bin b has n_b of the N samples, by the probability of their prediction (Naeini et al.
    2015; Guo et al., https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: `[N, K]`.
        labels: `[N]`.
    """
    # Clamp just below 1: torchmetrics puts probability 1 in a separate bin, and takes values
    # above 1 for logits.
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    clamped = probabilities.float().clamp(max=below)
    error = multiclass_calibration_error(
        clamped, labels, num_classes=probabilities.shape[1], n_bins=BINS, norm="l1"
    )
    return float(error)
