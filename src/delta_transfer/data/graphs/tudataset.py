"""`tu/<NAME>`: the datasets of TUDataset, tested by tenfold cross-validation."""

import re
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.nn.functional import one_hot
from torch_geometric.data import Data
from torch_geometric.datasets import TUDataset
from torch_geometric.io import read_tu_data, read_txt_array
from torch_geometric.utils import degree

from delta_transfer.data.download import download_dataset, format_error, resolve_data_root
from delta_transfer.data.names import TU as PREFIX
from delta_transfer.data.sources.listing import candidate_folders, find_ignoring_case
from delta_transfer.data.splits import SplitOptions, check_min_per_class, hold_out
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import ConfigError, DataError
from delta_transfer.utils.seeds import derive_seed

MAX_DEGREE = 100
"""The highest degree in the features of nodes without labels and attributes."""

_FOLDS = 10
_FOLD_FOLDERS = ("10fold_idx", "folds_src/10fold_idx")
_DATASETS_URL = "https://chrsmrrs.github.io/datasets"
_INDICATOR_SUFFIX = "_graph_indicator.txt"  # of the name of a file that each dataset has


@lru_cache(maxsize=4)
def read_graphs(folder: str, name: str) -> tuple[Data, ...]:
    """Read the graphs of a dataset, with a row of numbers for each node.

    These are its attributes and its one-hot label; where nodes have neither, the one-hot degree.
    Labels of edges are left out, and so are edges from a node to itself.

    Args:
        folder: of the text files; nothing is written to it.
        name: the beginning of their names.

    Returns:
        The graphs, which are cached and must not be written to.

    Raises:
        ValueError: if the files are inconsistent; PyTorch Geometric and the system may raise
            others.
    """
    indicator = _numbers(folder, f"{name}_graph_indicator")
    if indicator.min() != 1 or (indicator.diff() < 0).any():
        raise ValueError("the nodes' graph numbers must start at 1 and be in order")
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
    """Read the classes of a dataset, and the class of each graph.

    Args:
        folder: of the text files.
        name: the beginning of their names.

    Raises:
        ValueError: if graphs have several labels.
    """
    labels = _numbers(folder, f"{name}_graph_labels")
    if labels.ndim != 1:
        raise ValueError("each graph must have one label")
    names, indices = np.unique(labels.numpy(), return_inverse=True)
    return tuple(str(int(label)) for label in names), tuple(indices.tolist())


def read_folds(folder: Path, num_graphs: int) -> list[list[int]] | None:
    """Read the published test folds of a dataset; return None if there are none.

    Args:
        folder: of the text files.
        num_graphs: in the dataset.

    Raises:
        ValueError: if they are not ten, or share a graph.
    """
    own = folder.parent if folder.name.lower() == "raw" else folder
    for place in (base / name for base in (own, folder) for name in _FOLD_FOLDERS):
        if place.is_dir():
            files = [place / f"test_idx-{number}.txt" for number in range(1, _FOLDS + 1)]
            folds = [sorted(map(int, file.read_text().split())) for file in files]
            tested = [index for fold in folds for index in fold]
            if len(set(tested)) < len(tested) or not set(tested) <= set(range(num_graphs)):
                raise ValueError(
                    f"the folds in '{place}' must have each of the {num_graphs} graphs at most "
                    "once, counted from 0"
                )
            return folds
    return None


def _numbers(folder: str, name: str) -> Tensor:
    numbers: Tensor = read_txt_array(f"{folder}/{name}.txt", sep=",", dtype=torch.long)
    return numbers


def _degrees(ends: tuple[Tensor, ...], nodes: Tensor) -> list[Tensor]:
    """Return the one-hot degree of each node of each graph."""
    found = [
        degree(one[0], count, dtype=torch.long).clamp_max(MAX_DEGREE)
        for one, count in zip(ends, nodes.tolist(), strict=True)
    ]
    kinds = int(torch.cat(found).max()) + 1
    return [one_hot(degrees, kinds).float() for degrees in found]


@dataclass(frozen=True)
class GraphReader:
    """Reads a graph by a path such as `PROTEINS/0012`; a process reads the files once.

    Args:
        folder: of the text files.
        name: the beginning of their names.
    """

    folder: str
    name: str

    def __call__(self, path: str) -> Data:
        """Return the graph, which must not be written to."""
        return read_graphs(self.folder, self.name)[int(path.rpartition("/")[2])]


