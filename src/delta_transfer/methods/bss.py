"""Batch Spectral Shrinkage: penalises the smallest singular values of a batch's features."""

import math
from typing import final

import torch
from torch import Tensor

from delta_transfer.functional import at_least_float32
from delta_transfer.methods.base import WEIGHT_DECAY, Method, PenaltyContext
from delta_transfer.methods.penalty import Penalty, Step


def spectral_shrinkage(rows: Tensor, *, count: int) -> Tensor:
    """Return the sum of the smallest squared singular values of a matrix.

    `sum_i sigma_{-i}^2` over the `count` smallest of the min(B, F) values: Batch Spectral
    Shrinkage (Chen et al., NeurIPS 2019, section 4,
    https://proceedings.neurips.cc/paper/2019/hash/c6bff625bdb0393992c9d4db0c6bbe45-Abstract.html).

    Args:
        rows: `[B, F]`, the features of each sample.
        count: number of singular values; all if there are fewer.

    Returns:
        A scalar in squared units of the features.

    Example:
        >>> spectral_shrinkage(torch.diag(torch.tensor([3.0, 2.0, 1.0])), count=2)
        tensor(5.)
    """
    wide = at_least_float32(rows)
    try:
        values: Tensor = torch.linalg.svdvals(wide)
    # Raised for NaN or infinity: the training loop reports a loss that is not finite.
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return wide.new_tensor(math.nan)
    return values[-count:].square().sum()


@final
class BSS(Penalty):
    """Batch Spectral Shrinkage: `strength * sum of the k smallest squared singular values`.

    The singular values are those of the matrix of the head's inputs, one row per sample: directions
    that hardly vary over a batch are those that do not transfer (Chen et al., NeurIPS 2019,
    https://proceedings.neurips.cc/paper/2019/hash/c6bff625bdb0393992c9d4db0c6bbe45-Abstract.html).
    The source is not needed.

    Args:
        head: the name of the target's head.
        strength: factor of the term; 0.001 in the paper.
        count: number of singular values; 1 in the paper.

    Raises:
        ValueError: if the count is below 1.
    """

    def __init__(self, head: str, *, strength: float = 0.001, count: int = 1) -> None:
        super().__init__("bss", strength, head=head, reduction="batch")
        if count < 1:
            raise ValueError(f"bss: count must be at least 1, got {count}")
        self.count = count

    def forward(self, step: Step) -> Tensor:
        """Return the term."""
        rows = step.head_inputs[self.head]
        return self.strength * spectral_shrinkage(rows, count=self.count)


def _penalties(context: PenaltyContext) -> list[Penalty]:
    """Return the penalty of Batch Spectral Shrinkage."""
    return [BSS(context.head, strength=context.strength)]


METHOD = Method(
    name="bss",
    summary="Batch Spectral Shrinkage: shrinks the weakest directions of the features",
    paper=(
        "https://proceedings.neurips.cc/paper/2019/hash/"
        "c6bff625bdb0393992c9d4db0c6bbe45-Abstract.html"
    ),
    head_init="random",
    build_penalties=_penalties,
    needs_whole_batch=True,
    strength=0.001,  # eta in section 5
    weight_decay=WEIGHT_DECAY,
)
