"""GTOT: optimal transport between the nodes of target and source, along the edges of a graph."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from delta_transfer.errors import UserError
from delta_transfer.functional_transport import transport_distance
from delta_transfer.penalties.base import Penalty, Step


@final
class GTOT(Penalty):
    """Graph topology induced optimal transport: nodes stay among their neighbours of before.

    `strength * sum_l 1/2 mean_b <P_lb, C_lb>` over the taps l and graphs b, with cosine distances C
    between the nodes of target and source and the cheapest plan P along edges (Zhang et al., IJCAI
    2022, https://arxiv.org/abs/2203.10453; `functional_transport`). A node may come to be what a
    neighbour was. It is not zero at the start, nor is its gradient. The inputs need `edge_index`,
    `[2, E]`, beside `groups`.

    Args:
        taps: the modules whose outputs are compared, which give a row for each node: names or glob
            patterns. The authors': the last layer.
        strength: factor of the term.
        order: how many edges apart nodes may be between which is transport; 1 in the authors' code.

    Raises:
        ValueError: if the order is negative.
    """

    def __init__(self, taps: str | Sequence[str], *, strength: float, order: int = 1) -> None:
        named = (taps,) if isinstance(taps, str) else tuple(taps)
        super().__init__("gtot", strength, taps=named, needs_source=True)
        if order < 0:
            raise ValueError(f"gtot: order must be at least 0, got {order}")
        self.order = order

    def forward(self, step: Step) -> Tensor:
        """The term.

        Raises:
            UserError: if a tap does not give nodes, or their edges are not known.
        """
        edges = getattr(step.inputs, "edge_index", None)
        if edges is None:
            raise UserError(
                "gtot needs graphs, whose inputs have edge_index: for pictures choose another "
                f"penalty; these inputs are a {type(step.inputs).__name__}"
            )
        terms = [self._at(step, tap, edges) for tap in self.taps]
        return self.strength * torch.stack(terms).sum()

    def _at(self, step: Step, tap: str, edges: Tensor) -> Tensor:
        groups = step.groups_at(tap)
        if groups is None:
            raise UserError(
                f"gtot compares nodes, but tap {tap!r} gives one row for each graph: tap a layer "
                "before the pooling"
            )
        return transport_distance(
            step.target_features[tap],
            step.source_features[tap],
            edges=edges,
            groups=groups,
            order=self.order,
        )
