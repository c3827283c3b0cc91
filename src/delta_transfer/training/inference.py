"""What a network answers to a split, batch by batch."""

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
    """The answers to one batch after the other, in eval mode.

    Args:
        network: gives logits `[B, K]`; once the last batch is taken, or the iterator closed, it is
            as it was.
        batches: inputs, and whatever stands beside them. A batch without inputs is left out.
        task_type: what the logits mean.

    Yields:
        Answers `[B, K]` on the CPU, and what stood beside the inputs.
    """
    device = device_of(network)
    with eval_mode(network):
        for inputs, beside in batches:
            if not len(inputs):
                continue
            with torch.no_grad():  # not around yield: the caller's grad mode is its own
                logits = network(inputs.to(device))
                answers = task_type.predictions(logits.float()).cpu()
            yield answers, beside


def predict_dataloader(
    network: nn.Module, loader: Iterable[tuple[Inputs, Tensor]], task_type: TaskType
) -> Tensor:
    """The answers to everything in a loader, in eval mode.

    Args:
        network: gives logits `[B, K]`; left as it was.
        loader: batches (inputs, labels).
        task_type: what the logits mean.

    Returns:
        Answers `[N, K]`, on the CPU.
    """
    return torch.cat([answers for answers, _ in iterate_predictions(network, loader, task_type)])


class CropAverage(nn.Module):
    """A network that is shown several crops of each image and averages its logits.

    Args:
        network: takes images `[B, 3, H, W]` and gives logits `[B, K]`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Tensor) -> Tensor:
        """The mean logits `[B, K]` of crops `[B, V, 3, H, W]`."""
        logits: Tensor = self.network(crops.flatten(0, 1))
        return logits.view(*crops.shape[:2], -1).mean(dim=1)
