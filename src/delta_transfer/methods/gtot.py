"""GTOT: optimal transport between nodes of target and source, along the edges of a graph."""

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from delta_transfer.errors import ModelError
from delta_transfer.functional import at_least_float32, without_autocast
from delta_transfer.methods.base import Method, PenaltyContext
from delta_transfer.methods.l2 import head_penalties
from delta_transfer.methods.penalty import Penalty, Step


def transport_distance(
    target: Tensor,
    source: Tensor,
    *,
    edges: Tensor,
    groups: Tensor,
    order: int = 1,
    regularization: float = 0.1,
    iterations: int = 50,
) -> Tensor:
    """Return the cost of transporting each sample's rows to the source's, along its edges.

    `1/2 mean_b <P_b, C_b>` with `C_ij = 1 - cos(T_i, S_j)` and `P_b` the plan of `masked_plan`
    among pairs that are at most `order` edges apart, where the rows of a sample have equal masses
    that sum to 1: the regulariser of GTOT-Tuning (Zhang et al., IJCAI 2022,
    https://arxiv.org/abs/2203.10453) as in the authors' code. It is not zero where the features are
    equal, because the entropy spreads the plan over neighbours.

    Args:
        target: rows `[R, C]`.
        source: like `target`.
        edges: `[2, E]`, the two rows of each edge, of one sample; direction is ignored.
        groups: `[R]`, the sample that each row belongs to.
        order: maximum number of edges between the rows of a pair; 0 pairs each row with itself.
        regularization: see `masked_plan`.
        iterations: see `masked_plan`.

    Returns:
        A unit-free scalar from 0 to 1.

    Example:
        >>> rows, edges = torch.eye(2), torch.tensor([[0], [1]])
        >>> one = torch.zeros(2, dtype=torch.int64)
        >>> transport_distance(rows, rows.flip(0), edges=edges, groups=one, order=0)
        tensor(0.5000)
        >>> transport_distance(rows, rows.flip(0), edges=edges, groups=one)
        tensor(2.2699e-05)
    """
    pairs = _pairs(edges, len(groups), order)
    sizes = torch.bincount(groups)
    with without_autocast(target.device):
        now, then = (F.normalize(at_least_float32(rows), dim=1) for rows in (target, source))
        cost = 1 - (now[pairs[0]] * then[pairs[1]]).sum(dim=1)
        mass = 1 / sizes[groups].to(cost)
        plan = masked_plan(cost, pairs, mass, regularization=regularization, iterations=iterations)
        return 0.5 * (plan * cost).sum() / (sizes > 0).sum()


def masked_plan(
    cost: Tensor, pairs: Tensor, mass: Tensor, *, regularization: float, iterations: int
) -> Tensor:
    """Return the optimal transport plan among given pairs, by Sinkhorn iterations in log space.

    `argmin_P <P, C> - regularization H(P)` over the P that are zero for all other pairs and
    whose two marginals equal the mass (Cuturi, NeurIPS 2013, https://arxiv.org/abs/1306.0895).
    After the last iteration the marginal of the end rows is exact, and that of the start rows is as
    close as the iterations have converged. Gradients flow through all iterations.

    Args:
        cost: `[P]`, the cost of each pair.
        pairs: `[2, P]`, the start and end row of each pair; must include the reverse of each pair
            and each row paired with itself, so that a plan exists.
        mass: `[R]`, equal for rows that are connected by pairs.
        regularization: weight of the entropy, in units of the cost; positive.
        iterations: number of iterations.

    Returns:
        `[P]`, the mass transported by each pair.
    """
    start, end = pairs
    kernel, wanted = -cost / regularization, mass.log()
    coming = torch.zeros_like(wanted)
    for _ in range(iterations):
        leaving = wanted - _grouped_logsumexp(kernel + coming[end], start, len(wanted))
        coming = wanted - _grouped_logsumexp(kernel + leaving[start], end, len(wanted))
    return (kernel + leaving[start] + coming[end]).exp()


