"""Find the labelled data to evaluate a run on, and map its labels to the run's outputs."""

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
from delta_transfer.errors import ConfigError, DataError, UserError
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.metrics.task_types import Multiclass, MultilabelBinary, TaskType
from delta_transfer.runs.preparation.task import molecule_options


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """Data to evaluate a run on.

    Args:
        target_names: the names of its classes or targets.
        split: its samples.
        metric_name: the metric that is usually reported for it.
        overlaps_training_data: True if the run may have been trained on some of it.
    """

    target_names: Sequence[str]
    split: Split
    metric_name: MetricName
    overlaps_training_data: bool


def find_labelled_data(
    config: TrainConfig, data: str, data_root: str | None, *, of_molecules: bool
) -> LabelledData:
    """Return the test split of some data, or all of it if it has none.

    Args:
        config: of the run; of its own data, the run's test split is used.
        data: a folder, a CSV file or a named data set, as for training.
        data_root: folder of named data sets; the run's if None.
        of_molecules: whether the run is on molecules.

    Raises:
        UserError: if the data cannot be used.
    """
    metric: MetricName = "accuracy"
    data_root = data_root or config.data_root
    named, own = is_dataset_name(data), _is_training_data(config, data)
    molecules = _molecules(config, data, of_molecules=of_molecules)
    if own or named:
        # The run's own data: the same test split, even if it was drawn by the seed.
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
    overlaps = own or (not named and not apart and _overlaps_training_data(config, data, split))
    return LabelledData(classes, split, metric, overlaps)


def check_samples(data: str, split: Split, spec: Any) -> None:
    """Check that the samples of some data fit a network.

    Args:
        data: its name.
        split: its samples.
        spec: `Backbone.input_spec` of the network.

    Raises:
        DataError: if they do not.
    """
    first = _first(split)
    graphs = hasattr(first, "edge_index")
    if graphs != isinstance(spec, GraphSpec):
        actual, expected = ("graphs", "images") if graphs else ("images", "graphs")
        raise DataError(f"{data} contains {actual}, but the run's network expects {expected}")
    if isinstance(spec, GraphSpec) and GraphSpec.from_node_features(first.x) != spec:
        raise DataError(
            f"{data} has {first.x.shape[1]} node features, but the run's network expects "
            f"{spec.num_node_features}: use data of the same kind"
        )


def map_to_run_labels(
    data: str, labelled: LabelledData, classes: Sequence[str], task_type: TaskType
) -> Split:
    """Return the samples with labels in the order of a network's classes or outputs.

    Args:
        data: its name.
        labelled: the samples, with their own labels.
        classes: the names of the network's outputs.
        task_type: of the network.

    Raises:
        DataError: if the labels do not fit the network's outputs.
    """
    split, theirs = labelled.split, labelled.target_names
    if isinstance(split.labels[0], int) != isinstance(task_type, Multiclass):
        kind = "classes" if isinstance(split.labels[0], int) else "binary or regression targets"
        raise DataError(
            f"{data} has {kind}, but the run was trained on {task_type.target_kind}: use data of "
            "the same kind"
        )
    unknown = sorted(set(theirs) - set(classes))
    known = ", ".join(classes)
    if isinstance(task_type, Multiclass):
        if unknown:
            raise DataError(
                f"{data} has classes that the run does not know: {', '.join(unknown)}; "
                f"it knows {known}"
            )
        own = tuple(classes.index(theirs[label]) for label in split.class_indices)
        return dataclasses.replace(split, labels=own)
    if len(unknown) == len(theirs):
        raise DataError(f"{data} has none of the run's targets: {known}")
    targets = _targets_by_name(theirs, split, classes)
    is_binary = (targets == 0) | (targets == 1) | torch.isnan(targets)
    if isinstance(task_type, MultilabelBinary) and not bool(is_binary.all()):
        raise DataError(
            f"{data} has labels other than 0 and 1, but the run's targets are binary ({known})"
        )
    return dataclasses.replace(split, labels=tuple(tuple(row) for row in targets.tolist()))


def real_path(data: str) -> Path:
    """Return the path of the user's data, with links resolved."""
    return Path(data).expanduser().resolve()


def _targets_by_name(theirs: Sequence[str], split: Split, classes: Sequence[str]) -> Tensor:
    """Return the labels `[N, K]` in the order of a network's outputs, NaN where unknown."""
    known = [dict(zip(theirs, row, strict=True)) for row in split.targets.tolist()]
    return torch.tensor([[row.get(name, math.nan) for name in classes] for row in known])


def _overlaps_training_data(config: TrainConfig, data: str, split: Split) -> bool:
    """Return True if some samples are from the run's data, but not from its test split."""
    if not real_path(data).is_relative_to(real_path(config.data)):
        return False
    try:
        own = _load(config, config.data, config.test_split, None, molecule_options(config))
    except UserError:  # the folder has changed, so assume the worst
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
    """Return the run's options of molecules, as far as they apply to this data.

    Raises:
        ConfigError: if the run is on molecules and the data cannot be.
    """
    options = molecule_options(config)
    if _is_training_data(config, data):
        return options
    if not of_molecules or is_dataset_name(data):
        return DEFAULT_MOLECULE_OPTIONS
    if Path(data).suffix.lower() != ".csv":
        raise ConfigError(
            f"'{data}' is not a CSV file; this run was trained on molecules: use a CSV file with a "
            f"column of SMILES, or {MOLECULENET}NAME"
        )
    return dataclasses.replace(options, smiles_column=options.smiles_column or "smiles")


def _is_training_data(config: TrainConfig, data: str) -> bool:
    """Return True if the run was trained on this data, perhaps under another name."""
    own = config.data
    if is_dataset_name(data) or is_dataset_name(own):
        return _canonical(data) == _canonical(own)
    return real_path(data) == real_path(own)


def _canonical(data: str) -> str:
    """Return a data set's name in canonical spelling."""
    if not data.startswith(MOLECULENET):
        return data
    return data.casefold().replace("-", "").replace("_", "")


def _first(split: Split) -> Any:
    """Return the first sample; None if it cannot be read."""
    try:
        return split.read(split.paths[0])
    except UserError:
        return None


def _located(data: str, split: Split) -> set[str]:
    """Return the files of a split, with links resolved."""
    folder = real_path(data)
    folder = folder if folder.is_dir() else folder.parent
    return {os.path.realpath(folder / path) for path in split.paths}
