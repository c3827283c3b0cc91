"""`moleculenet/<name>`: the datasets of MoleculeNet, from a local file or downloaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from delta_transfer.data.download import download_dataset, resolve_data_root
from delta_transfer.data.molecules.options import SplitMethod
from delta_transfer.data.molecules.table import LAYOUT, read_molecules
from delta_transfer.data.molecules.task import draw_splits, make_task_data
from delta_transfer.data.names import MOLECULENET as PREFIX
from delta_transfer.data.names import find_dataset
from delta_transfer.data.sources.csv_rows import read_rows
from delta_transfer.data.sources.listing import candidate_folders, find_ignoring_case
from delta_transfer.data.splits import SplitOptions
from delta_transfer.data.task import TaskData
from delta_transfer.errors import DataError
from delta_transfer.utils.seeds import derive_seed

BASE_URL = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets"
"""The official location of the files."""

SPLIT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


@dataclass(frozen=True, kw_only=True)
class MoleculeSet:
    """A dataset of MoleculeNet.

    Attributes:
        file: its name in the archive.
        smiles_column: the column of the SMILES.
        label_columns: the columns of labels; if empty, all other columns of numbers.
        ignored_columns: columns of numbers that are not labels.
        kind: whether labels are binary, measured by ROC-AUC, or values, measured by RMSE.
        split: how the field draws the splits: by scaffold, as Hu et al. 2020 for binary labels
            (MoleculeNet recommends it for BBBP, BACE and HIV); at random, as MoleculeNet recommends
            for values.
        aliases: other accepted names of the dataset's folder.
    """

    file: str
    smiles_column: str = "smiles"
    label_columns: tuple[str, ...] = ()
    ignored_columns: tuple[str, ...] = ()
    kind: Literal["binary", "regression"] = "binary"
    split: Literal["scaffold", "random"] = "scaffold"
    aliases: tuple[str, ...] = ()


SETS: dict[str, MoleculeSet] = {
    "BBBP": MoleculeSet(file="BBBP.csv", ignored_columns=("num", "name")),
    "SIDER": MoleculeSet(file="sider.csv.gz"),
    "BACE": MoleculeSet(file="bace.csv", smiles_column="mol", label_columns=("Class",)),
    "ClinTox": MoleculeSet(file="clintox.csv.gz"),
    "Tox21": MoleculeSet(file="tox21.csv.gz", ignored_columns=("mol_id",)),
    "ToxCast": MoleculeSet(file="toxcast_data.csv.gz"),
    "HIV": MoleculeSet(file="HIV.csv", label_columns=("HIV_active",)),
    "MUV": MoleculeSet(file="muv.csv.gz", ignored_columns=("mol_id",)),
    "ESOL": MoleculeSet(
        file="delaney-processed.csv",
        label_columns=("measured log solubility in mols per litre",),
        kind="regression",
        split="random",
    ),
    "FreeSolv": MoleculeSet(
        file="SAMPL.csv", label_columns=("expt",), kind="regression", split="random"
    ),
    "Lipo": MoleculeSet(
        file="Lipophilicity.csv",
        label_columns=("exp",),
        kind="regression",
        split="random",
        aliases=("lipophilicity",),
    ),
}
"""The datasets by their names; case, dashes and underscores are ignored."""


def load_moleculenet(
    name: str, options: SplitOptions, data_root: str | None, *, split_method: SplitMethod = "auto"
) -> TaskData:
    """Load a dataset in `SETS`: 80% for training and 10% each for validation and testing.

    Args:
        name: in `SETS`.
        options: the seed of random splits; `val_fraction` is ignored, since the fractions are the
            field's, and `test_split` must be the default.
        data_root: the folder of the file, which may also be in a folder with the dataset's name, or
            in its folder `raw`, packed (.gz) or not, in any case; it is downloaded there if
            missing. None for `default_data_root()`.
        split_method: "auto" for that of `SETS`.

    Returns:
        The dataset; its paths are the SMILES, see `MoleculeTable.names`.

    Raises:
        UserError: if there is no such dataset, its file is not as expected, or is missing and
            cannot be downloaded.
    """
    key = _find(name)
    data, title = SETS[key], PREFIX + key
    options.refuse_test_split(title)
    root = resolve_data_root(data_root)
    file = _locate(key, root) or _download(key, root)
    molecules = read_molecules(
        file,
        smiles_column=data.smiles_column,
        label_columns=data.label_columns,
        ignored_columns=data.ignored_columns,
    )
    binary = data.kind == "binary"
    if binary and not molecules.binary:
        raise DataError(
            f"the labels in '{file}' must be 0, 1 or empty, as in {title}: get the file from "
            f"{BASE_URL}/{data.file}"
        )
    method = data.split if split_method == "auto" else split_method
    parts = draw_splits(
        molecules,
        range(len(molecules.names)),
        SPLIT_FRACTIONS,
        split_method=method,
        seed=derive_seed(options.seed, title, "split"),
        display_name=title,
    )
    random = f"drawn at random, seed {options.seed}"
    how = "by scaffold, as Hu et al. 2020" if method == "scaffold" else random
    notes = [f"80/10/10 split, {how}", *options.unused_val_fraction(title)]
    return make_task_data(title, molecules, parts, binary=binary, notes=notes, val_drawn=False)


def is_available(name: str, root: Path) -> bool:
    """Return whether the file of a dataset is below a folder."""
    return _locate(_find(name), root) is not None


def _find(name: str) -> str:
    return find_dataset(PREFIX, name, {key: data.aliases for key, data in SETS.items()})


def _locate(key: str, root: Path) -> Path | None:
    """Return the file of a dataset below a folder; None if it is missing."""
    data = SETS[key]
    plain = data.file.removesuffix(".gz")
    found = (
        file
        for folder in candidate_folders(root, key, *data.aliases)
        for name in (plain, f"{plain}.gz")
        for file in find_ignoring_case(folder, name)
    )
    return next((file for file in found if file.is_file()), None)


def _download(key: str, root: Path) -> Path:
    """Download the file of a dataset to its place below a folder."""
    data, title = SETS[key], PREFIX + key
    url, target = f"{BASE_URL}/{data.file}", root / key / "raw"

    def fetch(folder: Path) -> None:
        file = folder / target.name / data.file
        file.parent.mkdir()
        torch.hub.download_url_to_file(url, str(file), progress=False)
        # A gateway may answer with a page of its own.
        read_rows(file, required=(data.smiles_column,), layout=LAYOUT)

    hint = f"get it from {url} and put it there"
    download_dataset(title, target, fetch, root=root, hint=hint)
    return target / data.file
