"""Predict batches in eval mode."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from delta_transfer.features.inputs import Inputs
from delta_transfer.metrics.task_types import TaskType
from delta_transfer.utils.module_state import device_of, eval_mode

Extra = TypeVar("Extra")


def iterate_predictions(
    network: nn.Module, batches: Iterable[tuple[Inputs, Extra]], task_type: TaskType
) -> Iterator[tuple[Tensor, Extra]]:
    """Yield predictions batch by batch, in eval mode.

    Args:
        network: returns logits `[B, K]`; its mode is restored after the last batch, or when the
            iterator is closed.
        batches: inputs, and any second item. A batch without inputs is skipped.
        task_type: turns logits into predictions.

    Yields:
        Predictions `[B, K]` on the CPU, and the second item.
    """
    device = device_of(network)
    with eval_mode(network):
        for inputs, extra in batches:
            if not len(inputs):
                continue
            with torch.no_grad():  # not around yield: the caller's grad mode is its own
                logits = network(inputs.to(device))
                predictions = task_type.predictions(logits.float()).cpu()
            yield predictions, extra


def predict_dataloader(
    network: nn.Module, loader: Iterable[tuple[Inputs, Tensor]], task_type: TaskType
) -> Tensor:
    """Return the predictions for all samples of a loader, in eval mode.

    Args:
        network: returns logits `[B, K]`; its mode is restored.
        loader: batches (inputs, labels).
        task_type: turns logits into predictions.

    Returns:
        Predictions `[N, K]` on the CPU.
    """
    return torch.cat([found for found, _ in iterate_predictions(network, loader, task_type)])


class CropAverage(nn.Module):
    """A network whose logits are averaged over several crops of each image.

    Args:
        network: maps images `[B, 3, H, W]` to logits `[B, K]`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Tensor) -> Tensor:
        """Return the mean logits `[B, K]` of crops `[B, V, 3, H, W]`."""
        logits: Tensor = self.network(crops.flatten(0, 1))
        return logits.view(*crops.shape[:2], -1).mean(dim=1)
