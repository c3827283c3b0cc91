"""Probabilities of a split, batch by batch."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from delta_transfer.borrow import device_of, evaluating
from delta_transfer.inputs import Inputs

Beside = TypeVar("Beside")


def iterate_probabilities(
    network: nn.Module, batches: Iterable[tuple[Inputs, Beside]]
) -> Iterator[tuple[Tensor, Beside]]:
    """Class probabilities of one batch after the other, in eval mode.

    Args:
        network: gives logits `[B, K]`; once the last batch is taken, or the iterator closed, it is
            as it was.
        batches: inputs, and whatever stands beside them. A batch without inputs is left out.

    Yields:
        Probabilities `[B, K]` on the CPU, and what stood beside the inputs.
    """
    device = device_of(network)
    with evaluating(network):
        for inputs, beside in batches:
            if not len(inputs):
                continue
            with torch.no_grad():  # not around yield: the caller's grad mode is its own
                logits = network(inputs.to(device))
                probabilities = torch.softmax(logits.float(), dim=1).cpu()
            yield probabilities, beside


def predict_probabilities(
    network: nn.Module, loader: Iterable[tuple[Inputs, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Class probabilities of everything in a loader, in eval mode.

    Args:
        network: gives logits `[B, K]`; left as it was.
        loader: batches (inputs, labels).

    Returns:
        Probabilities `[N, K]` and labels `[N]`, on the CPU.
    """
    probabilities, labels = zip(*iterate_probabilities(network, loader), strict=True)
    return torch.cat(probabilities), torch.cat(labels)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """The fraction whose most probable class is the label."""
    return float((probabilities.argmax(dim=1) == labels).double().mean())
