"""The tables of named datasets, and the functions that load a dataset from a name or a path."""

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from delta_transfer.data.download import resolve_data_root
from delta_transfer.data.molecules.options import DEFAULT_MOLECULE_OPTIONS, MoleculeOptions
from delta_transfer.data.names import HUB, MOLECULENET, TORCHVISION, TU
from delta_transfer.data.sources import archives, csv, csv_rows, folder
from delta_transfer.data.sources.digits import load_sklearn_digits
from delta_transfer.data.sources.skimage_patches import load_skimage_patches
from delta_transfer.data.splits import (
    DEFAULT_TEST_SPLIT,
    DEFAULT_VAL_FRACTION,
    SplitOptions,
    parse_fraction,
    sample_per_class,
)
from delta_transfer.data.task import LabelledSplit, TaskData, pool_train_and_val
from delta_transfer.errors import ConfigError, UserError, unknown
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.utils.optional import require_graph_libraries
from delta_transfer.utils.paths import user_path
from delta_transfer.utils.seeds import derive_seed

BUILTIN_DATASETS: dict[str, Callable[[SplitOptions], TaskData]] = {
    "skimage/patches": load_skimage_patches,
    "sklearn/digits": load_sklearn_digits,
}
"""The datasets that come with a package, by their names; see also `archives.ARCHIVES`."""


class Provider(NamedTuple):
    """A collection of datasets, whose module is imported when it is used.

    Attributes:
        module: of the two functions.
        load: the function that loads a dataset, given the rest of its name, the splits and
            `data_root`.
        is_available: the function that returns whether a dataset is on this machine; None if that
            cannot be found out.
        of_graphs: whether the libraries of graphs are needed.
    """

    module: str
    load: str
    is_available: str | None = "is_available"
    of_graphs: bool = False


PROVIDERS: dict[str, Provider] = {
    TORCHVISION: Provider("delta_transfer.data.sources.torchvision", "load_torchvision"),
    HUB: Provider("delta_transfer.data.sources.huggingface", "load_hub", is_available=None),
    MOLECULENET: Provider(
        "delta_transfer.data.molecules.moleculenet", "load_moleculenet", of_graphs=True
    ),
    TU: Provider("delta_transfer.data.graphs.tudataset", "load_tu", of_graphs=True),
}
"""The collections by the prefix of their datasets' names."""

_SMILES_CSV = "delta_transfer.data.molecules.csv"
_ARCHIVE_NAMES = ("cub200", "stanford_dogs", "mit67", "caltech256/30|60")  # as in messages


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
    """Load a dataset by its name, or from a folder or a CSV file.

    Args:
        data: a name in `BUILTIN_DATASETS` or `ARCHIVES`; a prefix in `PROVIDERS` and a name; a
            folder `{train,val,test}/<class>/*` or `<class>/*`; a CSV file `path,label[,split]`, or
            one of SMILES.
        seed: draws missing splits and the subset.
        val_fraction: as in `SplitOptions`.
        test_split: as in `SplitOptions`.
        samples_per_class: the number of training samples of every class to draw, after the
            validation split is held out; None for all.
        data_root: the folder of the datasets in `PROVIDERS` and `ARCHIVES`, where the former are
            downloaded to; None for a folder in the user's cache.
        molecule_options: the columns of a CSV file of SMILES, and how molecules are split.

    Returns:
        The dataset; its notes list what was drawn and what is missing.

    Raises:
        UserError: if there is no such dataset, its files are not as expected, or an option is out
            of range.

    Example:
        >>> task = load_data("sklearn/digits", seed=0, samples_per_class=3)
        >>> len(task.classes), len(task.train)
        (10, 30)
    """
    options = SplitOptions(seed=seed, val_fraction=val_fraction, test_split=test_split)
    if samples_per_class is not None and samples_per_class < 1:
        raise ConfigError(
            f"`samples_per_class={samples_per_class}`: must be at least 1; leave it out for all"
        )
    _check_molecule_options(data, molecule_options)
    task = _load(data, options, data_root, molecule_options)
    if data_root is not None and not _uses_data_root(data):
        used_by = " and ".join([*(f"{prefix}NAME" for prefix in PROVIDERS), *_ARCHIVE_NAMES])
        note = f"`data_root={data_root}` is ignored: only {used_by} use it"
        task = replace(task, notes=(*task.notes, note))
    return task if samples_per_class is None else _subset(task, samples_per_class, seed=seed)


def load_labelled_data(
    data: str,
    *,
    seed: int,
    test_split: str = DEFAULT_TEST_SPLIT,
    data_root: str | None = None,
    molecule_options: MoleculeOptions = DEFAULT_MOLECULE_OPTIONS,
) -> LabelledSplit:
    """Load the samples to evaluate a network on: the test split, or all samples without one.

    Args:
        data: as for `load_data`; a folder or a CSV file may have a single class.
        seed: draws the test split where the field's protocol does so.
        test_split: the name of the test split; a fraction counts as the default, since no test
            split is drawn.
        data_root: as for `load_data`.
        molecule_options: as for `load_data`.

    Raises:
        UserError: as `load_data` does.
    """
    name = DEFAULT_TEST_SPLIT if parse_fraction(test_split) is not None else test_split
    if not is_dataset_name(data) and data and (path := user_path(data)).exists():
        if molecule_options.smiles_column is not None:
            if not _is_csv(path):
                raise ConfigError(
                    f"'{data}' is not a CSV file: pass one with the column "
                    f"'{molecule_options.smiles_column}' of SMILES and the columns of labels"
                )
            require_graph_libraries(data)
            load = pkgutil.resolve_name(f"{_SMILES_CSV}:load_labelled_smiles_csv")
            labelled: LabelledSplit = load(path, molecule_options)
            return labelled
        if _is_csv(path):
            return csv.load_labelled_csv(path)
        return folder.load_labelled_folder(path, test_split=name)
    task = load_data(
        data, seed=seed, test_split=name, data_root=data_root, molecule_options=molecule_options
    )
    if task.test is not None:
        return LabelledSplit(task.classes, task.test, is_test=True)
    return LabelledSplit(task.classes, pool_train_and_val(task), is_test=False)


