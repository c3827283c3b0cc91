"""`moleculenet/<name>`: the data sets of MoleculeNet, from a local file or downloaded."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from delta_transfer.data.download import default_data_root, download_folder, format_error
from delta_transfer.data.molecules.options import SplitMethod
from delta_transfer.data.molecules.table import LAYOUT, read_molecules
from delta_transfer.data.molecules.task import draw_splits, make_task_data
from delta_transfer.data.names import MOLECULENET as PREFIX
from delta_transfer.data.sources.csv_rows import read_rows
from delta_transfer.data.sources.local_files import candidate_folders, find_ignoring_case
from delta_transfer.data.splits import refuse_test_split, unused_val_fraction
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError, unknown
from delta_transfer.utils.paths import user_path
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

BASE_URL = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets"
"""Where the makers of MoleculeNet keep the files."""

SPLIT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


@dataclass(frozen=True, kw_only=True)
class MoleculeSet:
    """A data set of MoleculeNet.

    Attributes:
        file: its name in the archive.
        smiles_column: the column of the SMILES.
        label_columns: the columns of the labels; all that hold numbers, but for those ignored, if
            empty.
        ignored_columns: columns of numbers that are no labels.
        kind: whether labels are yes and no, measured by ROC-AUC, or values, measured by RMSE.
        split: how the field draws the splits: by scaffold, as Hu et al. 2020 for all that is yes or
            no (MoleculeNet recommends it for BBBP, BACE and HIV); at random, as MoleculeNet
            recommends for the values.
        aliases: what else a folder of the set may be called.
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
"""The data sets by their names; capitals, dashes and underscores do not count."""


def load_moleculenet(
    name: str,
    *,
    seed: int,
    val_fraction: float,
    test_split: str,
    data_root: str | None,
    split: SplitMethod = "auto",
) -> TaskData:
    """The task of a data set in `SETS`, 80% for training and 10% each for validation and test.

    Args:
        name: in `SETS`.
        seed: draws the splits, if they are drawn at random.
        val_fraction: ignored, as the shares are the field's.
        test_split: must be the default.
        data_root: where the file lies, itself or in a folder with the set's name, or in the folder
            `raw` there, packed (.gz) or not, in capitals or not; downloaded to it if there is none.
            None for `default_data_root()`.
        split: auto for that of `SETS`.

    Returns:
        The task; its paths are the SMILES, see `MoleculeTable.names`.

    Raises:
        UserError: if there is no such set, its file is not as it must be, or is not there and
            cannot be downloaded.
    """
    key = _find(name)
    data, title = SETS[key], PREFIX + key
    refuse_test_split(title, test_split)
    root = default_data_root() if data_root is None else user_path(data_root)
    file = _locate(key, root) or _download(key, root)
    molecules = read_molecules(
        file,
        smiles_column=data.smiles_column,
        label_columns=data.label_columns,
        ignored_columns=data.ignored_columns,
    )
    binary = data.kind == "binary"
    if binary and not molecules.binary:
        raise UserError(
            f"the labels in '{file}' must be 0, 1 or nothing, as those of {title} are: get the "
            f"file from {BASE_URL}/{data.file}"
        )
    by = data.split if split == "auto" else split
    draw = derive_seed(seed, title, "split")
    everything = range(len(molecules.names))
    parts = draw_splits(
        molecules, everything, SPLIT_FRACTIONS, split_method=by, seed=draw, display_name=title
    )
    how = "by scaffold, as Hu et al. 2020" if by == "scaffold" else f"drawn at random, seed {seed}"
    notes = [f"80/10/10 split, {how}", *unused_val_fraction(title, val_fraction)]
    return make_task_data(title, molecules, parts, binary=binary, notes=notes, val_drawn=False)


def is_available(name: str, root: Path) -> bool:
    """Whether the file of a data set of this name lies below a folder."""
    return _locate(_find(name), root) is not None


def _find(name: str) -> str:
    def plain(text: str) -> str:
        return text.lower().replace("_", "").replace("-", "")

    for key, data in SETS.items():
        if plain(name) in map(plain, (key, *data.aliases)):
            return key
    raise unknown("data set", PREFIX + name, [PREFIX + key for key in SETS])


def _locate(key: str, root: Path) -> Path | None:
    """The file of a data set in its place below a folder; None if there is none."""
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
    """The file of a data set, downloaded to its place below a folder."""
    data, title = SETS[key], PREFIX + key
    url, target = f"{BASE_URL}/{data.file}", root / key / "raw"

    def fetch(folder: Path) -> None:
        file = folder / target.name / data.file
        file.parent.mkdir()
        torch.hub.download_url_to_file(url, str(file), progress=False)
        read_rows(
            file, required=(data.smiles_column,), layout=LAYOUT
        )  # not the page of some gateway

    logger.info("downloading %s to %s", title, target)
    try:
        download_folder(target, fetch)
    # Anything may come: of the connection, the server, the file, the disk.
    except Exception as error:
        raise UserError(
            f"{title} is not in '{root}', and downloading it failed ({format_error(error)}). Try "
            f"again, or get it from {url} and put it there; --data-root names another folder to "
            "look in"
        ) from error
    return target / data.file
