"""A batch of graphs with a length, slices and a device, as a batch of images has."""

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
    """Graphs as one large graph in which no two of them are connected.

    Args:
        batch: of PyTorch Geometric.

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
        """Make a batch of graphs, at least one, all with the same kinds of features."""
        return GraphBatch(Batch.from_data_list(list(graphs)))

    @staticmethod
    def cat(parts: Sequence["GraphBatch"]) -> "GraphBatch":
        """Concatenate batches, at least one."""
        return GraphBatch.from_data_list(
            [graph for part in parts for graph in part.batch.to_data_list()]
        )

    @property
    def x(self) -> Tensor:
        """The features of each node, `[R, F]`."""
        return cast("Tensor", self.batch.x)

    @property
    def edge_index(self) -> Tensor:
        """The nodes at both ends of each edge, `[2, E]`."""
        return cast("Tensor", self.batch.edge_index)

    @property
    def edge_attr(self) -> Tensor | None:
        """The features of each edge, `[E, A]`; None without any."""
        return cast("Tensor | None", self.batch.edge_attr)

    @property
    def groups(self) -> Tensor:
        """The index of each node's graph, `[R]`, ascending."""
        return cast("Tensor", self.batch.batch)

    @property
    def device(self) -> torch.device:
        """The device of the graphs."""
        return self.groups.device

    def __len__(self) -> int:
        return int(self.batch.num_graphs)

    def __getitem__(self, chosen: slice) -> "GraphBatch":
        """Return some of the graphs, at least one, in the order of the slice."""
        return GraphBatch.from_data_list(self.batch[chosen])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "GraphBatch":
        """Return the graphs on a device."""
        return GraphBatch(copy.copy(self.batch).to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "GraphBatch":
        """Return the graphs in pinned memory."""
        return GraphBatch(copy.copy(self.batch).pin_memory())
