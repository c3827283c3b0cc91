"""Metrics of each target: of binary targets, and of regression targets."""

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
    """The metrics of one binary target; None if only one of its two labels occurs.

    Args:
        name: of the target.
        num_labelled: number of samples with a label.
        num_positive: number of positive labels.
        roc_auc: area under the receiver operating characteristic, a fraction.
        average_precision: area under the precision-recall curve, a fraction.
    """

    name: str
    num_labelled: int
    num_positive: int
    roc_auc: float | None
    average_precision: float | None


@dataclasses.dataclass(frozen=True)
class RegressionTargetMetrics:
    """The metrics of one regression target, in its own unit; None if no sample has a label.

    Args:
        name: of the target.
        num_labelled: number of samples with a label.
        rmse: root mean squared error.
        mae: mean absolute error.
        r2: coefficient of determination; None for fewer than two samples.
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
    """Compute the metrics of one binary target.

    Args:
        name: of the target.
        labels: 1, 0, or NaN if missing.
        predictions: probabilities of the positive label.

    Example:
        >>> found = binary_target_metrics("toxic", [1, 0, float("nan")], [0.9, 0.2, 0.4])
        >>> found.num_labelled, found.num_positive, found.roc_auc
        (2, 1, 1.0)
    """
    truth, predicted = _drop_missing(labels, predictions)
    num_positive = int(truth.sum())
    both = 0 < num_positive < len(truth)
    return BinaryTargetMetrics(
        name=name,
        num_labelled=len(truth),
        num_positive=num_positive,
        roc_auc=float(roc_auc_score(truth, predicted)) if both else None,
        average_precision=float(average_precision_score(truth, predicted)) if both else None,
    )


def regression_target_metrics(
    name: str, labels: Sequence[float], predictions: Sequence[float]
) -> RegressionTargetMetrics:
    """Compute the metrics of one regression target.

    Args:
        name: of the target.
        labels: values, NaN if missing.
        predictions: predicted values.

    Example:
        >>> found = regression_target_metrics("logP", [1.0, 3.0, float("nan")], [2.0, 3.0, 0.0])
        >>> found.num_labelled, found.mae, found.r2
        (2, 0.5, 0.5)
    """
    truth, predicted = _drop_missing(labels, predictions)
    some = len(truth) > 0
    return RegressionTargetMetrics(
        name=name,
        num_labelled=len(truth),
        rmse=float(root_mean_squared_error(truth, predicted)) if some else None,
        mae=float(mean_absolute_error(truth, predicted)) if some else None,
        r2=float(r2_score(truth, predicted)) if len(truth) > 1 else None,
    )


def _drop_missing(labels: Sequence[float], predictions: Sequence[float]) -> "tuple[Any, Any]":
    truth, predicted = np.asarray(labels, dtype=float), np.asarray(predictions, dtype=float)
    known = ~np.isnan(truth)
    return truth[known], predicted[known]
