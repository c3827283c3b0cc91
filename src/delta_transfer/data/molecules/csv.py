"""Molecules and their labels from a CSV file of SMILES."""

from pathlib import Path

from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.molecules.table import MoleculeTable, parse_column_names, read_molecules
from delta_transfer.data.molecules.task import draw_splits, make_task_data, molecule_split
from delta_transfer.data.splits import SplitOptions
from delta_transfer.data.task import LabelledSplit, TaskData
from delta_transfer.errors import DataError, first_few
from delta_transfer.utils.seeds import derive_seed

_SPLIT_NAMES = {"val": "validation", "test": "test"}


def load_smiles_csv(
    file: Path, options: SplitOptions, molecule_options: MoleculeOptions
) -> TaskData:
    """Load a CSV file with a column of SMILES, columns of labels and, optionally, `split`.

    Labels are numbers, or empty if unknown. If all are 0 or 1, each column is a binary target, else
    a value to predict. Without a column `split` all rows are training molecules.

    Args:
        file: the CSV file.
        options: the missing splits to draw; `test_split` may not be a name.
        molecule_options: the columns, and whether splits are drawn by scaffold or at random.

    Returns:
        The dataset; its paths are the SMILES, see `MoleculeTable.names`.

    Raises:
        UserError: naming the lines, if the file is not as expected.
    """
    table, display_name = _read(file, molecule_options), f"'{file}'"
    positions = _positions_by_split(table)
    if not positions["train"]:
        raise DataError(
            f"{display_name} has no molecule with the split 'train': write 'train' into the column "
            "'split' of the rows to train on"
        )
    has_test = bool(positions["test"])
    fraction = options.test_fraction(display_name, has_test=has_test) or 0.0
    drawn = {} if positions["val"] else {"val": (1 - fraction) * options.val_fraction}
    if fraction:
        drawn["test"] = fraction
    notes = []
    if drawn:
        new = draw_splits(
            table,
            positions["train"],
            {"train": 1 - sum(drawn.values()), **drawn},
            split_method=molecule_options.split,
            seed=derive_seed(options.seed, "molecules"),
            display_name=display_name,
        )
        random = molecule_options.split == "random"
        how = f"at random, seed {options.seed}" if random else "by scaffold"
        notes += [
            f"no {_SPLIT_NAMES[name]} split: {100 * part:g}% of train ({len(new[name])} "
            f"molecules), drawn {how}, is held out"
            for name, part in drawn.items()
        ]
        positions = {**positions, **new}
    if "val" not in drawn:
        notes += options.unused_val_fraction(display_name)
    if not positions["test"]:
        notes.append("no test split: its metric will be null; `test_split=0.1` draws one")
        del positions["test"]
    kind = "binary" if table.binary else "values"
    notes.append(f"label columns, {kind}: {first_few(table.label_columns)}")
    if table.unused_columns:
        notes.append(f"unused columns: {first_few(table.unused_columns)}")
    return make_task_data(
        file.stem,
        table,
        positions,
        binary=table.binary,
        notes=notes,
        val_drawn="val" in drawn,
        split_method=molecule_options.split,
    )


def load_labelled_smiles_csv(file: Path, molecule_options: MoleculeOptions) -> LabelledSplit:
    """Load the test split of a CSV file of SMILES, or all its molecules without one.

    Args:
        file: as for `load_smiles_csv`.
        molecule_options: the columns.

    Raises:
        UserError: naming the lines, if the file is not as expected.
    """
    table = _read(file, molecule_options)
    test = _positions_by_split(table)["test"]
    split = molecule_split(table, test or range(len(table.names)))
    return LabelledSplit(table.label_columns, split, is_test=bool(test))


def _read(file: Path, options: MoleculeOptions) -> MoleculeTable:
    assert options.smiles_column is not None
    names = options.label_columns
    return read_molecules(
        file,
        smiles_column=options.smiles_column,
        label_columns=() if names is None else parse_column_names(names),
        use_split_column=True,
    )


def _positions_by_split(table: MoleculeTable) -> dict[str, list[int]]:
    """Return the positions of each split's molecules; without a column all are for training."""
    splits = table.splits or ("train",) * len(table.names)
    return {
        name: [i for i, split in enumerate(splits) if split == name]
        for name in ("train", "val", "test")
    }
