"""Several crops of each picture at once."""

import math

import torch
from torch import Tensor, nn


class CropAverage(nn.Module):
    """A network that is shown several crops of each picture and averages what it says of them.

    Args:
        network: takes pictures `[B, 3, H, W]` and gives logits `[B, K]`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Tensor) -> Tensor:
        """The logarithm of the mean probabilities `[B, K]` of crops `[B, V, 3, H, W]`."""
        logits = self.network(crops.flatten(0, 1)).float()
        log_probabilities = logits.log_softmax(dim=1).unflatten(0, crops.shape[:2])
        return torch.logsumexp(log_probabilities, dim=1) - math.log(crops.shape[1])
