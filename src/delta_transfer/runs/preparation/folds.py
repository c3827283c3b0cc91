"""Cross-validation folds: how many, and which samples each holds out."""

import warnings
from collections import Counter

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedKFold

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import TaskData, pool_train_and_val
from delta_transfer.utils.seeds import derive_seed

DEFAULT_FOLDS = 3
FOLDS_BELOW = 1000
"""With at least so many training samples, a single validation split decides as well."""


def training_pool(config: TrainConfig, task: TaskData) -> list[int]:
    """Return the samples that a run may train on: positions in `pool_train_and_val`.

    A validation split that comes with the data is never trained on, and one that was drawn is not
    if the number of samples per class is given, which is to be exact.
    """
    whole = task.val_drawn and config.samples_per_class is None
    return list(range(len(task.train) + (len(task.val) if whole else 0)))


def count_folds(config: TrainConfig, task: TaskData) -> int:
    """Return the number of folds; 0 for a single validation split."""
    if config.folds != "auto":
        return config.folds
    pool = training_pool(config, task)
    if not task.val_drawn or config.paper_protocol or len(pool) >= FOLDS_BELOW:
        return 0
    most = min(DEFAULT_FOLDS, max_folds(config, task))
    return most if most > 1 else 0


def count_fit_samples(config: TrainConfig, task: TaskData) -> int:
    """Return the number of samples of each training; of the largest if folds differ in size."""
    folds = count_folds(config, task)
    if not folds:
        return len(task.train)
    pool = len(training_pool(config, task))
    return pool - pool // folds


def max_folds(config: TrainConfig, task: TaskData) -> int:
    """Return the number of groups, or of samples of the largest class."""
    samples = pool_train_and_val(task).subset(training_pool(config, task))
    if task.group is not None:
        return len({task.group(path) for path in samples.paths})
    return max(Counter(samples.class_indices).values())


def split_folds(
    config: TrainConfig, task: TaskData, folds: int
) -> list[tuple[list[int], list[int]]]:
    """Return positions to train on and to hold out, stratified by class if there are classes.

    Groups that the split kept together, such as scaffolds, are held out together.

    Args:
        config: the options, with the seed.
        task: the dataset.
        folds: the number of folds, at least 2.

    Returns:
        Positions in `pool_train_and_val`, of each fold.
    """
    pool = np.array(training_pool(config, task))
    samples = pool_train_and_val(task).subset(pool)
    draw = derive_seed(config.seed, "folds") % 2**32  # scikit-learn takes no larger one
    if task.group is not None:
        _, groups = np.unique([task.group(path) for path in samples.paths], return_inverse=True)
        # scikit-learn fills folds by the size of groups, and orders those of equal size by number;
        # its own shuffle would not balance the sizes of folds.
        groups = np.random.default_rng(draw).permutation(groups.max() + 1)[groups]
        found = list(GroupKFold(folds).split(groups, groups=groups))
    else:
        labels = np.array(samples.class_indices)
        splitter = StratifiedKFold(folds, shuffle=True, random_state=draw)
        with warnings.catch_warnings():
            # A class with fewer samples than folds is held out in as many folds as it has samples.
            warnings.filterwarnings("ignore", "The least populated class")
            found = list(splitter.split(labels, labels))
    return [(pool[train].tolist(), pool[val].tolist()) for train, val in found]
