"""Probabilities of a split, batch by batch."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from delta_transfer.borrow import device_of, evaluating


def predict_probabilities(
    network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Class probabilities of everything in a loader, in eval mode.

    Args:
        network: gives logits `[B, K]`; left as it was.
        loader: batches (inputs, labels).

    Returns:
        Probabilities `[N, K]` and labels `[N]`, on the CPU.
    """
    probabilities, labels = [], []
    device = device_of(network)
    with evaluating(network), torch.no_grad():
        for inputs, targets in loader:
            probabilities.append(torch.softmax(network(inputs.to(device)).float(), dim=1).cpu())
            labels.append(targets)
    return torch.cat(probabilities), torch.cat(labels)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """The fraction whose most probable class is the label."""
    return float((probabilities.argmax(dim=1) == labels).double().mean())
