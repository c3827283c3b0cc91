"""Datasets of molecules: drawn splits, and binary targets or values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from delta_transfer.data.molecules.options import SplitMethod
from delta_transfer.data.molecules.scaffold_split import (
    scaffold,
    scaffold_split,
    stratified_random_split,
)
from delta_transfer.data.molecules.smiles import read_molecule
from delta_transfer.data.molecules.table import MoleculeTable
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import DataError
from delta_transfer.metrics.task_types import MultilabelBinary, Regression, TaskType


def molecule_split(molecules: MoleculeTable, positions: Sequence[int]) -> Split:
    """Return the molecules at these positions."""
    labels: Any = molecules.labels
    paths = molecules.names
    everything = Split(paths=paths, labels=labels, read=read_molecule, sample_type="molecule")
    return everything.subset(positions)


def draw_splits(
    molecules: MoleculeTable,
    pool: Sequence[int],
    fractions: Mapping[str, float],
    *,
    split_method: SplitMethod,
    seed: int,
    display_name: str,
) -> dict[str, list[int]]:
    """Draw splits of molecules.

    Args:
        molecules: of the dataset.
        pool: the positions to draw from.
        fractions: of the pool, by the names of the splits, train first.
        split_method: "scaffold" or "auto", so that no two splits share a scaffold; or "random",
            stratified if there is a single binary target.
        seed: the seed of this draw; scaffolds need none.
        display_name: the name of the data in messages.

    Returns:
        The positions of the molecules of each split.

    Raises:
        DataError: if there are too few molecules or scaffolds.
    """
    if split_method != "random":
        scaffolds = [scaffold(molecules.names[i]) for i in pool]
        parts = scaffold_split(scaffolds, list(fractions.values()))
        available = f"{len(set(scaffolds))} scaffolds (ring systems)"
        hint = "use `split=random`, or add a column split"
    else:
        parts = stratified_random_split(
            _strata(molecules, pool), list(fractions.values()), seed=seed
        )
        available, hint = f"{len(pool)} molecules", "add some, or a column split"
    empty = [name for name, part in zip(fractions, parts, strict=True) if not part]
    if empty:
        raise DataError(
            f"{display_name}: no molecule is left for {' and '.join(empty)}, with only "
            f"{available} to draw from: {hint}"
        )
    return {name: [pool[i] for i in part] for name, part in zip(fractions, parts, strict=True)}


def make_task_data(
    name: str,
    molecules: MoleculeTable,
    parts: Mapping[str, Sequence[int]],
    *,
    binary: bool,
    notes: Sequence[str],
    val_drawn: bool,
    split_method: SplitMethod = "random",
) -> TaskData:
    """Make a dataset of molecules.

    Args:
        name: of the dataset.
        molecules: all of them.
        parts: the positions of those in "train", "val" and, if there is one, "test".
        binary: whether labels are 0 and 1, not values.
        notes: sentences for the user beside those of the molecules.
        val_drawn: as in `TaskData`.
        split_method: of `parts`.

    Raises:
        DataError: if no target has two different values to train on.
    """
    train = molecule_split(molecules, parts["train"])
    return TaskData(
        name=name,
        classes=molecules.label_columns,
        train=train,
        val=molecule_split(molecules, parts["val"]),
        test=molecule_split(molecules, parts["test"]) if "test" in parts else None,
        notes=(*molecules.notes, *notes),
        metric="roc_auc" if binary else "rmse",
        val_drawn=val_drawn,
        task_type=_make_task_type(name, train, binary=binary),
        group=None if split_method == "random" else scaffold,
    )


def _make_task_type(name: str, train: Split, *, binary: bool) -> TaskType:
    table = np.array(train.labels, dtype=float)
    known = [column[~np.isnan(column)] for column in table.T]
    if not any(len(np.unique(column)) > 1 for column in known):
        raise DataError(
            f"{name}: no column of labels has two different values among the {len(train)} training "
            "molecules: add molecules, or choose other `label_columns`"
        )
    if binary:
        return MultilabelBinary(labelled_fraction=sum(map(len, known)) / table.size)
    return Regression(
        mean=tuple(float(column.mean()) if len(column) else 0.0 for column in known),
        std=tuple(float(column.std()) or 1.0 if len(column) else 1.0 for column in known),
    )


def _strata(molecules: MoleculeTable, pool: Sequence[int]) -> list[float]:
    """Return the label of each molecule for a single, fully known binary target, else zeros."""
    rows = [molecules.labels[i] for i in pool]
    unstratified = len(molecules.label_columns) > 1 or not molecules.binary
    if unstratified or any(math.isnan(value) for (value,) in rows):
        return [0.0] * len(pool)
    return [value for (value,) in rows]
