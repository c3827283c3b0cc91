"""How good answers to questions and predicted values are, column by column, and their files."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from delta_transfer.data.task import Split
from delta_transfer.inference.evaluation import EVALUATION_FILE, dump_json_by_line
from delta_transfer.metrics.metrics import METRICS, RMSE, ROC_AUC, Metric, MetricName
from delta_transfer.metrics.per_target import (
    RegressionTargetMetrics,
    TargetMetrics,
    binary_target_metrics,
    regression_target_metrics,
)
from delta_transfer.metrics.task_types import Regression, TaskType
from delta_transfer.runs.predictions import write_predictions
from delta_transfer.utils.files import write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PerTargetEvaluation:
    """How good a network is at questions, or at values.

    Args:
        data: the folder or file that the images are from, or the data set's name.
        num_samples: how many were measured.
        num_unreadable: how many could not be read.
        metric_name: what the score is.
        score: over all columns; None where it is undefined.
        overlaps_training_data: some of the images have been trained on.
        samples_per_second: from the reading to the answer.
        targets: the figures of each question or value, in the order of the outputs.
        task_type: what the outputs mean.
        split: the images, labelled in this order.
        predictions: to each image, `[N, K]`.
    """

    data: str
    num_samples: int
    num_unreadable: int
    metric_name: MetricName
    score: float | None
    overlaps_training_data: bool
    samples_per_second: float
    targets: tuple[TargetMetrics, ...]
    task_type: TaskType = dataclasses.field(repr=False)
    split: Split = dataclasses.field(repr=False)
    predictions: Tensor = dataclasses.field(repr=False)

    @property
    def metric(self) -> Metric:
        """What the score is."""
        return METRICS[self.metric_name]

    def to_json(self) -> str:
        """All but the images and the answers."""
        names = [field.name for field in dataclasses.fields(self)]
        values = {name: getattr(self, name) for name in names[: names.index("task_type")]}
        values["columns"] = [dataclasses.asdict(figures) for figures in self.targets]
        return dump_json_by_line(values, by_row=["columns"])

    def save(self, folder: Path) -> None:
        """Writes `evaluation.json`, and `predictions.csv` as a run does."""
        names = [figures.name for figures in self.targets]
        path = folder / "predictions.csv"
        write_predictions(path, self.split, self.predictions, names, self.task_type)
        write_atomically(folder / EVALUATION_FILE, self.to_json())


def evaluate_per_target(
    split: Split,
    predictions: Tensor,
    target_names: Sequence[str],
    *,
    task_type: TaskType,
    data: str,
    overlaps_training_data: bool,
    num_unreadable: int,
    samples_per_second: float,
) -> PerTargetEvaluation:
    """The figures of answers.

    Args:
        split: the images, at least one, with a label for each name.
        predictions: to each image, `[N, K]`.
        target_names: of the K questions or values.
        task_type: what the answers mean.
        data: as in `PerTargetEvaluation`, like the rest.
        overlaps_training_data: likewise.
        num_unreadable: likewise.
        samples_per_second: likewise.
    """
    figures = (
        regression_target_metrics if isinstance(task_type, Regression) else binary_target_metrics
    )
    metric = task_type.metric.name
    score = task_type.score(predictions, split.targets, metric)
    columns = zip(target_names, split.targets.T.tolist(), predictions.T.tolist(), strict=True)
    return PerTargetEvaluation(
        data=data,
        num_samples=len(split),
        num_unreadable=num_unreadable,
        metric_name=metric,
        score=None if math.isnan(score) else score,
        overlaps_training_data=overlaps_training_data,
        samples_per_second=samples_per_second,
        targets=tuple(figures(*column) for column in columns),
        task_type=task_type,
        split=split,
        predictions=predictions,
    )


def format_per_target_evaluation(evaluation: PerTargetEvaluation) -> list[str]:
    """The score, then a line for each question or value."""
    measure, noun = evaluation.metric, evaluation.split.sample_type
    rows = [_heading(evaluation.targets[0]), *map(_cells, evaluation.targets)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{noun + 's':21}{evaluation.num_samples}",
        f"{measure.display_name:21}{measure.format(evaluation.score)}",
        f"{noun + 's/s':21}{evaluation.samples_per_second:.1f}",
        "",
        *(
            "  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ),
    ]


def _heading(metrics: TargetMetrics) -> list[str]:
    if isinstance(metrics, RegressionTargetMetrics):
        return ["value", "known", RMSE.display_name, "mean absolute error", "R2"]
    return ["question", "known", "yes", ROC_AUC.display_name, "average precision"]


def _cells(metrics: TargetMetrics) -> list[str]:
    if isinstance(metrics, RegressionTargetMetrics):
        errors = [RMSE.format(error) for error in (metrics.rmse, metrics.mae, metrics.r2)]
        return [metrics.name, str(metrics.num_labelled), *errors]
    shares = [ROC_AUC.format(share) for share in (metrics.roc_auc, metrics.average_precision)]
    return [metrics.name, str(metrics.num_labelled), str(metrics.num_positive), *shares]