def load_tu(name: str, options: SplitOptions, data_root: str | None) -> TaskData:
    """Load a dataset of TUDataset: seed s is tested on fold s mod 10.

    So ten consecutive seeds are a tenfold cross-validation. The folds are the published ones, if
    they are beside the files in `10fold_idx` or `folds_src/10fold_idx`; else stratified ones, drawn
    by scikit-learn as for GIN (Xu et al., https://arxiv.org/abs/1810.00826), the same for every
    seed.

    Args:
        name: of the dataset, such as PROTEINS.
        options: the seed selects the fold, and draws the validation split; `test_split` must be the
            default.
        data_root: the folder of the text files, which may also be in `NAME/raw` or `NAME`; they are
            downloaded there if missing. None for `default_data_root()`.

    Returns:
        The dataset; its paths are the name and the number of the graph, from 0.

    Raises:
        UserError: if the files are not as expected, or are missing and cannot be downloaded.
    """
    if not re.fullmatch(r"[\w-]+", name, flags=re.ASCII):
        raise ConfigError(
            f"'{PREFIX}{name}' is not the name of a dataset: choose one from {_DATASETS_URL}"
        )
    root = resolve_data_root(data_root)
    file = _locate(name, root) or _download(name, root)
    key = file.name[: -len(_INDICATOR_SUFFIX)]
    title, folder, seed = PREFIX + key, str(file.parent), options.seed
    options.refuse_test_split(title)
    try:
        classes, labels = read_classes(folder, key)
        graphs = read_graphs(folder, key)
        if len(labels) != len(graphs):
            raise ValueError(f"there are {len(graphs)} graphs, and labels of {len(labels)}")
        published = read_folds(file.parent, len(graphs))
    # Damaged or missing files may raise anything in PyTorch Geometric.
    except Exception as error:
        raise DataError(
            f"the files of {title} in '{folder}' cannot be used ({format_error(error)}): "
            f"download them again from {_DATASETS_URL}"
        ) from error
    everything = Split(
        paths=tuple(f"{key}/{index:04d}" for index in range(len(graphs))),
        labels=labels,
        read=GraphReader(folder, key),
        sample_type="graph",
    )
    check_min_per_class(
        everything,
        2,
        classes=classes,
        purpose=f"{title}, to train and test on,",
        hint="choose another dataset, or, if the files are incomplete, download them again",
    )
    folds = published or _draw_folds(labels, title)
    test = set(folds[seed % _FOLDS])
    rest = everything.subset(index for index in range(len(graphs)) if index not in test)
    check_min_per_class(
        rest,
        2,
        classes=classes,
        purpose="drawing a validation split",
        hint="choose another seed, and so another fold",
    )
    val_seed = derive_seed(seed, title, "validation")
    train, val = hold_out(rest, options.val_fraction, seed=val_seed)
    kind = "published" if published else "stratified"
    return TaskData(
        name=title,
        classes=classes,
        train=train,
        val=val,
        test=everything.subset(sorted(test)),
        notes=(
            f"tested on fold {seed % _FOLDS} (from 0) of {_FOLDS} {kind} ones, by `seed={seed}`; "
            "seeds 0 to 9 are a cross-validation",
            f"no validation split: {100 * options.val_fraction:g}% of the other graphs "
            f"({len(val)}), stratified, seed {seed}, is held out",
        ),
        val_drawn=True,
    )


def is_available(name: str, root: Path) -> bool:
    """Return whether the files of a dataset are below a folder."""
    return _locate(name, root) is not None


def _draw_folds(labels: tuple[int, ...], title: str) -> list[list[int]]:
    most = max(Counter(labels).values())
    if most < _FOLDS:
        raise DataError(
            f"{title} has only {most} graphs in its largest class, and needs {_FOLDS}, one per "
            "fold: choose another dataset"
        )
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # A class with fewer graphs than folds is tested in as many folds as it has graphs.
        warnings.filterwarnings("ignore", "The least populated class")
        return [test.tolist() for _, test in folds.split(np.zeros(len(labels)), labels)]


def _locate(name: str, root: Path) -> Path | None:
    """Return a dataset's file with the graph of each node; None if it is missing."""
    found = (
        file
        for folder in candidate_folders(root, name)
        for file in find_ignoring_case(folder, name + _INDICATOR_SUFFIX)
    )
    return next((file for file in found if file.is_file()), None)


def _download(name: str, root: Path) -> Path:
    """Download the files of a dataset, and return that of `_locate`."""
    url, target = f"{TUDataset.url}/{name}.zip", root / name / "raw"

    def fetch(folder: Path) -> None:
        archive = folder / f"{name}.zip"
        torch.hub.download_url_to_file(url, str(archive), progress=False)
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)
        (folder / name).rename(folder / target.name)

    hint = f"check its name in {_DATASETS_URL}, or unpack {url} to '{target}'"
    download_dataset(PREFIX + name, target, fetch, root=root, hint=hint)
    return target / (name + _INDICATOR_SUFFIX)
