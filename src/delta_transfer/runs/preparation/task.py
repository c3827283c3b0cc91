"""The task that the options of a run name, and whether they suit each other."""

import dataclasses
import socket
from collections import Counter

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.molecules.options import MoleculeOptions
from delta_transfer.data.registry import is_dataset_name, load_data
from delta_transfer.data.task import Split, TaskData, pool_train_and_val
from delta_transfer.errors import UserError, first_few
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs.preparation.loss import check_classification_options
from delta_transfer.utils.distributed import all_gather, world_size


def find_data(config: TrainConfig) -> TaskData:
    """The images that the options name, in their splits; none is read.

    Raises:
        UserError: if the data is not as it must be.
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
    """What the options of a run say of molecules."""
    return MoleculeOptions(
        smiles_column=config.smiles_column,
        label_columns=config.label_columns,
        split=config.split,
    )


def check_splits(config: TrainConfig, task: TaskData) -> None:
    """Checks that options about the validation split suit a task.

    Raises:
        UserError: if folds are asked for that the data does not allow.
    """
    if config.folds and not task.val_drawn:
        mend = (
            ""
            if is_dataset_name(config.data)
            else f", or move the validation {task.sample_type}s to the training ones"
        )
        raise UserError(
            f"--folds {config.folds}: {task.name} has its own validation split, on which the epoch "
            f"is chosen; leave the option out{mend}"
        )
    if config.folds and task.group is not None:
        count = len({task.group(path) for path in pool_train_and_val(task).paths})
        if config.folds > count:
            raise UserError(
                f"--folds {config.folds}: molecules with the same scaffold (ring system) stay "
                f"together, and there are only {count} scaffolds to learn from; give {count} or "
                "fewer, or --split random"
            )
    most = max(Counter(pool_train_and_val(task).class_indices).values()) if config.folds else 0
    if config.folds > most:
        whose = "the largest class has" if isinstance(task.task_type, Multiclass) else "there are"
        raise UserError(
            f"--folds {config.folds}: {whose} only {most} {task.sample_type}s to learn from; "
            f"give {most} or fewer"
        )


def use_local_files(task: TaskData, local: TaskData) -> TaskData:
    """The main process's task with the images of this one's machine.

    Args:
        task: with what the main process reads and has kept.
        local: as this process has found it.

    Raises:
        UserError: in all processes, if one of them does not find an image.
    """
    if world_size() == 1:
        return task
    pairs = [(task.train, local.train), (task.val, local.val), (task.test, local.test)]
    there = {path for _, split in pairs if split is not None for path in split.paths}
    lost = [path for split, _ in pairs if split is not None for path in split.paths]
    lost = [path for path in lost if path not in there]
    told = all_gather((socket.gethostname(), first_few(lost)))
    for host, paths in told:
        if paths:
            raise UserError(
                f"{task.name}: a process on {host} does not find {paths}, which the main "
                "process does: all machines need the same images"
            )
    train, val, test = (None if t is None or o is None else _local(t, o) for t, o in pairs)
    assert train is not None
    assert val is not None
    return dataclasses.replace(task, train=train, val=val, test=test)


def _local(split: Split, local: Split) -> Split:
    kept = None if split.image_cache is None else split.image_cache.on_this_machine()
    return dataclasses.replace(split, read=local.read, image_cache=kept)
