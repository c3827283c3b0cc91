"""Load the dataset of a run, and check the options about its splits."""

import dataclasses
import socket

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.registry import is_dataset_name, load_data
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import ConfigError, DataError, first_few
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs.preparation.folds import max_folds
from delta_transfer.runs.preparation.loss import check_classification_options
from delta_transfer.utils.distributed import all_gather, world_size


def find_data(config: TrainConfig) -> TaskData:
    """Return the dataset of the options with its splits; no sample is read.

    Raises:
        UserError: if the data is invalid, or does not fit the options.
    """
    task = load_data(
        config.data,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_split=config.test_split,
        samples_per_class=config.samples_per_class,
        data_root=config.data_root,
        molecule_options=molecule_options(config),
    )
    check_classification_options(config, task.task_type, name=task.name)
    return task


def molecule_options(config: TrainConfig) -> MoleculeOptions:
    """Return the options about molecules."""
    return MoleculeOptions(
        smiles_column=config.smiles_column,
        label_columns=config.label_columns,
        split=config.split,
    )


def check_splits(config: TrainConfig, task: TaskData) -> None:
    """Check that the data allows the folds of the options.

    Raises:
        ConfigError: if it does not.
    """
    if config.folds == "auto" or not config.folds:
        return
    if not task.val_drawn:
        hint = (
            ""
            if is_dataset_name(config.data)
            else f", or move the validation {task.sample_type}s to the training ones"
        )
        raise ConfigError(
            f"`folds={config.folds}`: {task.name} has its own validation split; leave the option "
            f"out{hint}"
        )
    most = max_folds(config, task)
    if config.folds > most and task.group is not None:
        raise ConfigError(
            f"`folds={config.folds}`: there are only {most} scaffolds (ring systems) to train on, "
            f"whose molecules stay together; use at most {most}, or `split=random`"
        )
    if config.folds > most:
        whose = "the largest class has" if isinstance(task.task_type, Multiclass) else "there are"
        raise ConfigError(
            f"`folds={config.folds}`: {whose} only {most} {task.sample_type}s to train on; use at "
            f"most {most}"
        )


def use_local_files(task: TaskData, local: TaskData) -> TaskData:
    """Return the main process's dataset with the files of this process's machine.

    Args:
        task: the dataset and image cache of the main process.
        local: the dataset as this process has found it.

    Raises:
        DataError: in all processes, if a sample is missing in one of them.
    """
    if world_size() == 1:
        return task
    pairs = [(task.train, local.train), (task.val, local.val), (task.test, local.test)]
    found = {path for _, split in pairs if split is not None for path in split.paths}
    lost = [path for split, _ in pairs if split is not None for path in split.paths]
    lost = [path for path in lost if path not in found]
    for host, paths in all_gather((socket.gethostname(), first_few(lost))):
        if paths:
            raise DataError(
                f"{task.name}: {paths} not found on {host}: all machines need the same "
                f"{task.sample_type}s"
            )
    train, val, test = (None if t is None or o is None else _local(t, o) for t, o in pairs)
    assert train is not None
    assert val is not None
    return dataclasses.replace(task, train=train, val=val, test=test)


def _local(split: Split, local: Split) -> Split:
    cache = None if split.image_cache is None else split.image_cache.on_this_machine()
    return dataclasses.replace(split, read=local.read, image_cache=cache)
