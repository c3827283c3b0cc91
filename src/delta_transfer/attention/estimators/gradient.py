"""First-order channel scores: all channels in one forward and backward pass per batch."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from delta_transfer.attention.estimators.scorer import (
    BatchScores,
    ProgressUpdate,
    concatenate_scores,
    per_sample_losses,
    to_fast_memory_format,
)
from delta_transfer.features.inputs import Inputs, groups_at, groups_of, split
from delta_transfer.features.probe import Loss
from delta_transfer.features.taps import Taps
from delta_transfer.functional import at_least_float32, flatten_positions


@final
class FirstOrderScorer:
    """Increase of each sample's loss when a channel is ablated, to first order.

    `-sum_s F_bsc dl_b / dF_bsc` over its positions or rows s, the Taylor expansion of `l_b(F with
    F_c = 0) - l_b(F)` (Molchanov et al., ICLR 2017, https://arxiv.org/abs/1611.06440, use the
    absolute value of its mean). One forward pass, and one backward pass no further than the first
    tap.

    Args:
        model: a network with its head, in eval mode, whose parameters require no gradient. Samples
            must not depend on each other.
        taps: module names.
        loss: task loss; each sample is passed as a batch of one.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> score = FirstOrderScorer(net, taps=["0"], loss=nn.functional.cross_entropy)
        >>> score(torch.randn(2, 3, 16, 16), torch.tensor([5, 0])).scores["0"].shape
        torch.Size([2, 8])
    """

    def __init__(self, model: nn.Module, *, taps: Sequence[str], loss: Loss) -> None:
        self._model = model
        self._loss = loss
        self._taps = Taps(model, taps, edit=_differentiable)

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: ProgressUpdate | None = None
    ) -> BatchScores:
        """Score a batch: B inputs on the network's device, and their targets."""
        with self._taps, torch.enable_grad():
            logits = at_least_float32(self._model(to_fast_memory_format(inputs)))
            outputs = self._taps.outputs()
            groups = groups_of(inputs)
            # Rows of a tap may be other than samples, such as windows: their sample is known only
            # from the inputs, or if there is a single one.
            samples = all(len(output) == len(targets) for output in outputs.values())
            if groups is not None or samples or len(targets) == 1:
                scored = self._score(logits, targets, outputs, groups)
            else:
                scored = None
        self._taps.clear()
        if scored is None:
            singles = zip(split(inputs, 1), split(targets, 1), strict=True)
            return concatenate_scores([self(*single, progress=progress) for single in singles])
        if progress is not None:
            progress(sum(scores.numel() for scores in scored.scores.values()))
        return scored

    def _score(
        self, logits: Tensor, targets: Tensor, outputs: dict[str, Tensor], groups: Tensor | None
    ) -> BatchScores:
        # Each sample's loss depends on that sample's features alone, so that the gradient of their
        # sum has the gradients of all.
        total = per_sample_losses(self._loss, logits, targets).sum()
        slopes = torch.autograd.grad(total, list(outputs.values()), materialize_grads=True)
        scores, features = {}, {}
        for (tap, output), slope in zip(outputs.items(), slopes, strict=True):
            dim = self._taps.channel_dims[tap]
            features[tap] = at_least_float32(flatten_positions(output.detach(), dim))
            products = features[tap] * at_least_float32(flatten_positions(slope, dim))
            whose = groups_at(tap, output, groups, samples=len(targets))
            if whose is None:
                by_sample = products.reshape(len(targets), -1, products.shape[-1]).sum(dim=1)
            else:
                by_sample = products.new_zeros(len(targets), products.shape[-1])
                by_sample.index_add_(0, whose, products)
            scores[tap] = -by_sample
        return BatchScores(scores=scores, features=features)


def _differentiable(tap: str, output: Tensor) -> Tensor:
    """Start the autograd graph at the first tap: nothing before it is differentiated."""
    return output if output.requires_grad else output.detach().requires_grad_()
