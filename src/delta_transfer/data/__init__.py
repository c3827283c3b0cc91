"""Data: a name or a folder becomes a Task of train, validation and test pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from delta_transfer.data.base import EpochSampler, PictureDataset, Split, Task
from delta_transfer.data.digits import load_sklearn_digits
from delta_transfer.data.folder import LAYOUT, load_folder
from delta_transfer.data.seeds import derive_seed
from delta_transfer.data.skimage_patches import load_skimage_patches
from delta_transfer.data.splits import DEFAULT_TEST_SPLIT, DEFAULT_VAL_FRACTION, take_per_class
from delta_transfer.errors import UserError, unknown

__all__ = ["SOURCES", "EpochSampler", "PictureDataset", "Source", "Split", "Task", "load_task"]


class Source(Protocol):
    """What loads a named data set."""

    def __call__(self, *, seed: int, val_fraction: float, test_split: str) -> Task:
        """The task, with any split that is drawn drawn by seed."""
        ...


SOURCES: dict[str, Source] = {
    "skimage/patches": load_skimage_patches,
    "sklearn/digits": load_sklearn_digits,
}
"""The data sets that have a name; everything else is a folder."""


def load_task(
    data: str,
    *,
    seed: int,
    val_fraction: float = DEFAULT_VAL_FRACTION,
    test_split: str = DEFAULT_TEST_SPLIT,
    samples_per_class: int | None = None,
) -> Task:
    """The task that a name or a folder stands for.

    Args:
        data: a name in `SOURCES`, or a folder `{train,val,test}/<class>/*` or `<class>/*`.
        seed: draws the splits that are not given, and the subset.
        val_fraction: the part of the training pictures held out for validation, class by class,
            where there is no validation split.
        test_split: the name of the test split, or a fraction such as "0.2" of the training
            pictures to draw one where there is none.
        samples_per_class: so many training pictures of every class are drawn, after the
            validation split is held out; None for all.

    Returns:
        The task; its notes say what was drawn and what is missing.

    Raises:
        UserError: if there is no such data, it does not look as it must, or an option is out of
            its range.

    Example:
        >>> task = load_task("sklearn/digits", seed=0, samples_per_class=3)
        >>> len(task.classes), len(task.train)
        (10, 30)
    """
    _check_options(seed=seed, val_fraction=val_fraction, samples_per_class=samples_per_class)
    if data in SOURCES:
        task = SOURCES[data](seed=seed, val_fraction=val_fraction, test_split=test_split)
    elif data and (folder := Path(data).expanduser()).exists():
        task = load_folder(folder, seed=seed, val_fraction=val_fraction, test_split=test_split)
    else:
        raise UserError(
            f"{unknown('data set', data, list(SOURCES))}; "
            f"there is no folder of this name either, which would have to be {LAYOUT}"
        )
    return task if samples_per_class is None else _subset(task, samples_per_class, seed=seed)


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


def _subset(task: Task, count: int, *, seed: int) -> Task:
    """The task with `count` training pictures of every class."""
    train = take_per_class(
        task.train, count, classes=task.classes, seed=derive_seed(seed, "samples")
    )
    note = (
        f"{count} training pictures of every class, drawn by seed {seed}: "
        f"{len(train)} of {len(task.train)}"
    )
    return replace(task, train=train, notes=(*task.notes, note))
