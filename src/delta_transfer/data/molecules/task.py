"""A task of molecules: what it asks is either yes or no, or a value; its splits are drawn."""

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
from delta_transfer.errors import UserError
from delta_transfer.metrics.task_types import MultilabelBinary, Regression, TaskType


def molecule_split(molecules: MoleculeTable, positions: Sequence[int]) -> Split:
    """The molecules at these positions."""
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
        molecules: those of the data.
        pool: the positions of those that are drawn from.
        fractions: of the pool, by the names of the splits; the first is that of train.
        split_method: scaffold or auto, so that no two splits share one; or random, in the same
            proportions of yes and no where this is the only question.
        seed: the seed of this one draw; scaffolds need none.
        display_name: what messages call the data.

    Returns:
        The positions of the molecules of each split.

    Raises:
        UserError: if there are too few molecules or scaffolds.
    """
    if split_method != "random":
        kinds = [scaffold(molecules.names[i]) for i in pool]
        parts = scaffold_split(kinds, list(fractions.values()))
        count, what = len(set(kinds)), "scaffolds (ring systems)"
        mend = "give --split random, or a column split"
    else:
        parts = stratified_random_split(
            _strata(molecules, pool), list(fractions.values()), seed=seed
        )
        count, what, mend = len(pool), "molecules", "add some, or give a column split"
    empty = [name for name, part in zip(fractions, parts, strict=True) if not part]
    if empty:
        raise UserError(
            f"{display_name}: no molecule is left for {' and '.join(empty)}, as there are only "
            f"{count} "
            f"{what} to draw from: {mend}"
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
    """The task of these molecules.

    Args:
        name: of the task.
        molecules: those of the data.
        parts: the positions of those in "train", "val" and, if there is one, "test".
        binary: whether labels are yes and no, not values.
        notes: what a user should know beside those of the molecules.
        val_drawn: as of the task.
        split_method: how it was drawn.

    Raises:
        UserError: if there is nothing to learn from.
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
        kind="graphs",
        group=None if split_method == "random" else scaffold,
    )


def _make_task_type(name: str, train: Split, *, binary: bool) -> TaskType:
    """What is learnt of training molecules."""
    table = np.array(train.labels, dtype=float)
    known = [column[~np.isnan(column)] for column in table.T]
    if not any(len(np.unique(column)) > 1 for column in known):
        raise UserError(
            f"{name}: no column of labels has two different values among the {len(train)} training "
            "molecules, so that there is nothing to learn: add molecules, or choose columns with "
            "--label-columns"
        )
    if binary:
        return MultilabelBinary(labelled_fraction=sum(map(len, known)) / table.size)
    return Regression(
        mean=tuple(float(column.mean()) if len(column) else 0.0 for column in known),
        std=tuple(float(column.std()) or 1.0 if len(column) else 1.0 for column in known),
    )


def _strata(molecules: MoleculeTable, pool: Sequence[int]) -> list[float]:
    """The answer of each molecule where there is one question and all is known, else zeros."""
    rows = [molecules.labels[i] for i in pool]
    alike = len(molecules.label_columns) > 1 or not molecules.binary
    if alike or any(math.isnan(value) for (value,) in rows):
        return [0.0] * len(pool)
    return [value for (value,) in rows]
