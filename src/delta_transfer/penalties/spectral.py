"""Batch Spectral Shrinkage: the weakest directions of a batch's features are made weaker."""

from typing import final

from torch import Tensor

from delta_transfer.functional_methods import smallest_singular_values
from delta_transfer.penalties.base import Penalty, Step


@final
class BSS(Penalty):
    """Batch Spectral Shrinkage: `strength * sum of the k smallest squared singular values`.

    Of the matrix of what the head is given, a row a sample: directions that hardly vary over a
    batch carry what does not transfer (Chen et al., NeurIPS 2019, https://proceedings.neurips.cc/
    paper/2019/hash/c6bff625bdb0393992c9d4db0c6bbe45-Abstract.html). The source is not needed.

    Args:
        head: the name of the target's head.
        strength: factor of the term; 0.001 in the paper.
        count: how many singular values; 1 in the paper.

    Raises:
        ValueError: if the count is not positive.
    """

    def __init__(self, head: str, *, strength: float = 0.001, count: int = 1) -> None:
        super().__init__("bss", strength, head=head, combines="batch")
        if count < 1:
            raise ValueError(f"bss: count must be at least 1, got {count}")
        self.count = count

    def forward(self, step: Step) -> Tensor:
        """The term."""
        rows = step.head_inputs[self.head]
        return self.strength * smallest_singular_values(rows, count=self.count)
