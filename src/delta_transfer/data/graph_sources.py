"""Sources of graphs; their libraries are not loaded before one of them is asked for."""

from pathlib import Path

from delta_transfer.data.base import Split, Task
from delta_transfer.data.molecule_options import MoleculeOptions, SplitBy
from delta_transfer.utils.optional import need_graph_libraries

MOLECULENET, TU = "moleculenet/", "tu/"


def load_moleculenet(
    name: str,
    *,
    seed: int,
    val_fraction: float,
    test_split: str,
    data_root: str | None,
    split: SplitBy = "auto",
) -> Task:
    """See `molecules`."""
    need_graph_libraries(MOLECULENET + name)
    from delta_transfer.data import molecules

    return molecules.load_moleculenet(
        name,
        seed=seed,
        val_fraction=val_fraction,
        test_split=test_split,
        data_root=data_root,
        split=split,
    )


def load_tu(
    name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
) -> Task:
    """See `tu`."""
    need_graph_libraries(TU + name)
    from delta_transfer.data import tu

    return tu.load_tu(
        name, seed=seed, val_fraction=val_fraction, test_split=test_split, data_root=data_root
    )


def load_smiles_csv(
    file: Path, *, seed: int, val_fraction: float, test_split: str, molecules: MoleculeOptions
) -> Task:
    """See `smiles_csv`."""
    need_graph_libraries(f"a CSV file of SMILES ('{file}')")
    from delta_transfer.data import smiles_csv

    return smiles_csv.load_smiles_csv(
        file, seed=seed, val_fraction=val_fraction, test_split=test_split, molecules=molecules
    )


def load_labelled_smiles_csv(
    file: Path, *, molecules: MoleculeOptions
) -> tuple[tuple[str, ...], Split, bool]:
    """See `smiles_csv`."""
    need_graph_libraries(f"a CSV file of SMILES ('{file}')")
    from delta_transfer.data import smiles_csv

    return smiles_csv.load_labelled_smiles_csv(file, molecules=molecules)
