"""Attribute masking: what some nodes are is hidden, and told from their neighbours."""

import copy
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.graph_network import MASKED_ATOM, NUM_ATOM_TYPES, GraphNetwork
from delta_transfer.pretraining.base import BatchScore, PretextTask

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from delta_transfer.data.graphs.batch import GraphBatch


@final
class AttributeMasking(PretextTask):
    """Says by the features of hidden nodes what they are.

    As in [Hu et al. 2020](https://arxiv.org/abs/1905.12265) for atoms, where that is the element.
    Numbers that are one-hot in all nodes, such as labels of nodes in TUDataset, are classes too;
    other numbers are told themselves, each in the unit of its standard deviation.

    Args:
        spec: what is known of nodes.
        x: of the nodes to learn from, `[R, F]`.
        width: features of a node.
        rate: the share of each graph's nodes that is hidden; at least one is.
    """

    center: Tensor
    scale: Tensor
    usual: Tensor

    def __init__(self, spec: GraphSpec, x: Tensor, *, width: int, rate: float) -> None:
        super().__init__()
        self.has_atoms = spec.node_features == "atoms"
        self.is_categorical = self.has_atoms or _is_one_hot(x)
        self.metric_name = "accuracy" if self.is_categorical else "share of variance explained"
        self.rate = rate
        self.head = nn.Linear(
            width, NUM_ATOM_TYPES - 1 if self.has_atoms else spec.num_node_features
        )
        numbers = x.float()
        scale = numbers.std(dim=0, correction=0)
        self.register_buffer("center", numbers.mean(dim=0))
        self.register_buffer("scale", torch.where(scale > 0, scale, torch.ones_like(scale)))
        counts = torch.bincount(self._kinds(x), minlength=self.head.out_features)
        self.register_buffer("usual", counts.argmax())

    def forward(
        self, network: GraphNetwork, graphs: "GraphBatch", generator: torch.Generator
    ) -> BatchScore:
        """See `Pretext`."""
        hidden = draw_masked_nodes(graphs.groups, self.rate, generator)
        x = graphs.x.clone()
        x[hidden] = 0
        if self.has_atoms:
            x[hidden, 0] = MASKED_ATOM
        masked = copy.copy(graphs.batch)
        masked.x = x
        features = network.node_embeddings(type(graphs)(masked))[hidden]
        return self._score(self.head(features), graphs.x[hidden])

    def score_baseline(self, graphs: "GraphBatch", generator: torch.Generator) -> BatchScore:
        """See `Pretext`: the most common class, or the mean."""
        hidden = draw_masked_nodes(graphs.groups, self.rate, generator)
        outputs = self.head.weight.new_zeros(len(hidden), self.head.out_features)
        outputs[:, self.usual] = float(self.is_categorical)
        return self._score(outputs, graphs.x[hidden])

    def _kinds(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.has_atoms else x.argmax(dim=1)

    def _score(self, outputs: Tensor, x: Tensor) -> BatchScore:
        if self.is_categorical:
            kinds = self._kinds(x)
            right = float((outputs.argmax(dim=1) == kinds).float().mean())
            return BatchScore(loss=F.cross_entropy(outputs, kinds), score=right, count=len(kinds))
        loss = F.mse_loss(outputs, (x - self.center) / self.scale)
        return BatchScore(loss=loss, score=1 - float(loss.detach()), count=len(x))


def draw_masked_nodes(groups: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """The nodes that are hidden: `floor(rate n + 1)` of the n of each graph, drawn at random.

    Args:
        groups: the graph of each node, ascending, `[R]`.
        rate: above 0, below 1.
        generator: of the CPU.

    Returns:
        Their positions, ascending, on the device of the groups.

    Example:
        >>> groups = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
        >>> groups[draw_masked_nodes(groups, 0.15, torch.Generator())].tolist()
        [0, 0, 1]
    """
    there = groups.cpu()
    sizes = torch.bincount(there)
    order = torch.randperm(len(there), generator=generator)
    order = order[torch.argsort(there[order], stable=True)]  # at random within each graph
    rank = torch.arange(len(there)) - (sizes.cumsum(0) - sizes)[there]
    hidden = order[rank < (sizes * rate + 1).long()[there]]
    return hidden.sort().values.to(groups.device)


def _is_one_hot(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all()) and bool((x.sum(dim=1) == 1).all())
