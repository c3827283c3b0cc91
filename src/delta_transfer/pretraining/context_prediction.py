"""Context prediction: match the neighbourhood of a node to its surrounding context."""

from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.backbones.graph_network import GraphNetwork
from delta_transfer.pretraining.base import BatchScore, PretextTask

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from delta_transfer.data.graphs.batch import GraphBatch


_CONTEXT_WIDTH = 3  # width of the context in edges, and layers of its network


@final
class ContextPrediction(PretextTask):
    """Classify whether a context belongs to a node or to a node of another graph.

    As in [Hu et al. 2020](https://arxiv.org/abs/1905.12265), a center is drawn in each graph. The
    network, of K layers, is applied to the nodes at most K edges away and returns the center's
    features u. A second network, of three layers, is applied to the context, the nodes K - 1 to
    K + 2 edges away; v is the mean of its features over the nodes that are in both. Logits are
    (A u + b) . v / sqrt(width), for v of the same graph (positive) and of the next one (negative).
    Graphs without a context are left out.

    Hu et al. use u . v, which cannot be negative where features are above zero, and did not train
    on a few thousand molecules.

    Args:
        context_network: a network like the one in training, with its own weights; its first two
            layers and its last one are used.
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
        """See `PretextTask`."""
        reach = len(network.layers)
        inner = max(1, reach - 1)
        outer = inner + _CONTEXT_WIDTH
        hops = count_hops(graphs, draw_centers(graphs.groups, generator), outer)
        shared = (hops >= inner) & (hops <= reach)
        has_context = torch.zeros(len(graphs), dtype=torch.bool, device=hops.device)
        has_context[graphs.groups[shared]] = True
        if int(has_context.sum()) < 2:
            return None
        used = has_context[graphs.groups]
        near, far = used & (hops <= reach), used & (hops >= inner) & (hops <= outer)
        centers = network.node_embeddings(_node_subgraph(graphs, near))[hops[near] == 0]
        features = self.context_network.node_embeddings(_node_subgraph(graphs, far))[shared[far]]
        number = (has_context.cumsum(0) - 1)[graphs.groups[far][shared[far]]]
        context = _means(features, number, len(centers))
        query = self.head(centers) / centers.shape[1] ** 0.5
        positive = (query * context).sum(dim=1)
        negative = (query * context.roll(-1, 0)).sum(dim=1)
        logits = torch.cat([positive, negative])
        targets = torch.zeros_like(logits)
        targets[: len(centers)] = 1
        accuracy = float(((logits > 0) == (targets > 0)).float().mean())
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        return BatchScore(loss=loss, score=accuracy, count=len(logits))

    def score_baseline(self, graphs: "GraphBatch", generator: torch.Generator) -> BatchScore:
        """Predict a probability of one half for all pairs."""
        loss = torch.tensor(2.0).log()
        return BatchScore(loss=loss, score=0.5, count=len(graphs))


def draw_centers(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a node of each graph; return their indices, `[B]`."""
    sizes = torch.bincount(groups.cpu())
    drawn = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    return (sizes.cumsum(0) - sizes + (drawn * sizes).long()).to(groups.device)


def _node_subgraph(graphs: "GraphBatch", chosen: Tensor) -> "GraphBatch":
    """Return the nodes in a mask `[R]`, and the edges between them."""
    return type(graphs)(graphs.batch.subgraph(chosen))


def count_hops(graphs: "GraphBatch", centers: Tensor, max_hops: int) -> Tensor:
    """Count the edges from each node to its graph's center, `[R]`; `max_hops` + 1 for more."""
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
