"""The interface of scorers, and the loss of each sample of a batch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from delta_transfer.features.inputs import Inputs, InputsT
from delta_transfer.features.probe import Loss

ProgressUpdate = Callable[[int], None]
"""Called with the number of further pairs of a sample and a channel."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchScores:
    """The scores of a batch.

    Args:
        scores: tap -> `[B, C]`, increase of each sample's loss when a channel is ablated; float32
            or wider.
        features: tap -> the tap's output, `[B, S, C]` or rows `[R, C]`.
    """

    scores: dict[str, Tensor]
    features: dict[str, Tensor]


class Scorer(Protocol):
    """Scores batches with the network that it was made for.

    The network is in eval mode, its parameters require no gradient, and the probe replaces its
    head.
    """

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: ProgressUpdate | None = None
    ) -> BatchScores:
        """Score a batch: B inputs on the network's device, and their targets."""
        ...  # pragma: no cover


def per_sample_losses(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample, as a batch of one.

    For a mean over samples, such as cross entropy, their mean is the loss of the batch. Class
    weights cancel in a batch of one.

    Args:
        loss: mean over a batch, a scalar. A loss that `torch.vmap` does not support is called
            sample by sample.
        logits: `[B, K]`.
        targets: `[B, ...]`.

    Returns:
        `[B]`.

    Raises:
        ValueError: if the loss is not a scalar.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> per_sample_losses(mse_loss, torch.zeros(2, 3), torch.tensor([[1.0] * 3, [2.0] * 3]))
        tensor([1., 4.])
    """

    def one(logit: Tensor, target: Tensor) -> Tensor:
        return loss(logit.unsqueeze(0), target.unsqueeze(0))

    try:
        losses: Tensor = torch.vmap(one)(logits, targets)
    except Exception:  # an error of the loss itself is raised again by the loop
        losses = torch.stack([one(*sample) for sample in zip(logits, targets, strict=True)])
    if losses.ndim != 1:
        raise ValueError(
            f"the loss of a batch must be a scalar, got shape {tuple(losses.shape[1:])}: use "
            "the mean over the batch (reduction='mean')"
        )
    return losses


def to_fast_memory_format(inputs: InputsT, device: torch.device | None = None) -> InputsT:
    """Move inputs to a device, images in channels_last, in which convolutions are fastest."""
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        there = device or inputs.device
        return cast(InputsT, inputs.to(there, memory_format=torch.channels_last))
    return inputs if device is None else inputs.to(device)


def concatenate_scores(parts: Sequence[BatchScores]) -> BatchScores:
    """Concatenate the scores of parts of a batch, on the first part's device."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.to(tensors[0].device) for tensor in tensors])

    return BatchScores(
        scores={tap: joined([part.scores[tap] for part in parts]) for tap in first.scores},
        features={tap: joined([part.features[tap] for part in parts]) for tap in first.features},
    )
