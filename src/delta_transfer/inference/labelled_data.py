"""Labelled data that a run is evaluated on: found, and put in the run's own terms."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.molecules.options import DEFAULT_MOLECULE_OPTIONS, MoleculeOptions
from delta_transfer.data.names import MOLECULENET
from delta_transfer.data.registry import is_dataset_name, load_data, load_labelled_data
from delta_transfer.data.splits import DEFAULT_TEST_SPLIT
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.metrics.task_types import Multiclass, MultilabelBinary, TaskType
from delta_transfer.runs.preparation.task import molecule_options


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """Data that a run is evaluated on.

    Args:
        target_names: the names of its classes, questions or values.
        split: its samples.
        metric_name: what the field reports of it.
        overlaps_training_data: whether the run may have been trained on some of it.
    """

    target_names: Sequence[str]
    split: Split
    metric_name: MetricName
    overlaps_training_data: bool


def find_labelled_data(
    config: TrainConfig, data: str, data_root: str | None, *, of_molecules: bool
) -> LabelledData:
    """The test split of some data, or all of it where there is none.

    Args:
        config: of the run; of its own data, the very test split of the run counts.
        data: a folder, a CSV file or a named data set, as for training.
        data_root: where named data sets lie or are downloaded to; that of the run if None.
        of_molecules: whether the run is on molecules.

    Raises:
        UserError: if the data is not as it must be.
    """
    metric: MetricName = "accuracy"
    data_root = data_root or config.data_root
    named, own = is_dataset_name(data), _is_training_data(config, data)
    molecules = _molecules(config, data, of_molecules=of_molecules)
    if own or named:
        # The run's own data: the same test split, also where the seed drew it.
        test_split = config.test_split if own else DEFAULT_TEST_SPLIT
        task = _load(config, data, test_split, data_root if named else None, molecules)
        metric = task.metric
        if task.test is not None:
            return LabelledData(task.classes, task.test, metric, overlaps_training_data=False)
    classes, split, apart = load_labelled_data(
        data,
        seed=config.seed,
        test_split=config.test_split,
        data_root=data_root,
        molecule_options=molecules,
    )
    seen = own or (not named and not apart and _overlaps_training_data(config, data, split))
    return LabelledData(classes, split, metric, seen)


def check_samples(data: str, split: Split, spec: Any) -> None:
    """Checks that a network takes what some data is of.

    Args:
        data: what it is called.
        split: its samples.
        spec: `Backbone.input_spec` of the network.

    Raises:
        UserError: if it does not.
    """
    first = _first(split)
    graphs = hasattr(first, "edge_index")
    if graphs != isinstance(spec, GraphSpec):
        there, taken = ("graphs", "images") if graphs else ("images", "graphs")
        raise UserError(f"{data} is of {there}, and the network of this run takes {taken}")
    if isinstance(spec, GraphSpec) and GraphSpec.from_node_features(first.x) != spec:
        raise UserError(
            f"{data} describes a node by {first.x.shape[1]} numbers, and the network of this "
            f"run by {spec.num_node_features}: give data of the same kind"
        )


def map_to_run_labels(
    data: str, labelled: LabelledData, classes: Sequence[str], task_type: TaskType
) -> Split:
    """The samples with labels by a network's own classes, or in the order of its outputs.

    Args:
        data: what they are called.
        labelled: the samples, with labels in their own terms.
        classes: what the network's outputs are called.
        task_type: what the network was trained on.

    Raises:
        UserError: if the network cannot answer what the labels say.
    """
    split, theirs = labelled.split, labelled.target_names
    if isinstance(split.labels[0], int) != isinstance(task_type, Multiclass):
        kind = "classes" if isinstance(split.labels[0], int) else "binary or regression targets"
        raise UserError(
            f"{data} has {kind}, and the run was trained on {task_type.target_kind}: "
            "give data of the same kind"
        )
    strange = sorted(set(theirs) - set(classes))
    known = ", ".join(classes)
    if isinstance(task_type, Multiclass):
        if strange:
            raise UserError(
                f"{data} has classes that the run does not know: {', '.join(strange)}; "
                f"it knows {known}"
            )
        own = tuple(classes.index(theirs[label]) for label in split.class_indices)
        return dataclasses.replace(split, labels=own)
    if len(strange) == len(theirs):
        raise UserError(f"{data} has none of the columns that the run answers: {known}")
    answers = _targets_by_name(theirs, split, classes)
    yes_or_no = (answers == 0) | (answers == 1) | torch.isnan(answers)
    if isinstance(task_type, MultilabelBinary) and not bool(yes_or_no.all()):
        raise UserError(
            f"{data} has values, and the run answers with no or yes ({known}): give 0 or 1"
        )
    return dataclasses.replace(split, labels=tuple(tuple(row) for row in answers.tolist()))


def real_path(data: str) -> Path:
    """Where data of the user's own lies, links resolved."""
    return Path(data).expanduser().resolve()


def _targets_by_name(theirs: Sequence[str], split: Split, classes: Sequence[str]) -> Tensor:
    """What is known of each of a network's outputs `[N, K]`, by the names of the columns."""
    known = [dict(zip(theirs, row, strict=True)) for row in split.targets.tolist()]
    return torch.tensor([[row.get(name, math.nan) for name in classes] for row in known])


def _overlaps_training_data(config: TrainConfig, data: str, split: Split) -> bool:
    """Whether some images are from the run's folder, but not from its test split."""
    if not real_path(data).is_relative_to(real_path(config.data)):
        return False
    try:
        own = _load(config, config.data, config.test_split, None, molecule_options(config))
    except UserError:  # the folder is no longer what it was: nobody knows
        return True
    return own.test is None or not _located(data, split) <= _located(config.data, own.test)


def _load(
    config: TrainConfig,
    data: str,
    test_split: str,
    data_root: str | None,
    molecules: MoleculeOptions,
) -> TaskData:
    return load_data(
        data,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_split=test_split,
        data_root=data_root,
        molecule_options=molecules,
    )


def _molecules(config: TrainConfig, data: str, *, of_molecules: bool) -> MoleculeOptions:
    """What the run says of molecules, if that can be of this data: a file has its columns.

    Raises:
        UserError: if the run is on molecules and the data cannot be.
    """
    options = molecule_options(config)
    if _is_training_data(config, data):
        return options
    if not of_molecules or is_dataset_name(data):
        return DEFAULT_MOLECULE_OPTIONS
    if Path(data).suffix.lower() != ".csv":
        raise UserError(
            f"'{data}' is no CSV file: this run is on molecules; give a CSV file with a column "
            f"of SMILES, or {MOLECULENET}NAME"
        )
    return dataclasses.replace(options, smiles_column=options.smiles_column or "smiles")


def _is_training_data(config: TrainConfig, data: str) -> bool:
    """Whether it is what the run was trained on, under another name perhaps."""
    own = config.data
    if is_dataset_name(data) or is_dataset_name(own):
        return _canonical(data) == _canonical(own)
    return real_path(data) == real_path(own)


def _canonical(data: str) -> str:
    """The name of a data set without what tells no two of them apart."""
    if not data.startswith(MOLECULENET):
        return data
    return data.casefold().replace("-", "").replace("_", "")


def _first(split: Split) -> Any:
    """One of the samples; None where it is an image that cannot be read."""
    try:
        return split.read(split.paths[0])
    except UserError:
        return None


def _located(data: str, split: Split) -> set[str]:
    """The files of a split, links resolved."""
    folder = real_path(data)
    folder = folder if folder.is_dir() else folder.parent
    return {os.path.realpath(folder / path) for path in split.paths}
