"""The task loss of a run, with class weights and label smoothing."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.inspection import IMBALANCE_THRESHOLD
from delta_transfer.data.samplers import balanced_weights, imbalance_ratio
from delta_transfer.errors import ConfigError
from delta_transfer.metrics.task_types import Multiclass, TaskType

TaskLoss = Callable[[Tensor, Tensor], Tensor]

# Options for classes only, and their defaults.
_CLASSIFICATION_ONLY = {"class_weights": "none", "label_smoothing": 0, "mixup": 0, "cutmix": 0}


def check_classification_options(config: TrainConfig, task_type: TaskType, *, name: str) -> None:
    """Check that options for classes are not used without classes.

    Args:
        config: the options.
        task_type: of the dataset.
        name: of the dataset.

    Raises:
        ConfigError: naming all of these options.
    """
    given = [
        f"`{option}={getattr(config, option)}`"
        for option, without in _CLASSIFICATION_ONLY.items()
        if getattr(config, option) != without
    ]
    given += ["`preset=paper`"] if config.paper_protocol else []
    if given and not isinstance(task_type, Multiclass):
        raise ConfigError(
            f"{', '.join(given)}: only for images with classes, which {name} does not have: leave "
            f"{'it' if len(given) == 1 else 'them'} out"
        )


def task_loss(
    config: TrainConfig, task_type: TaskType, labels: Sequence[int], *, num_classes: int
) -> TaskLoss:
    """Return the task loss of logits and targets, a mean over samples.

    Targets are those of the task type or, for mixed images, class probabilities `[N, K]`.

    Args:
        config: the options.
        task_type: of the dataset.
        labels: class indices of the training images.
        num_classes: outputs of the network.
    """
    balanced = resolve_class_weights(config, labels) == "balanced"
    if not balanced and not config.label_smoothing:
        return task_type.loss
    weights = balanced_weights(labels, num_classes=num_classes) if balanced else None
    return functools.partial(_cross_entropy, weights=weights, smoothing=config.label_smoothing)


def resolve_class_weights(
    config: TrainConfig, labels: Sequence[int]
) -> Literal["none", "balanced", "sampler"]:
    """Return how classes are balanced, with `auto` resolved by the training labels."""
    if config.class_weights != "auto":
        return config.class_weights
    return "balanced" if imbalance_ratio(labels) >= IMBALANCE_THRESHOLD else "none"


def _cross_entropy(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None, smoothing: float
) -> Tensor:
    """Return the cross-entropy, weighted by the class of each sample.

    A plain mean: torch's divides by the sum of the batch's weights (except for probabilities),
    which would cancel the weight of a rare class that is alone in its batch.
    """
    if weights is not None:
        weights = weights.to(logits)
    losses = F.cross_entropy(
        logits, targets, weight=weights, label_smoothing=smoothing, reduction="none"
    )
    return losses.mean()
