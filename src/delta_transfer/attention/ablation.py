"""Exact channel scores: every channel is switched off once, one forward pass each."""

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from delta_transfer.channel_attention import FeatureVariance
from delta_transfer.probe import Loss
from delta_transfer.taps import Taps

logger = logging.getLogger(__name__)


def ablation_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    taps: Sequence[str],
    loss: Loss,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How much the loss grows when a channel of a tap's output is zero (DELTA, section 3.3).

    Args:
        model: a network with its head, in eval mode.
        batches: (inputs, targets) on the model's device.
        taps: module names.
        loss: mean over the batch.

    Returns:
        Tap -> scores `[C]`, the mean over all samples; and tap -> feature variance, a scalar.
    """
    totals: dict[str, Tensor] = {}
    variances = {tap: FeatureVariance() for tap in taps}
    samples = 0
    with torch.no_grad():
        for inputs, targets in batches:
            samples += len(targets)
            with Taps(model, taps) as recorder:
                plain = loss(model(inputs), targets)
                features, dims = recorder.features(), recorder.channel_dims
            for tap, output in features.items():
                variances[tap].update(output)
                width = output.shape[-1]
                logger.info("exact attention: tap %s, %d forward passes", tap, width)
                grown = torch.zeros(width, device=output.device)
                for channel in range(width):
                    without = _loss_without(model, inputs, targets, tap, dims[tap], channel, loss)
                    grown[channel] = without - plain
                totals[tap] = totals.get(tap, 0) + grown * len(targets)
    scores = {tap: totals[tap] / samples for tap in taps}
    return scores, {tap: variance.compute() for tap, variance in variances.items()}


def _loss_without(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    tap: str,
    channel_dim: int,
    channel: int,
    loss: Loss,
) -> Tensor:
    def switch_off(name: str, output: Tensor) -> Tensor:
        off = output.clone()
        off.select(channel_dim, channel).zero_()
        return off

    with Taps(model, [tap], edit=switch_off):
        return loss(model(inputs), targets)
