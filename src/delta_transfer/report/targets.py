"""The metrics of each binary or regression target of a run, and their table."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from delta_transfer.errors import DataError
from delta_transfer.metrics.metrics import RMSE, ROC_AUC
from delta_transfer.metrics.per_target import (
    BinaryTargetMetrics,
    TargetMetrics,
    binary_target_metrics,
    regression_target_metrics,
)
from delta_transfer.report.tables import Row, read_lines
from delta_transfer.report.templates import Table

_METRICS_BY_PREFIX: dict[str, Callable[[str, Sequence[float], Sequence[float]], TargetMetrics]] = {
    "probability ": binary_target_metrics,
    "prediction ": regression_target_metrics,
}


def target_table(folder: Path) -> Table:
    """Return the metrics of each target of a run.

    Raises:
        UserError: if its predictions are missing or damaged.
    """
    found = read_target_metrics(folder)
    if isinstance(found[0], BinaryTargetMetrics):
        headings = ["Target", "Labelled", "Positive", ROC_AUC.display_name, "Average precision"]
        return Table("Results per target", headings, [_binary_row(target) for target in found])
    headings = ["Target", "Labelled", RMSE.display_name, "Mean absolute error", "R2"]
    return Table("Results per target", headings, [_regression_row(target) for target in found])


def read_target_metrics(folder: Path) -> list[TargetMetrics]:
    """Compute the metrics of each target from the predictions that a run saved.

    Raises:
        UserError: if they are missing or damaged.
    """
    path = folder / "predictions.csv"
    header, lines = read_lines(path)
    pairs = list(zip(header[1::2], header[2::2], strict=False))
    kind = next(
        (kind for kind in _METRICS_BY_PREFIX if header[2:3] and header[2].startswith(kind)), None
    )
    names = [own.removeprefix("label ") for own, _ in pairs]
    expected = [(f"label {name}", f"{kind}{name}") for name in names]
    if kind is None or not lines or header[:1] != ["path"] or pairs != expected:
        raise DataError(f"{path} must have the columns path, then label and prediction per target")
    rows = [Row(path, line, dict(zip(header, cells, strict=True))) for line, cells in lines]
    return [
        _METRICS_BY_PREFIX[kind](
            name,
            [row.number(own) if row.cells[own] else math.nan for row in rows],
            [row.number(answer) for row in rows],
        )
        for name, (own, answer) in zip(names, pairs, strict=True)
    ]


def _binary_row(metrics: TargetMetrics) -> tuple[str, list[str]]:
    assert isinstance(metrics, BinaryTargetMetrics)
    scores = [ROC_AUC.format(score) for score in (metrics.roc_auc, metrics.average_precision)]
    return metrics.name, [f"{metrics.num_labelled:,}", f"{metrics.num_positive:,}", *scores]


def _regression_row(metrics: TargetMetrics) -> tuple[str, list[str]]:
    assert not isinstance(metrics, BinaryTargetMetrics)
    errors = [RMSE.format(error) for error in (metrics.rmse, metrics.mae, metrics.r2)]
    return metrics.name, [f"{metrics.num_labelled:,}", *errors]
