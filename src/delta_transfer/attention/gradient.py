"""Channel scores to first order: all channels at once, one forward and backward pass a batch."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from delta_transfer.channel_attention import FeatureVariance
from delta_transfer.functional import at_least_float32, channels_last
from delta_transfer.probe import Loss
from delta_transfer.taps import Taps


def first_order_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    taps: Sequence[str],
    loss: Loss,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How much the loss grows when a channel is switched off, to first order.

    `-mean_b sum_s F_bsc dl_b / dF_bsc`, the Taylor expansion of `l_b(F with F_c = 0) - l_b(F)`
    (Molchanov et al., ICLR 2017, https://arxiv.org/abs/1611.06440, use its absolute value).

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
    with Taps(model, taps, edit=_differentiable) as recorder, torch.enable_grad():
        for inputs, targets in batches:
            value = loss(model(inputs), targets)
            outputs = recorder.outputs()
            gradients = torch.autograd.grad(value, list(outputs.values()), materialize_grads=True)
            samples += len(targets)
            for (tap, output), gradient in zip(outputs.items(), gradients, strict=True):
                dim = recorder.channel_dims[tap]
                features = at_least_float32(channels_last(output.detach(), dim))
                slopes = at_least_float32(channels_last(gradient, dim))
                products = (features * slopes).flatten(0, -2).sum(dim=0)
                # The loss is a mean over the batch: times its size, it is a sum over samples.
                totals[tap] = totals.get(tap, 0) - products * len(targets)
                variances[tap].update(features)
    scores = {tap: totals[tap] / samples for tap in taps}
    return scores, {tap: variance.compute() for tap, variance in variances.items()}


def _differentiable(tap: str, output: Tensor) -> Tensor:
    """The first tap starts the graph: nothing before it has to be differentiated."""
    return output if output.requires_grad else output.detach().requires_grad_()