def is_dataset_name(data: str) -> bool:
    """Return whether this is the name of a dataset, not a file or folder."""
    return data in BUILTIN_DATASETS or _uses_data_root(data)


def is_available(data: str, *, data_root: str | None) -> bool | None:
    """Return whether a dataset is on this machine, without loading or downloading it.

    Args:
        data: as for `load_data`.
        data_root: as for `load_data`.

    Returns:
        None if unknown: for the Hugging Face Hub, and for graphs without their libraries.

    Raises:
        UserError: if its collection has no dataset of this name.
    """
    root = resolve_data_root(data_root)
    if data in archives.ARCHIVES:
        return archives.is_available(data, root)
    prefix = _find_prefix(data)
    if prefix is None:
        return data in BUILTIN_DATASETS or user_path(data).exists()
    provider = PROVIDERS[prefix]
    if provider.is_available is None:
        return None
    if provider.of_graphs:
        try:
            require_graph_libraries(data)
        except UserError:
            return None
    find = pkgutil.resolve_name(f"{provider.module}:{provider.is_available}")
    found: bool = find(data.removeprefix(prefix), root)
    return found


def _load(
    data: str, options: SplitOptions, data_root: str | None, molecule_options: MoleculeOptions
) -> TaskData:
    if data in BUILTIN_DATASETS:
        return BUILTIN_DATASETS[data](options)
    if data in archives.ARCHIVES:
        return archives.load_archive(data, options, data_root)
    prefix = _find_prefix(data)
    task: TaskData
    if prefix is not None:
        provider = PROVIDERS[prefix]
        if provider.of_graphs:
            require_graph_libraries(data)
        load: Any = pkgutil.resolve_name(f"{provider.module}:{provider.load}")
        if prefix == MOLECULENET:
            load = partial(load, split_method=molecule_options.split)
        task = load(data.removeprefix(prefix), options, data_root)
        return task
    if not data or not (path := user_path(data)).exists():
        raise _unknown_data_error(data)
    if molecule_options.smiles_column is not None:
        require_graph_libraries(data)
        load = pkgutil.resolve_name(f"{_SMILES_CSV}:load_smiles_csv")
        task = load(path, options, molecule_options)
        return task
    return csv.load_csv(path, options) if _is_csv(path) else folder.load_folder(path, options)


def _find_prefix(data: str) -> str | None:
    return next((prefix for prefix in PROVIDERS if data.startswith(prefix)), None)


def _uses_data_root(data: str) -> bool:
    return data in archives.ARCHIVES or _find_prefix(data) is not None


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.is_dir()


def _unknown_data_error(data: str) -> ConfigError:
    choices = [*BUILTIN_DATASETS, *(f"{prefix}NAME" for prefix in PROVIDERS), *_ARCHIVE_NAMES]
    return ConfigError(
        f"{unknown('dataset', data, choices)}; nor is it {folder.LAYOUT}; nor {csv_rows.LAYOUT}"
    )


def _check_molecule_options(data: str, options: MoleculeOptions) -> None:
    """Check that options for molecules are used with molecules."""
    if options.smiles_column is not None and (
        is_dataset_name(data) or not data.lower().endswith(".csv") or user_path(data).is_dir()
    ):
        raise ConfigError(
            f"`smiles_column={options.smiles_column}`: '{data}' is not a CSV file; leave the "
            "option out, or pass a CSV file of molecules"
        )
    if options.label_columns is not None and options.smiles_column is None:
        raise ConfigError(
            f"`label_columns={options.label_columns}`: only for CSV files of molecules; pass "
            "`smiles_column` too, or neither"
        )
    of_molecules = options.smiles_column is not None or data.startswith(MOLECULENET)
    if options.split != "auto" and not of_molecules:
        raise ConfigError(
            f"`split={options.split}`: only for molecules, which '{data}' does not have; leave "
            "the option out"
        )


def _subset(task: TaskData, count: int, *, seed: int) -> TaskData:
    """Return the dataset with `count` training samples of every class.

    Raises:
        UserError: if a class has fewer, or the dataset has no classes.
    """
    if not isinstance(task.task_type, Multiclass):
        raise ConfigError(
            f"`samples_per_class={count}`: {task.name} has no classes; leave the option out"
        )
    train = sample_per_class(
        task.train, count, classes=task.classes, seed=derive_seed(seed, "samples")
    )
    note = (
        f"{count} training {task.sample_type}s of every class, drawn by seed {seed}: "
        f"{len(train)} of {len(task.train)}"
    )
    return replace(task, train=train, notes=(*task.notes, note))
