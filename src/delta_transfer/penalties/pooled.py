"""LDIFS: the distance between pooled features of target and source."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from delta_transfer.functional_methods import pooled_distance
from delta_transfer.penalties.base import Penalty, Step


@final
class LDIFS(Penalty):
    """LDIFS, the l2 distance in feature space: what layers say of a picture as a whole is held.

    `strength * sum_l mean_b ||p_lb(w) - p_lb(w0)||^2` over the taps l, with features p that are
    pooled over positions and of length 1 (Mukhoti et al., TMLR 2024,
    https://arxiv.org/abs/2308.13320). Where a feature is in the picture is free to change.

    Args:
        taps: the modules whose outputs are compared: names, glob patterns or `"auto"`.
        strength: factor of the term; 10 in the authors' code.
    """

    def __init__(self, taps: str | Sequence[str] = "auto", *, strength: float = 10.0) -> None:
        named = "auto" if taps == "auto" else (taps,) if isinstance(taps, str) else tuple(taps)
        super().__init__("ldifs", strength, taps=named, needs_source=True)

    def forward(self, step: Step) -> Tensor:
        """The term."""
        terms = [
            pooled_distance(
                step.target_features[tap],
                step.source_features[tap],
                groups=step.groups_at(tap),
            )
            for tap in self.taps
        ]
        return self.strength * torch.stack(terms).sum()
