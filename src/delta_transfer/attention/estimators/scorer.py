"""What an estimator of channel scores says of a batch, and the loss of each sample in it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from delta_transfer.features.inputs import Inputs, InputsT
from delta_transfer.features.probe import Loss

ProgressUpdate = Callable[[int], None]
"""Called with how many more pairs of a sample and a channel are done."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchScores:
    """The scores of a batch.

    Args:
        scores: tap -> `[B, C]`, how much each sample's loss grows when a channel is switched off;
            float32 or wider.
        features: tap -> the tap's output, `[B, S, C]` or rows `[R, C]`.
    """

    scores: dict[str, Tensor]
    features: dict[str, Tensor]


class Scorer(Protocol):
    """Scores batches, one after the other, with the network that it was made for.

    It is called in eval mode, with parameters that require no gradient and the probe in the place
    of the head.
    """

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: ProgressUpdate | None = None
    ) -> BatchScores:
        """Scores of a batch: B inputs on the network's device, and their targets."""
        ...  # pragma: no cover


def per_sample_losses(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each sample, as that of a batch of one.

    For a mean over samples, such as cross entropy, their mean is the loss of the batch. A mean that
    is weighted by class loses its weights: in a batch of one they cancel.

    Args:
        loss: mean over a batch, a scalar. One that `torch.vmap` does not take is called sample by
            sample.
        logits: `[B, K]`.
        targets: `[B, ...]`.

    Returns:
        `[B]`.

    Raises:
        ValueError: if the loss is no scalar.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> per_sample_losses(mse_loss, torch.zeros(2, 3), torch.tensor([[1.0] * 3, [2.0] * 3]))
        tensor([1., 4.])
    """

    def one(logit: Tensor, target: Tensor) -> Tensor:
        return loss(logit.unsqueeze(0), target.unsqueeze(0))

    try:
        losses: Tensor = torch.vmap(one)(logits, targets)
    except Exception:  # a loss may do anything; what is wrong with it, the loop will say as well
        losses = torch.stack([one(*sample) for sample in zip(logits, targets, strict=True)])
    if losses.ndim != 1:
        raise ValueError(
            f"the loss of a batch must be a scalar, got shape {tuple(losses.shape[1:])}: take the "
            "mean over the batch (reduction='mean')"
        )
    return losses


def to_fast_memory_format(inputs: InputsT, device: torch.device | None = None) -> InputsT:
    """Inputs on a device, images in the memory layout in which convolutions are fastest."""
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        there = device or inputs.device
        return cast(InputsT, inputs.to(there, memory_format=torch.channels_last))
    return inputs if device is None else inputs.to(device)


def concatenate_scores(parts: Sequence[BatchScores]) -> BatchScores:
    """The scores of several parts of a batch as those of one, on the first part's device."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.to(tensors[0].device) for tensor in tensors])

    return BatchScores(
        scores={tap: joined([part.scores[tap] for part in parts]) for tap in first.scores},
        features={tap: joined([part.features[tap] for part in parts]) for tap in first.features},
    )
