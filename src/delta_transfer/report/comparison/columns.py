"""The figures of questions and values: a row each, of one run or of the methods compared."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from delta_transfer.errors import UserError
from delta_transfer.metrics.metrics import NONE, RMSE, ROC_AUC
from delta_transfer.metrics.per_target import (
    ColumnFigures,
    QuestionFigures,
    question_figures,
    value_figures,
)
from delta_transfer.report.comparison.runs import Comparison
from delta_transfer.report.formatting import label
from delta_transfer.report.tables import Row, read_lines
from delta_transfer.report.templates import Table

_ANSWERS: dict[str, Callable[[str, Sequence[float], Sequence[float]], ColumnFigures]] = {
    "probability ": question_figures,
    "prediction ": value_figures,
}


def column_table(folder: Path) -> Table:
    """Each question or value of a run.

    Raises:
        UserError: if its predictions are missing or damaged.
    """
    found = read_columns(folder)
    if isinstance(found[0], QuestionFigures):
        headings = ["Question", "Known answers", "Yes", ROC_AUC.words, "Average precision"]
        return Table("Question by question", headings, [_question(figures) for figures in found])
    headings = ["Value", "Known", RMSE.words, "Mean absolute error", "R2"]
    return Table("Value by value", headings, [_value(figures) for figures in found])


def columns_by_method(comparison: Comparison, methods: Sequence[str]) -> Table:
    """The score of each question or value by method, the mean over the seeds.

    Args:
        comparison: runs of one size.
        methods: its methods, the best first.

    Raises:
        UserError: if predictions of a run are missing or damaged.
    """
    measure = comparison.measure
    scores: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        for run in comparison.of(method):
            for figures in read_columns(comparison.folder / run.folder):
                score = getattr(figures, measure.name)
                if score is not None:
                    scores.setdefault(figures.name, {}).setdefault(method, []).append(score)
    rows = [
        (name, [measure.text(statistics.fmean(own[m])) if m in own else NONE for m in methods])
        for name, own in scores.items()
    ]
    what = "question" if measure is ROC_AUC else "value"
    title = f"{measure.title} {what} by {what}"
    return Table(title, [what.capitalize(), *map(label, methods)], rows)


def read_columns(folder: Path) -> list[ColumnFigures]:
    """The figures of each question or value, of the predictions that a run left behind.

    Raises:
        UserError: if they are missing or damaged.
    """
    path = folder / "predictions.csv"
    header, lines = read_lines(path)
    pairs = list(zip(header[1::2], header[2::2], strict=False))
    kind = next((kind for kind in _ANSWERS if header[2:3] and header[2].startswith(kind)), None)
    names = [own.removeprefix("label ") for own, _ in pairs]
    expected = [(f"label {name}", f"{kind}{name}") for name in names]
    if kind is None or not lines or header[:1] != ["path"] or pairs != expected:
        raise UserError(f"{path} must hold path, then a label and an answer for each column")
    rows = [Row(path, line, dict(zip(header, cells, strict=True))) for line, cells in lines]
    return [
        _ANSWERS[kind](
            name,
            [row.number(own) if row.cells[own] else math.nan for row in rows],
            [row.number(answer) for row in rows],
        )
        for name, (own, answer) in zip(names, pairs, strict=True)
    ]


def _question(figures: ColumnFigures) -> tuple[str, list[str]]:
    assert isinstance(figures, QuestionFigures)
    shares = [ROC_AUC.text(share) for share in (figures.roc_auc, figures.average_precision)]
    return figures.name, [f"{figures.known:,}", f"{figures.yes:,}", *shares]


def _value(figures: ColumnFigures) -> tuple[str, list[str]]:
    assert not isinstance(figures, QuestionFigures)
    errors = [RMSE.text(error) for error in (figures.rmse, figures.mae, figures.r2)]
    return figures.name, [f"{figures.known:,}", *errors]
