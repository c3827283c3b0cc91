"""Evaluate predictions of binary and regression targets, per target, and write their files."""

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
    """The results of a network on binary or regression targets.

    Args:
        data: folder or file of the samples, or the data set's name.
        num_samples: number of evaluated samples.
        num_unreadable: number of samples that could not be read.
        metric_name: of the score.
        score: over all targets; None where it is undefined.
        overlaps_training_data: True if the run was trained on some of the samples.
        samples_per_second: throughput, including reading.
        targets: the metrics of each target, in the order of the outputs.
        task_type: of the outputs.
        split: the samples, with labels in the order of the outputs.
        predictions: `[N, K]`.
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
        """The metric of the score."""
        return METRICS[self.metric_name]

    def to_json(self) -> str:
        """Return all but the samples and their predictions as JSON."""
        names = [field.name for field in dataclasses.fields(self)]
        values = {name: getattr(self, name) for name in names[: names.index("task_type")]}
        values["targets"] = [dataclasses.asdict(target) for target in self.targets]
        return dump_json_by_line(values, by_row=["targets"])

    def save(self, folder: Path) -> None:
        """Write `evaluation.json`, and `predictions.csv` like a run's."""
        names = [target.name for target in self.targets]
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
    """Compute the metrics of predictions.

    Args:
        split: at least one sample, with a label for each target.
        predictions: `[N, K]`.
        target_names: of the K targets.
        task_type: of the outputs.
        data: as in `PerTargetEvaluation`.
        overlaps_training_data: as in `PerTargetEvaluation`.
        num_unreadable: as in `PerTargetEvaluation`.
        samples_per_second: as in `PerTargetEvaluation`.
    """
    compute = (
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
        targets=tuple(compute(*column) for column in columns),
        task_type=task_type,
        split=split,
        predictions=predictions,
    )


def format_per_target_evaluation(evaluation: PerTargetEvaluation) -> list[str]:
    """Format the score, then a line for each target."""
    metric, sample_type = evaluation.metric, evaluation.split.sample_type
    rows = [_heading(evaluation.targets[0]), *map(_cells, evaluation.targets)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{sample_type + 's':21}{evaluation.num_samples}",
        f"{metric.display_name:21}{metric.format(evaluation.score)}",
        f"{sample_type + 's/s':21}{evaluation.samples_per_second:.1f}",
        "",
        *(
            "  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ),
    ]


def _heading(metrics: TargetMetrics) -> list[str]:
    if isinstance(metrics, RegressionTargetMetrics):
        return ["target", "labelled", RMSE.display_name, "mean absolute error", "R2"]
    return ["target", "labelled", "positive", ROC_AUC.display_name, "average precision"]


def _cells(metrics: TargetMetrics) -> list[str]:
    if isinstance(metrics, RegressionTargetMetrics):
        errors = [RMSE.format(error) for error in (metrics.rmse, metrics.mae, metrics.r2)]
        return [metrics.name, str(metrics.num_labelled), *errors]
    scores = [ROC_AUC.format(score) for score in (metrics.roc_auc, metrics.average_precision)]
    return [metrics.name, str(metrics.num_labelled), str(metrics.num_positive), *scores]
