"""Graphs as the inputs of a network: a batch of them that has a length, slices and a device."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data


@final
@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Some graphs side by side, as one large graph of which none is joined to another.

    Put together and taken apart by PyTorch Geometric.

    Args:
        batch: the graphs.

    Example:
        >>> triangle = Data(x=torch.ones(3, 1), edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]))
        >>> point = Data(x=torch.zeros(1, 1), edge_index=torch.empty(2, 0, dtype=torch.long))
        >>> graphs = GraphBatch.from_data_list([triangle, point, triangle])
        >>> len(graphs), graphs.groups.tolist(), len(graphs[1:])
        (3, [0, 0, 0, 1, 2, 2, 2], 2)
    """

    batch: Batch

    @staticmethod
    def from_data_list(graphs: Sequence[Data]) -> "GraphBatch":
        """These graphs, at least one, all with the same kinds of features."""
        return GraphBatch(Batch.from_data_list(list(graphs)))

    @staticmethod
    def cat(parts: Sequence["GraphBatch"]) -> "GraphBatch":
        """The graphs of several parts, at least one, as those of one."""
        return GraphBatch.from_data_list(
            [graph for part in parts for graph in part.batch.to_data_list()]
        )

    @property
    def x(self) -> Tensor:
        """What is known of each node, `[R, F]`."""
        return cast("Tensor", self.batch.x)

    @property
    def edge_index(self) -> Tensor:
        """From which node to which each edge leads, `[2, E]`."""
        return cast("Tensor", self.batch.edge_index)

    @property
    def edge_attr(self) -> Tensor | None:
        """What is known of each edge, `[E, A]`; None for nothing."""
        return cast("Tensor | None", self.batch.edge_attr)

    @property
    def groups(self) -> Tensor:
        """The graph of each node, `[R]`, ascending."""
        return cast("Tensor", self.batch.batch)

    @property
    def device(self) -> torch.device:
        """Where the graphs are."""
        return self.groups.device

    def __len__(self) -> int:
        return int(self.batch.num_graphs)

    def __getitem__(self, chosen: slice) -> "GraphBatch":
        """Some of the graphs, at least one, in the order of the slice."""
        return GraphBatch.from_data_list(self.batch[chosen])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "GraphBatch":
        """The graphs on a device."""
        return GraphBatch(copy.copy(self.batch).to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "GraphBatch":
        """The graphs in memory from which an accelerator copies fast."""
        return GraphBatch(copy.copy(self.batch).pin_memory())
