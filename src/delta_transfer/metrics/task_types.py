"""Task types: the loss, predictions and metric for a network's outputs."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from delta_transfer.metrics.calibration import losses_at_best_temperature, temperature_scaled_losses
from delta_transfer.metrics.metrics import ACCURACY, RMSE, ROC_AUC, Metric
from delta_transfer.metrics.metrics import MetricName as MetricName


class TaskType(abc.ABC):
    """The meaning of a network's outputs `[N, K]`.

    Targets are class indices `[N]`, or a value for each output, `[N, K]`.

    Attributes:
        name: of the type, in JSON.
        metric: the metric by which networks are compared.
        prediction_name: word for one prediction.
        target_kind: word for several outputs.
    """

    name: ClassVar[str]
    prediction_name: ClassVar[str] = "probability"
    target_kind: ClassVar[str]
    metric: ClassVar[Metric]

    @abc.abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss: the mean over samples, a scalar."""

    @abc.abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """Return probabilities, or values in the unit of the targets, `[N, K]`."""

    @abc.abstractmethod
    def logits(self, predictions: Tensor) -> Tensor:
        """Return outputs `[N, K]` that lead to these predictions."""

    @abc.abstractmethod
    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the per-sample loss that compares epochs: `[N]`, float64, on the CPU."""

    @abc.abstractmethod
    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """Return a metric of the predictions; NaN if it is undefined."""


@final
@dataclasses.dataclass(frozen=True)
class Multiclass(TaskType):
    """One class of K: cross entropy on class indices `[N]`."""

    name = "multiclass"
    target_kind = "classes"
    metric = ACCURACY

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy in nats."""
        return F.cross_entropy(logits, targets)

    def predictions(self, logits: Tensor) -> Tensor:
        """Return class probabilities."""
        return torch.softmax(logits, dim=1)

    def logits(self, predictions: Tensor) -> Tensor:
        """Return the logarithms of probabilities."""
        return predictions.clamp_min(1e-30).log()

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy at the best temperature, see `temperature_scaled_nll`."""
        return temperature_scaled_losses(logits, targets)

    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """Return `"accuracy"` or `"mean_class_accuracy"` (over classes that occur), a fraction."""
        from sklearn.metrics import recall_score  # slow to import, and only needed here

        predicted = predictions.argmax(dim=1)
        if metric_name == "accuracy":
            return float((predicted == targets).double().mean())
        labels, present = targets.tolist(), sorted(set(targets.tolist()))
        return float(recall_score(labels, predicted.tolist(), labels=present, average="macro"))


MULTICLASS = Multiclass()


@final
@dataclasses.dataclass(frozen=True)
class MultilabelBinary(TaskType):
    """K binary targets; labels may be missing.

    Targets `[N, K]` are 0, 1 or NaN if missing.

    Args:
        labelled_fraction: the fraction of training labels that are not missing; the loss is divided
            by it, so that its scale does not depend on how many are.
    """

    name = "multilabel_binary"
    target_kind = "binary targets"
    metric = ROC_AUC

    labelled_fraction: float = 1.0

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross entropy in nats, `sum / (N K labelled_fraction)`."""
        return self._losses(logits, targets).mean()

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the probability of the positive label."""
        return torch.sigmoid(logits)

    def logits(self, predictions: Tensor) -> Tensor:
        """Return the log odds."""
        return torch.logit(predictions.double(), eps=1e-12).to(predictions.dtype)

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross entropy at the best temperature, one for all targets."""
        return losses_at_best_temperature(self._losses, logits, targets)

    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """Return `"roc_auc"`: its mean over the targets that have both labels."""
        from sklearn.metrics import roc_auc_score  # slow to import, and only needed here

        areas = []
        for predicted, labels in zip(predictions.T, targets.T, strict=True):
            known = ~torch.isnan(labels)
            truth = labels[known]
            if truth.numel() and bool((truth != truth[0]).any()):
                areas.append(float(roc_auc_score(truth.numpy(), predicted[known].numpy())))
        return sum(areas) / len(areas) if areas else math.nan

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~torch.isnan(targets)
        truth = torch.where(known, targets, 0.0).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return torch.where(known, losses, 0.0).mean(dim=1) / self.labelled_fraction


@final
@dataclasses.dataclass(frozen=True)
class Regression(TaskType):
    """K regression targets: squared errors in units of their standard deviations.

    Targets `[N, K]` are in their own unit, NaN if missing.

    Args:
        mean: mean of each target over the training samples.
        std: standard deviation of each target over the training samples, positive.
    """

    name = "regression"
    prediction_name = "prediction"
    target_kind = "regression targets"
    metric = RMSE

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of the standardised targets."""
        return self._losses(logits, targets).mean()

    def predictions(self, logits: Tensor) -> Tensor:
        """Return values in the unit of the targets."""
        return logits * logits.new_tensor(self.std) + logits.new_tensor(self.mean)

    def logits(self, predictions: Tensor) -> Tensor:
        """Return standardised values."""
        return (predictions - predictions.new_tensor(self.mean)) / predictions.new_tensor(self.std)

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return squared errors; NaN if the outputs are not finite."""
        return self._losses(logits.detach().cpu().double(), targets.cpu().double())

    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """Return `"rmse"`: the mean over targets, each in its own unit."""
        errors = torch.nanmean((predictions.double() - targets.double()).square(), dim=0).sqrt()
        return float(errors.nanmean())

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~torch.isnan(targets)
        # Fill missing targets first: a NaN that is masked later still has a NaN gradient.
        truth = self.logits(torch.where(known, targets, 0.0).to(logits))
        return torch.where(known, (logits - truth).square(), 0.0).mean(dim=1)


def task_type_to_dict(task_type: TaskType) -> dict[str, Any]:
    """Return a task type as JSON values.

    Example:
        >>> task_type_to_dict(Regression(mean=(1.0,), std=(2.0,)))
        {'name': 'regression', 'mean': (1.0,), 'std': (2.0,)}
    """
    assert dataclasses.is_dataclass(task_type)
    return {"name": task_type.name, **dataclasses.asdict(task_type)}


def task_type_from_dict(values: Mapping[str, Any]) -> TaskType:
    """Build the task type that `task_type_to_dict` has written.

    Raises:
        KeyError, TypeError: if the values do not describe a task type.
    """
    types = {t.name: t for t in (Multiclass, MultilabelBinary, Regression)}
    options: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
    }
    return types[options.pop("name")](**options)
