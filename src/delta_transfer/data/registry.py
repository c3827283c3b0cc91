"""Sources of graphs; their libraries are not loaded before one of them is asked for."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from delta_transfer.data.molecules.options import (
    DEFAULT_MOLECULE_OPTIONS,
    MoleculeOptions,
    SplitMethod,
)
from delta_transfer.data.names import MOLECULENET, TU
from delta_transfer.data.sources import csv_rows, folder
from delta_transfer.data.sources.archives import ARCHIVES, load_archive
from delta_transfer.data.sources.csv import load_csv, load_labelled_csv
from delta_transfer.data.sources.digits import load_sklearn_digits
from delta_transfer.data.sources.folder import load_folder
from delta_transfer.data.sources.huggingface import load_hub
from delta_transfer.data.sources.skimage_patches import load_skimage_patches
from delta_transfer.data.sources.torchvision import load_torchvision
from delta_transfer.data.splits import (
    DEFAULT_TEST_SPLIT,
    DEFAULT_VAL_FRACTION,
    parse_fraction,
    sample_per_class,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError, unknown
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.utils.optional import require_graph_libraries
from delta_transfer.utils.paths import user_path
from delta_transfer.utils.seeds import derive_seed


def load_moleculenet(
    name: str,
    *,
    seed: int,
    val_fraction: float,
    test_split: str,
    data_root: str | None,
    split: SplitMethod = "auto",
) -> TaskData:
    """See `molecules`."""
    require_graph_libraries(MOLECULENET + name)
    from delta_transfer.data.molecules import moleculenet

    return moleculenet.load_moleculenet(
        name,
        seed=seed,
        val_fraction=val_fraction,
        test_split=test_split,
        data_root=data_root,
        split=split,
    )


def load_tu(
    name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
) -> TaskData:
    """See `tu`."""
    require_graph_libraries(TU + name)
    from delta_transfer.data.graphs import tudataset

    return tudataset.load_tu(
        name, seed=seed, val_fraction=val_fraction, test_split=test_split, data_root=data_root
    )


def load_smiles_csv(
    file: Path,
    *,
    seed: int,
    val_fraction: float,
    test_split: str,
    molecule_options: MoleculeOptions,
) -> TaskData:
    """See `smiles_csv`."""
    require_graph_libraries(f"a CSV file of SMILES ('{file}')")
    from delta_transfer.data.molecules import csv

    return csv.load_smiles_csv(
        file,
        seed=seed,
        val_fraction=val_fraction,
        test_split=test_split,
        molecule_options=molecule_options,
    )


def load_labelled_smiles_csv(
    file: Path, *, molecule_options: MoleculeOptions
) -> tuple[tuple[str, ...], Split, bool]:
    """See `smiles_csv`."""
    require_graph_libraries(f"a CSV file of SMILES ('{file}')")
    from delta_transfer.data.molecules import csv

    return csv.load_labelled_smiles_csv(file, molecule_options=molecule_options)


class BuiltinLoader(Protocol):
    """What loads a named data set."""

    def __call__(self, *, seed: int, val_fraction: float, test_split: str) -> TaskData:
        """The task, with any split that is drawn drawn by seed."""
        ...


class Provider(Protocol):
    """What loads the data sets whose names share a prefix."""

    def __call__(
        self, name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
    ) -> TaskData:
        """The task of the name behind the prefix; `data_root` is where it is or will be."""
        ...


class FileReader(Protocol):
    """What loads a data set from the file or folder that describes it."""

    def __call__(
        self, path: Path, /, *, seed: int, val_fraction: float, test_split: str
    ) -> TaskData:
        """The task, with any split that is drawn drawn by seed."""
        ...


BUILTIN_DATASETS: dict[str, BuiltinLoader] = {
    "skimage/patches": load_skimage_patches,
    "sklearn/digits": load_sklearn_digits,
}

PROVIDERS: dict[str, Provider] = {
    "torchvision/": load_torchvision,
    "hf/": load_hub,
    MOLECULENET: load_moleculenet,
    TU: load_tu,
}

FILE_READERS: dict[str, FileReader] = {
    ".csv": load_csv,
}

_ARCHIVE_NAMES = ("cub200", "stanford_dogs", "mit67", "caltech256/30|60")  # as messages call them


def load_data(
    data: str,
    *,
    seed: int,
    val_fraction: float = DEFAULT_VAL_FRACTION,
    test_split: str = DEFAULT_TEST_SPLIT,
    samples_per_class: int | None = None,
    data_root: str | None = None,
    molecule_options: MoleculeOptions = DEFAULT_MOLECULE_OPTIONS,
) -> TaskData:
    """The task that a name, a folder or a CSV file stands for.

    Args:
        data: a name in `SOURCES` or `ARCHIVES`; a prefix in `COLLECTIONS` and a name; a folder
            `{train,val,test}/<class>/*` or `<class>/*`; a CSV file `path,label[,split]`, or one of
            SMILES.
        seed: draws the splits that are not given, and the subset.
        val_fraction: the part of the training images held out for validation, class by class,
            where there is no validation split.
        test_split: the name of the test split, or a fraction such as "0.2" of the training
            images to draw one where there is none.
        samples_per_class: so many training images of every class are drawn, after the
            validation split is held out; None for all.
        data_root: where the data sets of `COLLECTIONS` lie or are downloaded to, and those of
            `ARCHIVES` lie; None for a folder in the user's cache.
        molecule_options: the columns of a CSV file of SMILES, and how molecules are split.

    Returns:
        The task; its notes say what was drawn and what is missing.

    Raises:
        UserError: if there is no such data, it does not look as it must, or an option is out of
            its range.

    Example:
        >>> task = load_data("sklearn/digits", seed=0, samples_per_class=3)
        >>> len(task.classes), len(task.train)
        (10, 30)
    """
    _check_options(seed=seed, val_fraction=val_fraction, samples_per_class=samples_per_class)
    prefix = next((prefix for prefix in PROVIDERS if data.startswith(prefix)), None)
    _check_molecule_options(data, molecule_options)
    if data in BUILTIN_DATASETS:
        task = BUILTIN_DATASETS[data](seed=seed, val_fraction=val_fraction, test_split=test_split)
    elif data in ARCHIVES:
        task = load_archive(
            data,
            seed=seed,
            val_fraction=val_fraction,
            test_split=test_split,
            data_root=data_root,
        )
    elif prefix is not None:
        collection = PROVIDERS[prefix]
        if prefix == MOLECULENET:
            collection = partial(load_moleculenet, split=molecule_options.split)
        task = collection(
            data.removeprefix(prefix),
            seed=seed,
            val_fraction=val_fraction,
            test_split=test_split,
            data_root=data_root,
        )
    elif data and (path := user_path(data)).exists():
        load = load_folder if path.is_dir() else FILE_READERS.get(path.suffix.lower(), load_folder)
        if molecule_options.smiles_column is not None:
            load = partial(load_smiles_csv, molecule_options=molecule_options)
        task = load(path, seed=seed, val_fraction=val_fraction, test_split=test_split)
    else:
        raise _unknown_data_error(data)
    if data_root is not None and prefix is None and data not in ARCHIVES:
        note = f"--data-root {data_root} is ignored: only {_prefixes()} look there"
        task = replace(task, notes=(*task.notes, note))
    return task if samples_per_class is None else _subset(task, samples_per_class, seed=seed)


def load_labelled_data(
    data: str,
    *,
    seed: int,
    test_split: str = DEFAULT_TEST_SPLIT,
    data_root: str | None = None,
    molecule_options: MoleculeOptions = DEFAULT_MOLECULE_OPTIONS,
) -> tuple[tuple[str, ...], Split, bool]:
    """The images to measure a network on: of a test split, or all where there is none.

    Args:
        data: as for `load_data`; one class is enough of a folder or a CSV file.
        seed: draws the test split where the field's protocol does so.
        test_split: the name of the test split; a fraction counts as the default, as no test split
            is drawn.
        data_root: as for `load_data`.
        molecule_options: likewise.

    Returns:
        The class names; the images; whether they are a test split.

    Raises:
        UserError: as `load_data` does.
    """
    name = DEFAULT_TEST_SPLIT if parse_fraction(test_split) is not None else test_split
    named = is_dataset_name(data)
    if not named and data and (path := user_path(data)).exists():
        if molecule_options.smiles_column is not None:
            if path.suffix.lower() not in FILE_READERS or path.is_dir():
                raise UserError(
                    f"'{data}' is no CSV file, as which labelled molecules are read: give one with "
                    f"the columns of labels and '{molecule_options.smiles_column}', the SMILES"
                )
            return load_labelled_smiles_csv(path, molecule_options=molecule_options)
        if path.suffix.lower() in FILE_READERS and not path.is_dir():
            return load_labelled_csv(path)
        return folder.load_labelled_folder(path, test_split=name)
    task = load_data(
        data, seed=seed, test_split=name, data_root=data_root, molecule_options=molecule_options
    )
    if task.test is not None:
        return task.classes, task.test, True
    paths, labels = task.train.paths + task.val.paths, task.train.labels + task.val.labels
    return (
        task.classes,
        Split(paths=paths, labels=labels, read=task.train.read, sample_type=task.sample_type),
        False,
    )


def is_dataset_name(data: str) -> bool:
    """Whether this is the name of a data set, and no file or folder."""
    return data in BUILTIN_DATASETS or data in ARCHIVES or data.startswith(tuple(PROVIDERS))


def _unknown_data_error(data: str) -> UserError:
    names = unknown(
        "data set",
        data,
        [*BUILTIN_DATASETS, *(f"{prefix}NAME" for prefix in PROVIDERS), *_ARCHIVE_NAMES],
    )
    return UserError(
        f"{names}; there is no folder of this name either, which would have to be {folder.LAYOUT}; "
        f"and no file, which would have to be {csv_rows.LAYOUT}"
    )


def _prefixes() -> str:
    return " and ".join([*(f"{prefix}NAME" for prefix in PROVIDERS), *_ARCHIVE_NAMES])


def _check_molecule_options(data: str, molecule_options: MoleculeOptions) -> None:
    """Options on molecules are for molecules."""
    named = is_dataset_name(data)
    of_file = data.lower().endswith(".csv") and not named and not user_path(data).is_dir()
    if molecule_options.smiles_column is not None and not of_file:
        raise UserError(
            f"--smiles-column {molecule_options.smiles_column}: '{data}' is no CSV file; leave "
            "the option "
            "out, or give a CSV file of molecules"
        )
    if molecule_options.label_columns is not None and molecule_options.smiles_column is None:
        raise UserError(
            f"--label-columns {molecule_options.label_columns}: this is for CSV files of "
            "molecules, whose "
            "column of SMILES --smiles-column names; give both, or neither"
        )
    of_molecules = molecule_options.smiles_column is not None or data.startswith(MOLECULENET)
    if molecule_options.split != "auto" and not of_molecules:
        raise UserError(
            f"--split {molecule_options.split}: this is for molecules, and '{data}' has none; "
            "leave the "
            "option out"
        )


def _check_options(*, seed: int, val_fraction: float, samples_per_class: int | None) -> None:
    if seed < 0:
        raise UserError(f"--seed {seed}: a seed must be 0 or more")
    if not 0 < val_fraction < 1:
        raise UserError(
            f"--val-fraction {val_fraction:g}: must be above 0 and below 1, for example 0.15"
        )
    if samples_per_class is not None and samples_per_class < 1:
        raise UserError(
            f"--samples-per-class {samples_per_class}: must be at least 1; leave it out for all"
        )


def _subset(task: TaskData, count: int, *, seed: int) -> TaskData:
    """The task with `count` training images of every class.

    Raises:
        UserError: if a class has fewer, or the task has no classes.
    """
    if not isinstance(task.task_type, Multiclass):
        raise UserError(
            f"--samples-per-class {count}: {task.name} has no classes, of which so many could be "
            "drawn: leave it out"
        )
    train = sample_per_class(
        task.train, count, classes=task.classes, seed=derive_seed(seed, "samples")
    )
    note = (
        f"{count} training images of every class, drawn by seed {seed}: "
        f"{len(train)} of {len(task.train)}"
    )
    return replace(task, train=train, notes=(*task.notes, note))
