"""What a task asks of a network: its loss, what the outputs say, and how good they are."""

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
    """How outputs `[N, K]` of a network are understood.

    Targets are class indices `[N]`, or a value for each output, `[N, K]`.

    Attributes:
        name: of the kind.
        metric: by what networks are compared.
        prediction_name: what an answer is called.
        target_kind: what outputs stand for, several of them.
    """

    name: ClassVar[str]
    prediction_name: ClassVar[str] = "probability"
    target_kind: ClassVar[str]
    metric: ClassVar[Metric]

    @abc.abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is minimised: the mean over samples, a scalar."""

    @abc.abstractmethod
    def predictions(self, logits: Tensor) -> Tensor:
        """What outputs say, `[N, K]`: probabilities, or values in the unit of the targets."""

    @abc.abstractmethod
    def logits(self, predictions: Tensor) -> Tensor:
        """Outputs that say this, `[N, K]`."""

    @abc.abstractmethod
    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss by which epochs are compared, of each sample: `[N]`, float64, on the CPU."""

    @abc.abstractmethod
    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """How good answers are by a metric that suits the task type; NaN where it says nothing."""


@final
@dataclasses.dataclass(frozen=True)
class Multiclass(TaskType):
    """One class of K: cross entropy on class indices `[N]`."""

    name = "classes"
    target_kind = "classes"
    metric = ACCURACY

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats."""
        return F.cross_entropy(logits, targets)

    def predictions(self, logits: Tensor) -> Tensor:
        """Class probabilities."""
        return torch.softmax(logits, dim=1)

    def logits(self, predictions: Tensor) -> Tensor:
        """Their logarithms."""
        return predictions.clamp_min(1e-30).log()

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy at the best temperature, see `temperature_scaled_nll`."""
        return temperature_scaled_losses(logits, targets)

    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """`"accuracy"` or `"mean_class_accuracy"`, of the classes that occur; a fraction."""
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
    """K questions with yes and no for an answer, some of them missing.

    Targets `[N, K]` are 0, 1 or NaN where the answer is not known.

    Args:
        labelled_fraction: the share of answers that are known in training, so that the loss has the
            same size whatever is missing.
    """

    name = "binary_tasks"
    target_kind = "yes-or-no questions"
    metric = ROC_AUC

    labelled_fraction: float = 1.0

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy in nats, `1/(N K known)` of its sum over what is known."""
        return self._losses(logits, targets).mean()

    def predictions(self, logits: Tensor) -> Tensor:
        """The probability of yes."""
        return torch.sigmoid(logits)

    def logits(self, predictions: Tensor) -> Tensor:
        """The log odds."""
        return torch.logit(predictions.double(), eps=1e-12).to(predictions.dtype)

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy at the best temperature, one for all questions."""
        return losses_at_best_temperature(self._losses, logits, targets)

    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """`"roc_auc"`: its mean over the questions that have both answers."""
        from sklearn.metrics import roc_auc_score  # slow to import, and only needed here

        found = []
        for asked, given in zip(predictions.T, targets.T, strict=True):
            known = ~torch.isnan(given)
            truth = given[known]
            if truth.numel() and bool((truth != truth[0]).any()):
                found.append(float(roc_auc_score(truth.numpy(), asked[known].numpy())))
        return sum(found) / len(found) if found else math.nan

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~torch.isnan(targets)
        truth = torch.where(known, targets, 0.0).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return torch.where(known, losses, 0.0).mean(dim=1) / self.labelled_fraction


@final
@dataclasses.dataclass(frozen=True)
class Regression(TaskType):
    """K values: squared errors in units of the training targets' standard deviations.

    Targets `[N, K]` are in their own unit, NaN where the value is not known.

    Args:
        mean: of each value over the training samples.
        std: likewise, above 0.
    """

    name = "regression"
    prediction_name = "prediction"
    target_kind = "values"
    metric = RMSE

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of the standardised values."""
        return self._losses(logits, targets).mean()

    def predictions(self, logits: Tensor) -> Tensor:
        """The values in their own unit."""
        return logits * logits.new_tensor(self.std) + logits.new_tensor(self.mean)

    def logits(self, predictions: Tensor) -> Tensor:
        """The standardised values."""
        return (predictions - predictions.new_tensor(self.mean)) / predictions.new_tensor(self.std)

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared errors; NaN if the outputs are not finite."""
        return self._losses(logits.detach().cpu().double(), targets.cpu().double())

    def score(self, predictions: Tensor, targets: Tensor, metric_name: MetricName) -> float:
        """`"rmse"`, the mean of those of the values, each in its own unit."""
        errors = torch.nanmean((predictions.double() - targets.double()).square(), dim=0).sqrt()
        return float(errors.nanmean())

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~torch.isnan(targets)
        # Filled before anything is computed of them: what is NaN has a gradient that is NaN.
        truth = self.logits(torch.where(known, targets, 0.0).to(logits))
        return torch.where(known, (logits - truth).square(), 0.0).mean(dim=1)


def task_type_to_dict(task_type: TaskType) -> dict[str, Any]:
    """What JSON can hold of an task type.

    Example:
        >>> objective_to_dict(Regression(mean=(1.0,), std=(2.0,)))
        {'name': 'regression', 'mean': (1.0,), 'std': (2.0,)}
    """
    assert dataclasses.is_dataclass(task_type)
    return {"name": task_type.name, **dataclasses.asdict(task_type)}


def task_type_from_dict(values: Mapping[str, Any]) -> TaskType:
    """The task type that `objective_to_dict` has made this of.

    Raises:
        KeyError, TypeError: if it is none.
    """
    kinds: dict[str, type[TaskType]] = {
        k.name: k for k in (Multiclass, MultilabelBinary, Regression)
    }
    options: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    return kinds[str(options.pop("name"))](**options)
