"""A network for graphs: node embedding, layers, pooling and a head."""

from collections.abc import Callable, Iterable
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import GraphInputs

NUM_ATOM_TYPES, NUM_CHIRALITY_TAGS = 120, 3  # the last type is the mask token
MASKED_ATOM = NUM_ATOM_TYPES - 1


@final
class AtomEmbedding(nn.Module):
    """The sum of an embedding of the element and one of the chirality.

    Args:
        width: features of an atom.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x_embedding1 = nn.Embedding(NUM_ATOM_TYPES, width)
        self.x_embedding2 = nn.Embedding(NUM_CHIRALITY_TAGS, width)
        for table in (self.x_embedding1, self.x_embedding2):
            nn.init.xavier_uniform_(table.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Embed atoms `[R, 2]`, int64, as `[R, width]`."""
        return cast("Tensor", self.x_embedding1(x[:, 0]) + self.x_embedding2(x[:, 1]))


@final
class Pool(nn.Module):
    """The sum over the nodes of each graph, divided by a power of their number.

    Args:
        power: 1 for the mean, which is independent of a graph's size; 0.5 preserves the size.
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor, graphs: GraphInputs) -> Tensor:
        """Pool node features `[R, C]` to graph features `[B, C]`; zero without nodes."""
        groups, count = graphs.groups, len(graphs)
        sums = x.new_zeros(count, x.shape[1]).index_add(0, groups, x)
        sizes = torch.bincount(groups, minlength=count).clamp(min=1)
        return sums / sizes[:, None].to(x.dtype) ** self.power


@final
class GraphNetwork(nn.Module):
    """A graph network with a linear head on pooled node features.

    Taps: `layers.0`, `layers.1` ... for node features `[R, C]`, `pool` for graph features
    `[B, C]`.

    Args:
        embedding: raw node features `[R, F]` -> `[R, C]`.
        layers: node features and encoded edges -> `[R, width]`.
        encode_edges: the graphs and the dtype to compute in -> encoded edges, for each layer.
        width: features of a node after the last layer.
        num_outputs: outputs of the head.
        pool: node features and the graphs -> graph features `[B, width]`.
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
        # timm's attribute for the ends of stages, by which auto taps are chosen.
        last = range(len(self.layers))[-4:]
        self.feature_info = [{"module": f"layers.{i}", "reduction": 1} for i in last]

    def node_embeddings(self, graphs: GraphInputs) -> Tensor:
        """Return the node features after the last layer, `[R, width]`."""
        x = self.embedding(graphs.x)
        edges = self.encode_edges(graphs, x.dtype)
        for layer in self.layers:
            x = layer(x, edges)
        return cast("Tensor", x)

    def forward(self, graphs: GraphInputs) -> Tensor:
        """Return the logits of each graph, `[B, num_outputs]`."""
        return cast("Tensor", self.head(self.pool(self.node_embeddings(graphs), graphs)))
