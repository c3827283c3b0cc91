"""How good answers are question by question, and predicted values by value."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)


@dataclasses.dataclass(frozen=True)
class BinaryTargetMetrics:
    """How well one question is answered; fractions, None where not both answers are known.

    Args:
        name: of the question.
        num_labelled: how many samples have an answer.
        num_positive: of how many it is yes.
        roc_auc: area under the receiver operating characteristic.
        average_precision: likewise under the curve of precision by recall.
    """

    name: str
    num_labelled: int
    num_positive: int
    roc_auc: float | None
    average_precision: float | None


@dataclasses.dataclass(frozen=True)
class RegressionTargetMetrics:
    """How well one value is predicted, in its own unit; None where it is not known of any sample.

    Args:
        name: of the value.
        num_labelled: of how many samples it is known.
        rmse: the root of the mean squared error.
        mae: the mean absolute error.
        r2: the share of the variance that is explained; None of fewer than two samples.
    """

    name: str
    num_labelled: int
    rmse: float | None
    mae: float | None
    r2: float | None


TargetMetrics = BinaryTargetMetrics | RegressionTargetMetrics


def binary_target_metrics(
    name: str, labels: Sequence[float], predictions: Sequence[float]
) -> BinaryTargetMetrics:
    """The figures of one question.

    Args:
        name: of the question.
        labels: 1, 0, or NaN where it is not known.
        predictions: probabilities of yes.

    Example:
        >>> binary_target_metrics("toxic", [1, 0, float("nan")], [0.9, 0.2, 0.4])
        BinaryTargetMetrics(name='toxic', known=2, yes=1, roc_auc=1.0, average_precision=1.0)
    """
    truth, given = _drop_missing(labels, predictions)
    yes = int(truth.sum())
    both = 0 < yes < len(truth)
    return BinaryTargetMetrics(
        name=name,
        num_labelled=len(truth),
        num_positive=yes,
        roc_auc=float(roc_auc_score(truth, given)) if both else None,
        average_precision=float(average_precision_score(truth, given)) if both else None,
    )


def regression_target_metrics(
    name: str, labels: Sequence[float], predictions: Sequence[float]
) -> RegressionTargetMetrics:
    """The figures of one value.

    Args:
        name: of the value.
        labels: NaN where it is not known.
        predictions: what was predicted.

    Example:
        >>> regression_target_metrics("logP", [1.0, 3.0, float("nan")], [2.0, 3.0, 0.0])
        RegressionTargetMetrics(name='logP', known=2, rmse=0.7071067811865476, mae=0.5, r2=0.5)
    """
    truth, given = _drop_missing(labels, predictions)
    some = len(truth) > 0
    return RegressionTargetMetrics(
        name=name,
        num_labelled=len(truth),
        rmse=float(root_mean_squared_error(truth, given)) if some else None,
        mae=float(mean_absolute_error(truth, given)) if some else None,
        r2=float(r2_score(truth, given)) if len(truth) > 1 else None,
    )


def _drop_missing(labels: Sequence[float], predictions: Sequence[float]) -> "tuple[Any, Any]":
    truth, given = np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float)
    known = ~np.isnan(truth)
    return truth[known], given[known]
