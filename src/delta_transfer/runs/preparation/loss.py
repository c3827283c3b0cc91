"""The task loss of a run: the task_type's, with classes weighed and labels smoothed if asked."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.inspection import IMBALANCE_THRESHOLD
from delta_transfer.data.samplers import balanced_weights, imbalance_ratio
from delta_transfer.errors import UserError
from delta_transfer.metrics.task_types import Multiclass, TaskType

TaskLoss = Callable[[Tensor, Tensor], Tensor]

# Options that mean something for classes alone, and their value without.
_CLASSIFICATION_ONLY = {"class_weights": "none", "label_smoothing": 0, "mixup": 0, "cutmix": 0}


def check_classification_options(config: TrainConfig, task_type: TaskType, *, name: str) -> None:
    """Checks that the options suit what is to be learnt.

    Args:
        config: the options.
        task_type: of the task.
        name: of the task.

    Raises:
        UserError: if some mean something for classes alone, and there are none; all are named.
    """
    given = [
        f"--{option.replace('_', '-')} {getattr(config, option)}"
        for option, without in _CLASSIFICATION_ONLY.items()
        if getattr(config, option) != without
    ]
    given += ["--preset paper"] if config.paper_protocol else []
    if given and not isinstance(task_type, Multiclass):
        raise UserError(
            f"{', '.join(given)}: only for images of classes, which {name} does not have: leave "
            f"{'it' if len(given) == 1 else 'them'} out"
        )


def task_loss(
    config: TrainConfig, task_type: TaskType, labels: Sequence[int], *, num_classes: int
) -> TaskLoss:
    """What is minimised: a mean over samples, by logits and targets.

    Targets are those of the task type or, of mixed images, class probabilities `[N, K]`.

    Args:
        config: the options.
        task_type: of the task.
        labels: the classes of the training images.
        num_classes: outputs of the network.
    """
    weighs = resolve_class_weights(config, labels) == "balanced"
    if not weighs and not config.label_smoothing:
        return task_type.loss
    weights = balanced_weights(labels, num_classes=num_classes) if weighs else None
    return functools.partial(_cross_entropy, weights=weights, smoothing=config.label_smoothing)


def resolve_class_weights(
    config: TrainConfig, labels: Sequence[int]
) -> Literal["none", "balanced", "sampler"]:
    """How classes of different sizes are evened out, with auto decided by the training images."""
    if config.class_weights != "auto":
        return config.class_weights
    return "balanced" if imbalance_ratio(labels) >= IMBALANCE_THRESHOLD else "none"


def _cross_entropy(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None, smoothing: float
) -> Tensor:
    """Weighted by the class of each sample.

    A plain mean: torch's divides by the weights of the samples that happen to be in the batch (but
    not where targets are probabilities), by which a rare class alone in a batch would count as any.
    """
    if weights is not None:
        weights = weights.to(logits)
    losses = F.cross_entropy(
        logits, targets, weight=weights, label_smoothing=smoothing, reduction="none"
    )
    return losses.mean()
