"""The task loss of a run: cross entropy, with weights for classes and smoothed labels if asked."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from delta_transfer.config import TrainConfig
from delta_transfer.data.balance import balanced_weights, imbalance
from delta_transfer.data.check import IMBALANCE

TaskLoss = Callable[[Tensor, Tensor], Tensor]


def task_loss(config: TrainConfig, labels: Sequence[int], *, num_classes: int) -> TaskLoss:
    """What is minimised: a mean over samples, by logits and targets.

    Targets are class indices `[N]` or, of mixed pictures, probabilities `[N, K]`.

    Args:
        config: the options.
        labels: of the training pictures.
        num_classes: outputs of the network.
    """
    weighs = even_out(config, labels) == "balanced"
    if not weighs and not config.label_smoothing:
        return F.cross_entropy
    weights = balanced_weights(labels, num_classes=num_classes) if weighs else None
    return functools.partial(_cross_entropy, weights=weights, smoothing=config.label_smoothing)


def even_out(config: TrainConfig, labels: Sequence[int]) -> Literal["none", "balanced", "sampler"]:
    """How classes of different sizes are evened out, with auto decided by the training pictures."""
    if config.class_weights != "auto":
        return config.class_weights
    return "balanced" if imbalance(labels) >= IMBALANCE else "none"


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
