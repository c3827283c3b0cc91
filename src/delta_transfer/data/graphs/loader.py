"""The torch Dataset and DataLoader of graphs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torch_geometric.data import Data

from delta_transfer.data.graphs.batch import GraphBatch
from delta_transfer.data.images.loader import DeviceDataLoader, ignore_stops
from delta_transfer.data.task import Split


class GraphDataset(Dataset[tuple[Data, Any]]):
    """The graphs of a split and their targets.

    Args:
        split: the graphs.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Data, Any]:
        """Return the graph, which must not be written to, and its target.

        Args:
            key: an index, or (epoch, index) as from `EpochSampler`.
        """
        index = key[1] if isinstance(key, tuple) else key
        return self.split.read(self.split.paths[index]), self.split.labels[index]


def collate_graphs(samples: Sequence[tuple[Data, Any]]) -> tuple[GraphBatch, Tensor]:
    """Collate graphs and their targets: classes `[B]`, or float32 `[B, K]`.

    Example:
        >>> edges = torch.tensor([[0], [1]])
        >>> graph = Data(x=torch.ones(2, 1), edge_index=edges)
        >>> graphs, targets = collate_graphs([(graph, (1.0, float("nan")))])
        >>> len(graphs), targets
        (1, tensor([[1., nan]]))
    """
    graphs, targets = zip(*samples, strict=True)
    dtype = torch.long if isinstance(targets[0], int) else torch.float32
    return GraphBatch.from_data_list(graphs), torch.tensor(targets, dtype=dtype)


def graph_dataloader(
    split: Split,
    *,
    batch_size: int,
    device: torch.device,
    sampler: Sampler[tuple[int, int]] | None = None,
    drop_last: bool = False,
    num_workers: int = 0,
) -> DeviceDataLoader:
    """Load batches of graphs on a device.

    Args:
        split: the graphs.
        batch_size: the number of graphs in each batch but the last.
        device: of the graphs; targets stay on the CPU.
        sampler: an `EpochSampler` or a `DistributedEpochSampler`; the order of the split by
            default.
        drop_last: leave out a last batch that is smaller.
        num_workers: of the DataLoader; graphs are small and cached, so that 0 is as fast as any.
    """
    return DeviceDataLoader(
        GraphDataset(split),
        normalise=_identity,
        device=device,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=collate_graphs,
        worker_init_fn=ignore_stops,
    )


def _identity(inputs: Any) -> Any:
    return inputs
