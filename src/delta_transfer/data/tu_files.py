"""The text files of a data set of TUDataset: its graphs, their classes, and published folds."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch_geometric.data import Data
from torch_geometric.io import read_tu_data, read_txt_array
from torch_geometric.utils import degree

FOLDS = 10

MOST_DEGREES = 100
"""The highest degree by which nodes without features are told apart."""

_FOLDS_IN = ("10fold_idx", "folds_src/10fold_idx")


@lru_cache(maxsize=4)
def read_graphs(folder: str, name: str) -> tuple[Data, ...]:
    """The graphs of a data set, with a row of numbers for each node.

    These are its attributes and its label, one-hot; where nodes have neither, the degree, likewise.
    Labels of edges are left out, and so are edges from a node to itself.

    Args:
        folder: where the text files are; nothing is written to it.
        name: what their names begin with.

    Returns:
        The graphs, which are not to be written to: the process keeps them.

    Raises:
        ValueError: if the files do not belong together; PyTorch Geometric and the system may raise
            others.
    """
    indicator = _numbers(folder, f"{name}_graph_indicator")
    if indicator.min() != 1 or (indicator.diff() < 0).any():
        raise ValueError("the graphs of the nodes must be counted from 1 and in order")
    data, slices, _ = read_tu_data(folder, name)
    nodes = torch.bincount(indicator - 1)
    edges = slices["edge_index"].diff().tolist()
    edges += [0] * (len(nodes) - len(edges))  # of the last graphs, if they have none
    ends = data.edge_index.split(edges, dim=1)
    for one, count in zip(ends, nodes.tolist(), strict=True):
        if one.numel() and not 0 <= int(one.min()) <= int(one.max()) < count:
            raise ValueError("an edge must join two nodes of one graph")
    rows = _degrees(ends, nodes) if data.x is None else data.x.float().split(nodes.tolist())
    return tuple(Data(x=x, edge_index=one) for x, one in zip(rows, ends, strict=True))


def read_classes(folder: str, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes of a data set, and that of each graph.

    Args:
        folder: where the text files are.
        name: what their names begin with.

    Raises:
        ValueError: if graphs have several labels.
    """
    labels = _numbers(folder, f"{name}_graph_labels")
    if labels.ndim != 1:
        raise ValueError("each graph must have one label")
    names, indices = np.unique(labels.numpy(), return_inverse=True)
    return tuple(str(int(label)) for label in names), tuple(indices.tolist())


def read_folds(folder: Path, graphs: int) -> list[list[int]] | None:
    """The published test folds of a data set; None if there are none.

    Args:
        folder: where the text files are, in a folder of their own or with others.
        graphs: how many there are.

    Raises:
        ValueError: if they are not ten, or share a graph.
    """
    own = folder.parent if folder.name.lower() == "raw" else folder
    for place in (base / name for base in (own, folder) for name in _FOLDS_IN):
        if place.is_dir():
            files = [place / f"test_idx-{number}.txt" for number in range(1, FOLDS + 1)]
            folds = [sorted(map(int, file.read_text().split())) for file in files]
            tested = [index for fold in folds for index in fold]
            if len(set(tested)) < len(tested) or not set(tested) <= set(range(graphs)):
                raise ValueError(
                    f"the folds in '{place}' must have each of the {graphs} graphs once at most, "
                    "counted from 0"
                )
            return folds
    return None


def _numbers(folder: str, name: str) -> Tensor:
    numbers: Tensor = read_txt_array(f"{folder}/{name}.txt", sep=",", dtype=torch.long)
    return numbers


def _degrees(ends: tuple[Tensor, ...], nodes: Tensor) -> list[Tensor]:
    """The degree of each node of each graph, one-hot."""
    found = [
        degree(one[0], count, dtype=torch.long).clamp_max(MOST_DEGREES)
        for one, count in zip(ends, nodes.tolist(), strict=True)
    ]
    kinds = int(torch.cat(found).max()) + 1
    return [one_hot(degrees, kinds).float() for degrees in found]
