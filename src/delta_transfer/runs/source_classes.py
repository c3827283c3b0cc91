"""The classes of pretraining that features have, by the pretrained network's own classifier."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from delta_transfer.features.head_inputs import HeadInputs
from delta_transfer.features.inputs import Inputs
from delta_transfer.methods.penalty import classifier_logits
from delta_transfer.metrics.task_types import TaskType
from delta_transfer.training.inference import iterate_predictions
from delta_transfer.utils.module_state import device_of


def source_classes(classifier: nn.Linear, features: Tensor) -> Tensor:
    """Return the top-1 classes of pretraining `[B]` of head inputs `[B, F]`, on the CPU."""
    return classifier_logits(classifier, features.to(device_of(classifier))).argmax(dim=1).cpu()


def predict_with_source_classes(
    network: nn.Module,
    batches: Iterable[tuple[Inputs, Tensor]],
    task_type: TaskType,
    *,
    head: str,
    classifier: nn.Linear,
) -> tuple[Tensor, Tensor]:
    """Return predictions and the classes of pretraining, from one forward pass in eval mode.

    Args:
        network: returns logits `[B, K]`; its mode is restored.
        batches: inputs, and their labels.
        task_type: turns logits into predictions.
        head: name of the network's head.
        classifier: the head of pretraining, applied to the inputs of the network's head.

    Returns:
        Predictions `[N, K]` and classes `[N]`, on the CPU.
    """
    predictions, classes = [], []
    with HeadInputs(network, [head]) as heads:
        for found, _ in iterate_predictions(network, batches, task_type):
            (features,) = heads.inputs().values()
            predictions.append(found)
            classes.append(source_classes(classifier, features))
    return torch.cat(predictions), torch.cat(classes)
