"""Context prediction: which surroundings belong to the neighbourhood of a node."""

from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.backbones.graph_network import GraphNetwork
from delta_transfer.pretraining.base import BatchScore, PretextTask

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from delta_transfer.data.graphs.batch import GraphBatch


_CONTEXT_WIDTH = 3  # edges that surroundings are wide, and layers of the network that sees them


@final
class ContextPrediction(PretextTask):
    """Tells the surroundings of a node from those of a node in another graph.

    As in [Hu et al. 2020](https://arxiv.org/abs/1905.12265). A center is drawn in each graph. The
    network, of K layers, sees the nodes that are at most K edges away, and gives the center's
    features u. A second one, of three such layers, sees the surroundings alone, the nodes that are
    K - 1 to K + 2 edges away, and gives v, the mean of its features over those of them that the
    first sees, too. Logits are (A u + b) . v / sqrt(width), for v of the same graph (yes) and of
    the next one (no). Graphs without such surroundings are not asked about.

    Hu et al. have u . v alone, which cannot say no where features are above zero, and did not learn
    from a few thousand molecules.

    Args:
        context_network: a network like the one that is trained, with weights of its own; its first
            two layers and its last one are used.
    """

    metric_name = "accuracy"

    def __init__(self, context_network: GraphNetwork) -> None:
        super().__init__()
        self.context_network = context_network
        layers = list(context_network.layers)
        context_network.layers = nn.ModuleList(
            [*layers[: _CONTEXT_WIDTH - 1], *layers[_CONTEXT_WIDTH - 1 :][-1:]]
        )
        width = context_network.head.in_features
        self.head = nn.Linear(width, width)

    def forward(
        self, network: GraphNetwork, graphs: "GraphBatch", generator: torch.Generator
    ) -> BatchScore | None:
        """See `Pretext`."""
        reach = len(network.layers)
        inner = max(1, reach - 1)
        outer = inner + _CONTEXT_WIDTH
        hops = count_hops(graphs, draw_centers(graphs.groups, generator), outer)
        shared = (hops >= inner) & (hops <= reach)
        asked = torch.zeros(len(graphs), dtype=torch.bool, device=hops.device)
        asked[graphs.groups[shared]] = True
        if int(asked.sum()) < 2:
            return None
        wanted = asked[graphs.groups]
        near, far = wanted & (hops <= reach), wanted & (hops >= inner) & (hops <= outer)
        one = network.node_embeddings(node_subgraph(graphs, near))[hops[near] == 0]
        features = self.context_network.node_embeddings(node_subgraph(graphs, far))[shared[far]]
        number = (asked.cumsum(0) - 1)[graphs.groups[far][shared[far]]]
        other = _means(features, number, len(one))
        asking = self.head(one) / one.shape[1] ** 0.5
        logits = torch.cat([(asking * other).sum(dim=1), (asking * other.roll(-1, 0)).sum(dim=1)])
        answers = torch.zeros_like(logits)
        answers[: len(one)] = 1
        right = float(((logits > 0) == (answers > 0)).float().mean())
        loss = F.binary_cross_entropy_with_logits(logits, answers)
        return BatchScore(loss=loss, score=right, count=len(logits))

    def score_baseline(self, graphs: "GraphBatch", generator: torch.Generator) -> BatchScore:
        """See `Pretext`: half of the answers are yes."""
        loss = torch.tensor(2.0).log()
        return BatchScore(loss=loss, score=0.5, count=len(graphs))


def draw_centers(groups: Tensor, generator: torch.Generator) -> Tensor:
    """A node of each graph, drawn at random: its position, `[B]`."""
    sizes = torch.bincount(groups.cpu())
    share = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    return (sizes.cumsum(0) - sizes + (share * sizes).long()).to(groups.device)


def node_subgraph(graphs: "GraphBatch", chosen: Tensor) -> "GraphBatch":
    """Some nodes of graphs, `[R]` of bool, and the edges between them."""
    return type(graphs)(graphs.batch.subgraph(chosen))


def count_hops(graphs: "GraphBatch", centers: Tensor, max_hops: int) -> Tensor:
    """Count the edges from each node to its graph's center `[R]`; `max_hops` + 1 for more."""
    source, target = graphs.edge_index
    hops = torch.full((len(graphs.x),), max_hops + 1, device=source.device)
    hops[centers] = 0
    for distance in range(1, max_hops + 1):
        found = target[(hops[source] == distance - 1) & (hops[target] > distance)]
        hops[found] = distance
    return hops


def _means(features: Tensor, number: Tensor, count: int) -> Tensor:
    sums = features.new_zeros(count, features.shape[1]).index_add(0, number, features)
    sizes = torch.bincount(number, minlength=count)
    return sums / sizes[:, None]
