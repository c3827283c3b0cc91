"""Attribute masking: predict the masked features of nodes from their neighbours."""

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
    """Predict the features of masked nodes.

    For atoms the target is the element, as in [Hu et al.
    2020](https://arxiv.org/abs/1905.12265). Numbers that are one-hot in all nodes, such as node
    labels in TUDataset, are classes too; other numbers are regression targets, standardised.

    Args:
        spec: the node features.
        x: features of the training nodes, `[R, F]`.
        width: features of a node in the network.
        rate: fraction of each graph's nodes to mask; at least one is masked.
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
        counts = torch.bincount(self._classes(x), minlength=self.head.out_features)
        self.register_buffer("usual", counts.argmax())

    def forward(
        self, network: GraphNetwork, graphs: "GraphBatch", generator: torch.Generator
    ) -> BatchScore:
        """See `PretextTask`."""
        masked = draw_masked_nodes(graphs.groups, self.rate, generator)
        x = graphs.x.clone()
        x[masked] = 0
        if self.has_atoms:
            x[masked, 0] = MASKED_ATOM
        batch = copy.copy(graphs.batch)
        batch.x = x
        features = network.node_embeddings(type(graphs)(batch))[masked]
        return self._score(self.head(features), graphs.x[masked])

    def score_baseline(self, graphs: "GraphBatch", generator: torch.Generator) -> BatchScore:
        """Predict the most common class, or the mean."""
        masked = draw_masked_nodes(graphs.groups, self.rate, generator)
        outputs = self.head.weight.new_zeros(len(masked), self.head.out_features)
        outputs[:, self.usual] = float(self.is_categorical)
        return self._score(outputs, graphs.x[masked])

    def _classes(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.has_atoms else x.argmax(dim=1)

    def _score(self, outputs: Tensor, x: Tensor) -> BatchScore:
        if self.is_categorical:
            targets = self._classes(x)
            accuracy = float((outputs.argmax(dim=1) == targets).float().mean())
            loss = F.cross_entropy(outputs, targets)
            return BatchScore(loss=loss, score=accuracy, count=len(targets))
        loss = F.mse_loss(outputs, (x - self.center) / self.scale)
        return BatchScore(loss=loss, score=1 - float(loss.detach()), count=len(x))


def draw_masked_nodes(groups: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Draw the nodes to mask: `floor(rate n + 1)` of the n nodes of each graph.

    Args:
        groups: index of each node's graph, ascending, `[R]`.
        rate: above 0, below 1.
        generator: a generator on the CPU.

    Returns:
        Their indices, ascending, on the device of `groups`.

    Example:
        >>> groups = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
        >>> groups[draw_masked_nodes(groups, 0.15, torch.Generator())].tolist()
        [0, 0, 1]
    """
    graph = groups.cpu()
    sizes = torch.bincount(graph)
    order = torch.randperm(len(graph), generator=generator)
    order = order[torch.argsort(graph[order], stable=True)]  # random within each graph
    rank = torch.arange(len(graph)) - (sizes.cumsum(0) - sizes)[graph]
    masked = order[rank < (sizes * rate + 1).long()[graph]]
    return masked.sort().values.to(groups.device)


def _is_one_hot(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all()) and bool((x.sum(dim=1) == 1).all())
