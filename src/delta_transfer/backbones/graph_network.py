"""A network on graphs: an embedding of nodes, layers, one vector for each graph, a head."""

from collections.abc import Callable, Iterable
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import GraphInputs

NUM_ATOM_TYPES, NUM_CHIRALITY_TAGS = 120, 3  # the last atom stands for one that is masked
MASKED_ATOM = NUM_ATOM_TYPES - 1


@final
class AtomEmbedding(nn.Module):
    """Atoms as vectors: one for the element and one for the chirality, added.

    Args:
        width: of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x_embedding1 = nn.Embedding(NUM_ATOM_TYPES, width)
        self.x_embedding2 = nn.Embedding(NUM_CHIRALITY_TAGS, width)
        for table in (self.x_embedding1, self.x_embedding2):
            nn.init.xavier_uniform_(table.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Atoms `[R, 2]`, int64, as vectors `[R, width]`."""
        return cast("Tensor", self.x_embedding1(x[:, 0]) + self.x_embedding2(x[:, 1]))


@final
class Pool(nn.Module):
    """The sum over the nodes of each graph, divided by a power of their number.

    Args:
        power: 1 for the mean, which does not see how large a graph is; 0.5 lets it be seen.
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor, graphs: GraphInputs) -> Tensor:
        """Node features `[R, C]` as features of graphs `[B, C]`; zero for one without nodes."""
        groups, count = graphs.groups, len(graphs)
        sums = x.new_zeros(count, x.shape[1]).index_add(0, groups, x)
        sizes = torch.bincount(groups, minlength=count).clamp(min=1)
        return sums / sizes[:, None].to(x.dtype) ** self.power


@final
class GraphNetwork(nn.Module):
    """Node features, layer by layer, one vector of them for each graph, and a linear head.

    Taps: `layers.0`, `layers.1` ... for node features `[R, C]`, `pool` for those of graphs
    `[B, C]`.

    Args:
        embedding: what is known of nodes `[R, F]` -> their first features `[R, C]`.
        layers: features of nodes and what `encode_edges` says of the edges -> features `[R,
            width]`.
        encode_edges: the graphs, and the dtype to calculate in -> what each layer is told of the
            edges.
        width: how many features a node has after the last layer.
        num_outputs: outputs of the head.
        pool: node features and the graphs -> features of graphs `[B, width]`.
    """

    def __init__(
        self,
        embedding: nn.Module,
        layers: Iterable[nn.Module],
        *,
        encode_edges: Callable[[GraphInputs, torch.dtype], Any],
        width: int,
        num_outputs: int,
        pool: nn.Module,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.encode_edges = encode_edges
        self.pool = pool
        self.head = nn.Linear(width, num_outputs)
        # As timm's networks say where their stages end, by which auto taps are chosen.
        last = range(len(self.layers))[-4:]
        self.feature_info = [{"module": f"layers.{i}", "reduction": 1} for i in last]

    def node_embeddings(self, graphs: GraphInputs) -> Tensor:
        """The features of each node after the last layer, `[R, width]`."""
        x = self.embedding(graphs.x)
        joins = self.encode_edges(graphs, x.dtype)
        for layer in self.layers:
            x = layer(x, joins)
        return cast("Tensor", x)

    def forward(self, graphs: GraphInputs) -> Tensor:
        """The logits of each graph, `[B, num_outputs]`."""
        return cast("Tensor", self.head(self.pool(self.node_embeddings(graphs), graphs)))
