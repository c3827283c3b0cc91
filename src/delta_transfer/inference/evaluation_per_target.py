"""How good answers to questions and predicted values are, column by column, and their files."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from delta_transfer.data.task import Split
from delta_transfer.inference.evaluation import FIGURES, to_lines
from delta_transfer.metrics.metrics import MEASURES, RMSE, ROC_AUC, Measure, Metric
from delta_transfer.metrics.objectives import Objective, Regression
from delta_transfer.metrics.per_target import (
    ColumnFigures,
    ValueFigures,
    question_figures,
    value_figures,
)
from delta_transfer.runs.predictions import write_predictions
from delta_transfer.utils.files import write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ColumnEvaluation:
    """How good a network is at questions, or at values.

    Args:
        data: the folder or file that the pictures are from, or the data set's name.
        pictures: how many were measured.
        left_out: how many could not be read.
        metric: what the score is.
        score: over all columns; None where it is undefined.
        seen: some of the pictures have been trained on.
        pictures_per_second: from the reading to the answer.
        columns: the figures of each question or value, in the order of the outputs.
        objective: what the outputs mean.
        split: the pictures, labelled in this order.
        answers: to each picture, `[N, K]`.
    """

    data: str
    pictures: int
    left_out: int
    metric: Metric
    score: float | None
    seen: bool
    pictures_per_second: float
    columns: tuple[ColumnFigures, ...]
    objective: Objective = dataclasses.field(repr=False)
    split: Split = dataclasses.field(repr=False)
    answers: Tensor = dataclasses.field(repr=False)

    @property
    def measure(self) -> Measure:
        """What the score is."""
        return MEASURES[self.metric]

    def to_json(self) -> str:
        """All but the pictures and the answers."""
        names = [field.name for field in dataclasses.fields(self)]
        values = {name: getattr(self, name) for name in names[: names.index("objective")]}
        values["columns"] = [dataclasses.asdict(figures) for figures in self.columns]
        return to_lines(values, by_row=["columns"])

    def save(self, folder: Path) -> None:
        """Writes `evaluation.json`, and `predictions.csv` as a run does."""
        names = [figures.name for figures in self.columns]
        path = folder / "predictions.csv"
        write_predictions(path, self.split, self.answers, names, self.objective)
        write_atomically(folder / FIGURES, self.to_json())


def measure_columns(
    split: Split,
    answers: Tensor,
    names: Sequence[str],
    *,
    objective: Objective,
    data: str,
    seen: bool,
    left_out: int,
    per_second: float,
) -> ColumnEvaluation:
    """The figures of answers.

    Args:
        split: the pictures, at least one, with a label for each name.
        answers: to each picture, `[N, K]`.
        names: of the K questions or values.
        objective: what the answers mean.
        data: as in `ColumnEvaluation`, like the rest.
        seen: likewise.
        left_out: likewise.
        per_second: likewise.
    """
    figures = value_figures if isinstance(objective, Regression) else question_figures
    metric = objective.measure.name
    score = objective.score(answers, split.targets, metric)
    columns = zip(names, split.targets.T.tolist(), answers.T.tolist(), strict=True)
    return ColumnEvaluation(
        data=data,
        pictures=len(split),
        left_out=left_out,
        metric=metric,
        score=None if math.isnan(score) else score,
        seen=seen,
        pictures_per_second=per_second,
        columns=tuple(figures(*column) for column in columns),
        objective=objective,
        split=split,
        answers=answers,
    )


def describe_columns(evaluation: ColumnEvaluation) -> list[str]:
    """The score, then a line for each question or value."""
    measure, noun = evaluation.measure, evaluation.split.noun
    rows = [_heading(evaluation.columns[0]), *map(_cells, evaluation.columns)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{noun + 's':21}{evaluation.pictures}",
        f"{measure.words:21}{measure.text(evaluation.score)}",
        f"{noun + 's/s':21}{evaluation.pictures_per_second:.1f}",
        "",
        *(
            "  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ),
    ]


def _heading(figures: ColumnFigures) -> list[str]:
    if isinstance(figures, ValueFigures):
        return ["value", "known", RMSE.words, "mean absolute error", "R2"]
    return ["question", "known", "yes", ROC_AUC.words, "average precision"]


def _cells(figures: ColumnFigures) -> list[str]:
    if isinstance(figures, ValueFigures):
        errors = [RMSE.text(error) for error in (figures.rmse, figures.mae, figures.r2)]
        return [figures.name, str(figures.known), *errors]
    shares = [ROC_AUC.text(share) for share in (figures.roc_auc, figures.average_precision)]
    return [figures.name, str(figures.known), str(figures.yes), *shares]
