"""`tu/<NAME>`: the data sets of TUDataset, tested by tenfold cross-validation."""

import logging
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

from delta_transfer.data.download import default_data_root, download_folder, format_error
from delta_transfer.data.names import TU as PREFIX
from delta_transfer.data.sources.local_files import candidate_folders, find_ignoring_case
from delta_transfer.data.splits import check_min_per_class, hold_out, refuse_test_split
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError
from delta_transfer.utils.paths import user_path
from delta_transfer.utils.seeds import derive_seed

FOLDS = 10

MAX_DEGREE = 100
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


def read_folds(folder: Path, num_graphs: int) -> list[list[int]] | None:
    """The published test folds of a data set; None if there are none.

    Args:
        folder: where the text files are, in a folder of their own or with others.
        num_graphs: how many there are.

    Raises:
        ValueError: if they are not ten, or share a graph.
    """
    own = folder.parent if folder.name.lower() == "raw" else folder
    for place in (base / name for base in (own, folder) for name in _FOLDS_IN):
        if place.is_dir():
            files = [place / f"test_idx-{number}.txt" for number in range(1, FOLDS + 1)]
            folds = [sorted(map(int, file.read_text().split())) for file in files]
            tested = [index for fold in folds for index in fold]
            if len(set(tested)) < len(tested) or not set(tested) <= set(range(num_graphs)):
                raise ValueError(
                    f"the folds in '{place}' must have each of the {num_graphs} graphs once at "
                    "most, "
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
        degree(one[0], count, dtype=torch.long).clamp_max(MAX_DEGREE)
        for one, count in zip(ends, nodes.tolist(), strict=True)
    ]
    kinds = int(torch.cat(found).max()) + 1
    return [one_hot(degrees, kinds).float() for degrees in found]


logger = logging.getLogger(__name__)

_DATASETS_URL = "https://chrsmrrs.github.io/datasets"
_INDICATOR_SUFFIX = "_graph_indicator.txt"  # of the name of a file that each data set has


@dataclass(frozen=True)
class GraphReader:
    """Reads a graph by a path such as `PROTEINS/0012`; each process reads the files once.

    Args:
        folder: where the text files are.
        name: what their names begin with.
    """

    folder: str
    name: str

    def __call__(self, path: str) -> Data:
        """The graph, which is not to be written to."""
        return read_graphs(self.folder, self.name)[int(path.rpartition("/")[2])]


def load_tu(
    name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
) -> TaskData:
    """The task of a data set of TUDataset: seed s is tested on fold s mod 10.

    So ten seeds in a row are a tenfold cross-validation. The folds are the published ones, if they
    lie beside the files, in `10fold_idx` or `folds_src/10fold_idx`; else stratified ones, which
    scikit-learn draws as for GIN (Xu et al., https://arxiv.org/abs/1810.00826), the same for every
    seed.

    Args:
        name: of the data set, such as PROTEINS.
        seed: names the fold, and draws the validation split.
        val_fraction: the part of the other graphs that is held out for validation, class by class.
        test_split: must be the default.
        data_root: where the text files lie, in `NAME/raw`, `NAME` or the folder itself; downloaded
            to it if there are none. None for `default_data_root()`.

    Returns:
        The task; its paths are the name and the number of the graph, from 0.

    Raises:
        UserError: if the files are not as they must be, or are not there and cannot be downloaded.
    """
    if not re.fullmatch(r"[\w-]+", name, flags=re.ASCII):
        raise UserError(
            f"'{PREFIX}{name}' is no name of a data set: choose one from {_DATASETS_URL}"
        )
    root = default_data_root() if data_root is None else user_path(data_root)
    file = _locate(name, root) or _download(name, root)
    key = file.name[: -len(_INDICATOR_SUFFIX)]
    title, folder = PREFIX + key, str(file.parent)
    refuse_test_split(title, test_split)
    try:
        classes, labels = read_classes(folder, key)
        graphs = read_graphs(folder, key)
        if len(labels) != len(graphs):
            raise ValueError(f"there are {len(graphs)} graphs, and labels of {len(labels)}")
        published = read_folds(file.parent, len(graphs))
    # Files that are damaged or lacking may raise anything in PyTorch Geometric.
    except Exception as error:
        raise UserError(
            f"the files of {title} in '{folder}' cannot be used ({format_error(error)}): get "
            f"them again from {_DATASETS_URL}"
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
        purpose=f"{title}, to be learnt from and tested on,",
        hint="it cannot be used; if it should have more, the files are not whole: get them again",
    )
    folds = published or _draw(labels, title)
    test = set(folds[seed % FOLDS])
    rest = everything.subset(index for index in range(len(graphs)) if index not in test)
    check_min_per_class(
        rest,
        2,
        classes=classes,
        purpose="drawing a validation split",
        hint="choose another seed, and so another fold",
    )
    train, val = hold_out(rest, val_fraction, seed=derive_seed(seed, title, "validation"))
    kind = "published" if published else "stratified"
    return TaskData(
        name=title,
        classes=classes,
        train=train,
        val=val,
        test=everything.subset(sorted(test)),
        notes=(
            f"tested on fold {seed % FOLDS} of the {FOLDS} {kind} ones, counted from 0, as --seed "
            f"{seed} says; seeds 0 to 9 are a cross-validation",
            f"no validation split: {100 * val_fraction:g}% of the other graphs ({len(val)}), "
            f"stratified, seed {seed}, is held out",
        ),
        val_drawn=True,
        kind="graphs",
    )


def is_available(name: str, root: Path) -> bool:
    """Whether the files of a data set of this name lie below a folder."""
    return _locate(name, root) is not None


def _draw(labels: tuple[int, ...], title: str) -> list[list[int]]:
    most = max(Counter(labels).values())
    if most < FOLDS:
        raise UserError(
            f"{title} is tested in {FOLDS} folds, for which its largest class has too few graphs, "
            f"{most}: take another data set"
        )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # A class with fewer graphs than folds is tested in as many folds as it has graphs.
        warnings.filterwarnings("ignore", "The least populated class")
        return [test.tolist() for _, test in folds.split(np.zeros(len(labels)), labels)]


def _locate(name: str, root: Path) -> Path | None:
    """The file of a data set that tells the graph of each node; None if there is none."""
    found = (
        file
        for folder in candidate_folders(root, name)
        for file in find_ignoring_case(folder, name + _INDICATOR_SUFFIX)
    )
    return next((file for file in found if file.is_file()), None)


def _download(name: str, root: Path) -> Path:
    """That file, downloaded with the others to their place below a folder."""
    url, target = f"{TUDataset.url}/{name}.zip", root / name / "raw"

    def fetch(folder: Path) -> None:
        archive = folder / f"{name}.zip"
        torch.hub.download_url_to_file(url, str(archive), progress=False)
        with zipfile.ZipFile(archive) as files:
            files.extractall(folder)
        (folder / name).rename(folder / target.name)

    logger.info("downloading %s to %s", PREFIX + name, target)
    try:
        download_folder(target, fetch)
    # Anything may come: of the connection, the server, the archive, the disk.
    except Exception as error:
        raise UserError(
            f"{PREFIX}{name} is not in '{root}', and downloading it failed "
            f"({format_error(error)}). Look for its name in {_DATASETS_URL} and try again, or "
            "unpack "
            f"{url} to '{target}'; --data-root names another folder to look in"
        ) from error
    return target / (name + _INDICATOR_SUFFIX)
