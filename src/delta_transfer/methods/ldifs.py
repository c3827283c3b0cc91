"""LDIFS: the distance between pooled features of target and source."""

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from delta_transfer.functional import at_least_float32
from delta_transfer.methods.base import Method, PenaltyContext
from delta_transfer.methods.l2 import head_penalties
from delta_transfer.methods.penalty import Penalty, Step


def pooled_distance(target: Tensor, source: Tensor, *, groups: Tensor | None = None) -> Tensor:
    """Return the squared distance between pooled features of unit length.

    `mean_b ||p(T_b) - p(S_b)||^2` with `p(F) = mean_s F_s / ||mean_s F_s||`: one layer's term of
    the feature distance of LDIFS (Mukhoti et al., TMLR 2024, https://arxiv.org/abs/2308.13320).
    Lengths are normalised as in the authors' code, so that it is between 0 and 4 in any network.

    Args:
        target: `[B, S, C]`, or rows `[R, C]`.
        source: like `target`.
        groups: `[R]`, the sample that each row belongs to; without it each row is a sample.

    Returns:
        A unit-free scalar.

    Example:
        >>> pooled_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(2.)
    """
    return (_pooled(target, groups) - _pooled(source, groups)).square().sum(dim=1).mean()


def _pooled(features: Tensor, groups: Tensor | None) -> Tensor:
    wide = at_least_float32(features)
    if features.ndim == 3:
        wide = wide.mean(dim=1)
    elif groups is not None:
        # Sums and means have the same direction. Renumber samples: some may have no rows.
        _, numbers = torch.unique(groups, return_inverse=True)
        count = int(numbers.max()) + 1
        wide = wide.new_zeros(count, wide.shape[1]).index_add(0, numbers, wide)
    return F.normalize(wide, dim=1)


@final
class LDIFS(Penalty):
    """LDIFS, the l2 distance in feature space: keep pooled features close to the source's.

    `strength * sum_l mean_b ||p_lb(w) - p_lb(w0)||^2` over the taps l, with features p that are
    pooled over positions and of length 1 (Mukhoti et al., TMLR 2024,
    https://arxiv.org/abs/2308.13320). The position of a feature in the image is free to change.

    Args:
        taps: the modules whose outputs are compared: names, glob patterns or `"auto"`.
        strength: factor of the term; 10 in the authors' code.
    """

    def __init__(self, taps: str | Sequence[str] = "auto", *, strength: float = 10.0) -> None:
        super().__init__("ldifs", strength, taps=taps, needs_source=True)

    def forward(self, step: Step) -> Tensor:
        """Return the term."""
        terms = [
            pooled_distance(
                step.target_features[tap],
                step.source_features[tap],
                groups=step.groups_at(tap),
            )
            for tap in self.taps
        ]
        return self.strength * torch.stack(terms).sum()


def _penalties(context: PenaltyContext) -> list[Penalty]:
    """Return LDIFS and the head term."""
    own = LDIFS(context.taps, strength=context.strength)
    return [own, *head_penalties(context)]


METHOD = Method(
    name="ldifs",
    summary="LDIFS: keeps pooled features close to the source's",
    paper="https://arxiv.org/abs/2308.13320",
    build_penalties=_penalties,
    compares_features=True,
    strength=10.0,  # the authors' code
)
