"""The moving average of the weights in training."""

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(network: nn.Module, *, decay: float) -> AveragedModel:
    """A copy of the network whose `update_parameters(network)` moves it towards the network.

    `average = d average + (1 - d) weights` with `d = min(decay, (1 + n) / (10 + n))` after n
    updates, so that the start is soon forgotten however short the training is. The first update
    takes the weights as they are. Buffers (the statistics of batch norm) are averaged likewise.

    Args:
        network: in training.
        decay: above 0 and below 1; the average is over about `1 / (1 - decay)` steps.
    """

    def average(averaged: Any, weights: Any, count: Tensor | int) -> None:
        now = decay_after(int(count), decay=decay)
        get_ema_multi_avg_fn(now)(averaged, weights, count)  # type: ignore[no-untyped-call]

    found = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    found.requires_grad_(False)
    return found


def decay_after(updates: int, *, decay: float) -> float:
    """The decay of the next update after so many.

    Example:
        >>> [round(decay_after(n, decay=0.9), 2) for n in (1, 10, 100)]
        [0.18, 0.55, 0.9]
    """
    return min(decay, (1 + updates) / (10 + updates))
