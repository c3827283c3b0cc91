"""A CSV file of SMILES and labels becomes a Task."""

from pathlib import Path

from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.molecules.table import MoleculeTable, parse_column_names, read_molecules
from delta_transfer.data.molecules.task import draw_splits, make_task_data, molecule_split
from delta_transfer.data.splits import parse_test_fraction, unused_val_fraction
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError, first_few
from delta_transfer.utils.seeds import derive_seed

_SPLIT_NAMES = {"val": "validation", "test": "test"}


def load_smiles_csv(
    file: Path,
    *,
    seed: int,
    val_fraction: float,
    test_split: str,
    molecule_options: MoleculeOptions,
) -> TaskData:
    """A task from a CSV file with a column of SMILES, columns of labels and, if wanted, `split`.

    Labels are numbers, or nothing where one is not known. If all are 0 or 1, each column is a
    question with no or yes for an answer, else a value to learn. Without the column `split` all
    rows are for training. A missing validation split is drawn; a test split only if a fraction is
    asked for.

    Args:
        file: the CSV file.
        seed: draws the splits that are not there, if they are drawn at random.
        val_fraction: the part of the training molecules held out for validation, if no row has the
            split `val`.
        test_split: the default, or a fraction such as "0.1" of the training molecules to draw a
            test split.
        molecule_options: the columns, and whether splits are drawn by scaffold or at random.

    Returns:
        The task; its paths are the SMILES, see `MoleculeTable.names`.

    Raises:
        UserError: if the file is not as it must be; naming the lines.
    """
    found, source = _read(file, molecule_options), f"'{file}'"
    given = _positions_by_split(found)
    if not given["train"]:
        raise UserError(
            f"{source}: no molecule has the split 'train', and there is nothing to learn from: "
            "write 'train' into the column split"
        )
    own_test = bool(given["test"])
    fraction = parse_test_fraction(test_split, display_name=source, has_test=own_test) or 0.0
    drawn = {} if given["val"] else {"val": (1 - fraction) * val_fraction}
    if fraction:
        drawn["test"] = fraction
    notes = []
    if drawn:
        shares = {"train": 1 - sum(drawn.values()), **drawn}
        draw = derive_seed(seed, "molecules")
        new = draw_splits(
            found,
            given["train"],
            shares,
            split_method=molecule_options.split,
            seed=draw,
            display_name=source,
        )
        how = f"at random, seed {seed}" if molecule_options.split == "random" else "by scaffold"
        notes += [
            f"no {_SPLIT_NAMES[name]} split: {100 * share:g}% of train ({len(new[name])} "
            "molecules), "
            f"drawn {how}, is held out"
            for name, share in drawn.items()
        ]
        given = {**given, **new}
    if "val" not in drawn:
        notes += unused_val_fraction(source, val_fraction)
    if not given["test"]:
        notes.append("no test split: its figure will be null; ask for one with --test-split 0.1")
        del given["test"]
    kind = "no or yes" if found.binary else "values"
    notes.append(f"label columns, {kind}: {first_few(found.label_columns)}")
    if found.unused_columns:
        notes.append(f"columns that are not used: {first_few(found.unused_columns)}")
    return make_task_data(
        file.stem,
        found,
        given,
        binary=found.binary,
        notes=notes,
        val_drawn="val" in drawn,
        split_method=molecule_options.split,
    )


def load_labelled_smiles_csv(
    file: Path, *, molecule_options: MoleculeOptions
) -> tuple[tuple[str, ...], Split, bool]:
    """The molecules to measure a network on: of the test split, or all without one.

    Args:
        file: as for `load_smiles_csv`.
        molecule_options: likewise.

    Returns:
        The names of the columns of labels; the molecules; whether they are a test split.

    Raises:
        UserError: if the file is not as it must be; naming the lines.
    """
    found = _read(file, molecule_options)
    test = _positions_by_split(found)["test"]
    return found.label_columns, molecule_split(found, test or range(len(found.names))), bool(test)


def _read(file: Path, options: MoleculeOptions) -> MoleculeTable:
    assert options.smiles_column is not None
    return read_molecules(
        file,
        smiles_column=options.smiles_column,
        label_columns=()
        if options.label_columns is None
        else parse_column_names(options.label_columns),
        use_split_column=True,
    )


def _positions_by_split(found: MoleculeTable) -> dict[str, list[int]]:
    """The positions of the molecules of each split; all are for training without a column."""
    splits = found.splits or ("train",) * len(found.names)
    return {
        name: [i for i, split in enumerate(splits) if split == name]
        for name in ("train", "val", "test")
    }
