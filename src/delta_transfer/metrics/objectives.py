"""What a task asks of a network: its loss, what the outputs say, and how good they are."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from delta_transfer.metrics.calibration import calibrated_losses, lowest_at_a_temperature
from delta_transfer.metrics.metrics import ACCURACY, RMSE, ROC_AUC, Measure
from delta_transfer.metrics.metrics import Metric as Metric


class Objective(abc.ABC):
    """How outputs `[N, K]` of a network are understood.

    Targets are class indices `[N]`, or a value for each output, `[N, K]`.

    Attributes:
        name: of the kind.
        measure: by what networks are compared.
        answer: what an answer is called.
        outputs: what outputs stand for, several of them.
    """

    name: ClassVar[str]
    answer: ClassVar[str] = "probability"
    outputs: ClassVar[str]
    measure: ClassVar[Measure]

    @abc.abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is minimised: the mean over samples, a scalar."""

    @abc.abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """What outputs say, `[N, K]`: probabilities, or values in the unit of the targets."""

    @abc.abstractmethod
    def logits(self, answers: Tensor) -> Tensor:
        """Outputs that say this, `[N, K]`."""

    @abc.abstractmethod
    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss by which epochs are compared, of each sample: `[N]`, float64, on the CPU."""

    @abc.abstractmethod
    def score(self, answers: Tensor, targets: Tensor, metric: Metric) -> float:
        """How good answers are by a metric that suits the objective; NaN where it says nothing."""


@final
@dataclasses.dataclass(frozen=True)
class Classes(Objective):
    """One class of K: cross entropy on class indices `[N]`."""

    name = "classes"
    outputs = "classes"
    measure = ACCURACY

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats."""
        return F.cross_entropy(logits, targets)

    def answers(self, logits: Tensor) -> Tensor:
        """Class probabilities."""
        return torch.softmax(logits, dim=1)

    def logits(self, answers: Tensor) -> Tensor:
        """Their logarithms."""
        return answers.clamp_min(1e-30).log()

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy at the best temperature, see `calibrated_cross_entropy`."""
        return calibrated_losses(logits, targets)

    def score(self, answers: Tensor, targets: Tensor, metric: Metric) -> float:
        """`"accuracy"` or `"mean_class_accuracy"`, of the classes that occur; a fraction."""
        from sklearn.metrics import recall_score  # slow to import, and only needed here

        predicted = answers.argmax(dim=1)
        if metric == "accuracy":
            return float((predicted == targets).double().mean())
        labels, present = targets.tolist(), sorted(set(targets.tolist()))
        return float(recall_score(labels, predicted.tolist(), labels=present, average="macro"))


CLASSES = Classes()


@final
@dataclasses.dataclass(frozen=True)
class BinaryTasks(Objective):
    """K questions with yes and no for an answer, some of them missing.

    Targets `[N, K]` are 0, 1 or NaN where the answer is not known.

    Args:
        known: the share of answers that are known in training, so that the loss has the same size
            whatever is missing.
    """

    name = "binary_tasks"
    outputs = "yes-or-no questions"
    measure = ROC_AUC

    known: float = 1.0

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy in nats, `1/(N K known)` of its sum over what is known."""
        return self._losses(logits, targets).mean()

    def answers(self, logits: Tensor) -> Tensor:
        """The probability of yes."""
        return torch.sigmoid(logits)

    def logits(self, answers: Tensor) -> Tensor:
        """The log odds."""
        return torch.logit(answers.double(), eps=1e-12).to(answers.dtype)

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy at the best temperature, one for all questions."""
        return lowest_at_a_temperature(self._losses, logits, targets)

    def score(self, answers: Tensor, targets: Tensor, metric: Metric) -> float:
        """`"roc_auc"`: its mean over the questions that have both answers."""
        from sklearn.metrics import roc_auc_score  # slow to import, and only needed here

        found = []
        for asked, given in zip(answers.T, targets.T, strict=True):
            known = ~torch.isnan(given)
            truth = given[known]
            if truth.numel() and bool((truth != truth[0]).any()):
                found.append(float(roc_auc_score(truth.numpy(), asked[known].numpy())))
        return sum(found) / len(found) if found else math.nan

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~torch.isnan(targets)
        truth = torch.where(known, targets, 0.0).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return torch.where(known, losses, 0.0).mean(dim=1) / self.known


@final
@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """K values: squared errors in units of the training targets' standard deviations.

    Targets `[N, K]` are in their own unit, NaN where the value is not known.

    Args:
        mean: of each value over the training samples.
        std: likewise, above 0.
    """

    name = "regression"
    answer = "prediction"
    outputs = "values"
    measure = RMSE

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of the standardised values."""
        return self._losses(logits, targets).mean()

    def answers(self, logits: Tensor) -> Tensor:
        """The values in their own unit."""
        return logits * logits.new_tensor(self.std) + logits.new_tensor(self.mean)

    def logits(self, answers: Tensor) -> Tensor:
        """The standardised values."""
        return (answers - answers.new_tensor(self.mean)) / answers.new_tensor(self.std)

    def held_out_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared errors; NaN if the outputs are not finite."""
        return self._losses(logits.detach().cpu().double(), targets.cpu().double())

    def score(self, answers: Tensor, targets: Tensor, metric: Metric) -> float:
        """`"rmse"`, the mean of those of the values, each in its own unit."""
        errors = torch.nanmean((answers.double() - targets.double()).square(), dim=0).sqrt()
        return float(errors.nanmean())

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~torch.isnan(targets)
        # Filled before anything is computed of them: what is NaN has a gradient that is NaN.
        truth = self.logits(torch.where(known, targets, 0.0).to(logits))
        return torch.where(known, (logits - truth).square(), 0.0).mean(dim=1)


def to_dict(objective: Objective) -> dict[str, Any]:
    """What JSON can hold of an objective.

    Example:
        >>> to_dict(Regression(mean=(1.0,), std=(2.0,)))
        {'name': 'regression', 'mean': (1.0,), 'std': (2.0,)}
    """
    assert dataclasses.is_dataclass(objective)
    return {"name": objective.name, **dataclasses.asdict(objective)}


def from_dict(values: Mapping[str, Any]) -> Objective:
    """The objective that `to_dict` has made this of.

    Raises:
        KeyError, TypeError: if it is none.
    """
    kinds: dict[str, type[Objective]] = {k.name: k for k in (Classes, BinaryTasks, Regression)}
    options: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    return kinds[str(options.pop("name"))](**options)
