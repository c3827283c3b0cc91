"""The figures of questions and values: a row each, of one run or of the methods compared."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from delta_transfer.errors import UserError
from delta_transfer.metrics.metrics import NO_VALUE, RMSE, ROC_AUC
from delta_transfer.metrics.per_target import (
    BinaryTargetMetrics,
    TargetMetrics,
    binary_target_metrics,
    regression_target_metrics,
)
from delta_transfer.report.comparison.runs import Comparison
from delta_transfer.report.formatting import method_label
from delta_transfer.report.tables import Row, read_lines
from delta_transfer.report.templates import Table

_METRICS_BY_PREFIX: dict[str, Callable[[str, Sequence[float], Sequence[float]], TargetMetrics]] = {
    "probability ": binary_target_metrics,
    "prediction ": regression_target_metrics,
}


def target_table(folder: Path) -> Table:
    """Each question or value of a run.

    Raises:
        UserError: if its predictions are missing or damaged.
    """
    found = read_target_metrics(folder)
    if isinstance(found[0], BinaryTargetMetrics):
        headings = ["Question", "Known answers", "Yes", ROC_AUC.display_name, "Average precision"]
        return Table("Question by question", headings, [_binary_row(figures) for figures in found])
    headings = ["Value", "Known", RMSE.display_name, "Mean absolute error", "R2"]
    return Table("Value by value", headings, [_regression_row(figures) for figures in found])


def targets_by_method(comparison: Comparison, methods: Sequence[str]) -> Table:
    """The score of each question or value by method, the mean over the seeds.

    Args:
        comparison: runs of one size.
        methods: its methods, the best first.

    Raises:
        UserError: if predictions of a run are missing or damaged.
    """
    measure = comparison.metric
    scores: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        for run in comparison.runs_of(method):
            for figures in read_target_metrics(comparison.folder / run.folder):
                score = getattr(figures, measure.name)
                if score is not None:
                    scores.setdefault(figures.name, {}).setdefault(method, []).append(score)
    rows = [
        (
            name,
            [measure.format(statistics.fmean(own[m])) if m in own else NO_VALUE for m in methods],
        )
        for name, own in scores.items()
    ]
    what = "question" if measure is ROC_AUC else "value"
    title = f"{measure.title} {what} by {what}"
    return Table(title, [what.capitalize(), *map(method_label, methods)], rows)


def read_target_metrics(folder: Path) -> list[TargetMetrics]:
    """The figures of each question or value, of the predictions that a run left behind.

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
        raise UserError(f"{path} must hold path, then a label and an answer for each column")
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
    shares = [ROC_AUC.format(share) for share in (metrics.roc_auc, metrics.average_precision)]
    return metrics.name, [f"{metrics.num_labelled:,}", f"{metrics.num_positive:,}", *shares]


def _regression_row(metrics: TargetMetrics) -> tuple[str, list[str]]:
    assert not isinstance(metrics, BinaryTargetMetrics)
    errors = [RMSE.format(error) for error in (metrics.rmse, metrics.mae, metrics.r2)]
    return metrics.name, [f"{metrics.num_labelled:,}", *errors]