def _grouped_logsumexp(logarithms: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the logsumexp `[R]` of the entries of each row."""
    largest = logarithms.new_zeros(count).scatter_reduce(
        0, rows, logarithms.detach(), "amax", include_self=False
    )
    sums = logarithms.new_zeros(count).index_add(0, rows, (logarithms - largest[rows]).exp())
    return sums.log() + largest


def _pairs(edges: Tensor, rows: int, order: int) -> Tensor:
    """Return the sorted pairs `[2, P]` of rows that are at most `order` edges apart."""
    itself = torch.arange(rows, device=edges.device).expand(2, rows)
    if order == 0:
        return itself
    start, end = step = _distinct(torch.cat([itself, edges, edges.flip(0)], dim=1), rows)
    found = step
    degree = torch.bincount(start, minlength=rows)
    first = degree.cumsum(0) - degree
    for _ in range(order - 1):  # extend each pair by all edges of its end row
        times = degree[found[1]]
        number = torch.arange(int(times.sum()), device=edges.device)
        number -= (times.cumsum(0) - times).repeat_interleave(times)
        further = end[first[found[1]].repeat_interleave(times) + number]
        found = _distinct(torch.stack([found[0].repeat_interleave(times), further]), rows)
    return found


def _distinct(pairs: Tensor, rows: int) -> Tensor:
    numbers = torch.unique(pairs[0] * rows + pairs[1])
    return torch.stack([numbers // rows, numbers % rows])


@final
class GTOT(Penalty):
    """Graph topology induced optimal transport: keep nodes close to themselves or a neighbour.

    `strength * sum_l 1/2 mean_b <P_lb, C_lb>` over the taps l and graphs b, with cosine distances C
    between the nodes of target and source and the cheapest plan P along edges (Zhang et al., IJCAI
    2022, https://arxiv.org/abs/2203.10453; `transport_distance`). A node may take the features
    of a neighbour. At initialization neither the term nor its gradient is zero. The inputs need
    `edge_index`, `[2, E]`, beside `groups`.

    Args:
        taps: the modules whose outputs are compared, with one row for each node: names or glob
            patterns. The authors use the last layer.
        strength: factor of the term.
        order: maximum number of edges between two nodes of a pair; 1 in the authors' code.

    Raises:
        ValueError: if the order is negative.
    """

    def __init__(self, taps: str | Sequence[str], *, strength: float, order: int = 1) -> None:
        super().__init__("gtot", strength, taps=taps, needs_source=True)
        if order < 0:
            raise ValueError(f"gtot: order must be at least 0, got {order}")
        self.order = order

    def forward(self, step: Step) -> Tensor:
        """Return the term.

        Raises:
            ModelError: if the inputs have no edges, or a tap's outputs are not nodes.
        """
        edges = getattr(step.inputs, "edge_index", None)
        if edges is None:
            raise ModelError(
                f"gtot needs graphs with edge_index, got a {type(step.inputs).__name__}: choose "
                "another penalty for images"
            )
        terms = [self._at(step, tap, edges) for tap in self.taps]
        return self.strength * torch.stack(terms).sum()

    def _at(self, step: Step, tap: str, edges: Tensor) -> Tensor:
        groups = step.groups_at(tap)
        if groups is None:
            raise ModelError(
                f"gtot compares nodes, but tap {tap!r} has one row per graph: choose a layer "
                "before the pooling"
            )
        return transport_distance(
            step.target_features[tap],
            step.source_features[tap],
            edges=edges,
            groups=groups,
            order=self.order,
        )


def _penalties(context: PenaltyContext) -> list[Penalty]:
    """Return GTOT at the last tap, and the head term."""
    return [GTOT(context.taps[-1], strength=context.strength), *head_penalties(context)]


METHOD = Method(
    name="gtot",
    summary="GTOT: keeps nodes close to themselves or neighbours, by optimal transport",
    paper="https://arxiv.org/abs/2203.10453",
    build_penalties=_penalties,
    compares_features=True,
    kinds=("graphs",),
    strength=1.0,
)
