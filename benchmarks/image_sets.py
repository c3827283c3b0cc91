"""The sets of images of `accuracy.py` and `peers.py`, and tiny sets cut from them.

A set is a folder below `--shared`, or a dataset that comes with a package. `trashnet@2x20` is a
tiny set cut from `trashnet`: 2 classes with 20 training images each, drawn by the seed, and all
test images of these classes.

The rule of a draw: a permutation of the set's classes gives its first C classes; for each class, a
permutation of its training and validation images gives its first K images. The seed of a
permutation depends on the set, and for images on the class, but not on C and K. So with the same
seed the 2 classes are among the 3, and the 10 images among the 20.
"""

import argparse
import dataclasses
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from delta_transfer.config.commands import parse_samples_per_class
from delta_transfer.data.images.decode import IMAGE_SUFFIXES
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import Split, TaskData, pool_train_and_val
from delta_transfer.errors import ConfigError, DataError, unknown
from delta_transfer.utils.seeds import derive_seed

FOLDERS = ("dtd10", "cifar10_small", "trashnet", "clothing", "pacs_photo", "pacs_sketch")
"""Folders below `images/` of `--shared`."""

PACKAGED = ("skimage/patches", "sklearn/digits")
FULL = (*FOLDERS, *PACKAGED)

# skimage/patches has 15 images of each class to draw from.
TINY = tuple(
    f"{name}@{classes}x{count}"
    for classes in (2, 3)
    for count in (10, 20)
    for name in FULL
    if not (name == "skimage/patches" and count == 20)
)
GROUPS = {"full": FULL, "tiny": TINY}


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of images, or a tiny set cut from it.

    Args:
        name: of the whole set.
        tiny: number of classes and of training images of each class; None for the whole set.
    """

    name: str
    tiny: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.name if self.tiny is None else f"{self.name}@{self.tiny[0]}x{self.tiny[1]}"

    @property
    def folder_name(self) -> str:
        """The name without a slash."""
        return str(self).replace("/", "-")

    def source(self, shared: Path) -> str:
        """Return the whole set as `load_data` takes it.

        Raises:
            DataError: if its folder is missing.
        """
        if self.name not in FOLDERS:
            return self.name
        folder = shared / "images" / self.name
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}: set `shared`")
        return str(folder)

    def data(self, shared: Path, out: Path, *, seed: int) -> str:
        """Return the set as `load_data` takes it; cut a tiny set into a folder below `out`."""
        if self.tiny is None:
            return self.source(shared)
        folder = out / "sets" / self.folder_name / f"seed{seed}"
        if not folder.is_dir():
            classes, count = self.tiny
            task = load_data(self.source(shared), seed=seed)
            root = Path(self.source(shared)) if self.name in FOLDERS else None
            cut = draw(task, self.name, classes=classes, count=count, seed=seed)
            write(cut, folder, root=root)
        return str(folder)


def parse_sets(text: str) -> list[ImageSet]:
    """Return the sets in a comma-separated text; `full` and `tiny` are groups.

    Raises:
        ConfigError: if there is no such set.

    Example:
        >>> [str(found) for found in parse_sets("dtd10,trashnet@2x20")]
        ['dtd10', 'trashnet@2x20']
    """
    names = [name for part in text.split(",") for name in GROUPS.get(part, (part,))]
    return [_parse(name) for name in dict.fromkeys(names)]


def _parse(text: str) -> ImageSet:
    name, at, size = text.partition("@")
    if name not in FULL:
        raise unknown("set", text, [*GROUPS, *FULL])
    if not at:
        return ImageSet(name)
    found = re.fullmatch(r"(\d+)x(\d+)", size)
    if found is None or int(found[1]) < 2 or int(found[2]) < 2:
        raise ConfigError(
            f"`sets={text}`: a tiny set is {name}@CxK, with C classes and K images each, at least "
            "2 of both"
        )
    return ImageSet(name, (int(found[1]), int(found[2])))


def draw(task: TaskData, name: str, *, classes: int, count: int, seed: int) -> TaskData:
    """Draw classes, and training images of each; keep all their test images.

    Args:
        task: the whole set, with a test split.
        name: of the whole set, for the seeds of the draws.
        classes: number of classes.
        count: training images of each class.
        seed: the user's seed.

    Returns:
        The tiny set with an empty validation split; its labels count from 0.

    Raises:
        DataError: if the set has fewer classes, or a class fewer images.
    """
    if classes > len(task.classes):
        raise DataError(f"{name} has {len(task.classes)} classes, fewer than {classes}")
    assert task.test is not None
    order = _permutation(len(task.classes), seed, "classes", name)
    chosen = sorted(order[:classes])
    pool = pool_train_and_val(task)
    labels = pool.class_indices
    train: list[int] = []
    for label in chosen:
        members = [index for index, own in enumerate(labels) if own == label]
        if len(members) < count:
            raise DataError(
                f"{name}: class '{task.classes[label]}' has {len(members)} images to train on, "
                f"fewer than {count}"
            )
        order = _permutation(len(members), seed, "images", name, task.classes[label])
        train += sorted(members[position] for position in order[:count])
    test = [index for index, own in enumerate(task.test.class_indices) if own in chosen]
    return dataclasses.replace(
        task,
        classes=tuple(task.classes[label] for label in chosen),
        train=_relabel(pool.subset(train), chosen),
        val=pool.subset([]),
        test=_relabel(task.test.subset(test), chosen),
    )


def _permutation(length: int, seed: int, *purpose: str) -> list[int]:
    generator = np.random.default_rng(derive_seed(seed, "tiny set", *purpose))
    return [int(index) for index in generator.permutation(length)]


def _relabel(split: Split, chosen: Sequence[int]) -> Split:
    return dataclasses.replace(
        split, labels=tuple(chosen.index(label) for label in split.class_indices)
    )


def write(task: TaskData, folder: Path, *, root: Path | None) -> None:
    """Write `folder/{train,test}/<class>/*`: links to the files, or PNG files where there are none.

    The folder appears when it is complete.

    Args:
        task: the set.
        folder: must not exist.
        root: the folder of the paths of the splits; None if they are not files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".cut-") as temporary:
        # A folder in it: a temporary folder itself is readable by its owner alone.
        made = Path(temporary) / "set"
        assert task.test is not None
        for name, split in (("train", task.train), ("test", task.test)):
            for path, label in zip(split.paths, split.class_indices, strict=True):
                # Paths of two splits may differ in their folders alone.
                target = made / name / task.classes[label] / path.replace("/", "-")
                target.parent.mkdir(parents=True, exist_ok=True)
                if root is None:
                    split.read(path).save(target.with_name(f"{target.name}.png"))
                else:
                    assert target.suffix.lower() in IMAGE_SUFFIXES
                    _link((root / path).resolve(), target)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def _link(source: Path, target: Path) -> None:
    try:
        os.symlink(source, target)
    except OSError:  # such as Windows without the right to make links
        shutil.copyfile(source, target)


def sizes_of(data: str, wanted: Sequence[int | None]) -> tuple[list[int | None], list[str]]:
    """Return the training images per class that a set has, and notes on those that it lacks.

    If it has none of them, all its images are used.
    """
    most = min(Counter(load_data(data, seed=0).train.labels).values())
    missing = [size for size in wanted if size is not None and size > most]
    found = [size for size in wanted if size not in missing] or [None]
    instead = " All are used." if found == [None] and None not in wanted else ""
    notes = [
        f"has at most {most} training images of each class, not {n}.{instead}" for n in missing
    ]
    return found, notes


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images to use."""
    parser.add_argument(
        "--sets",
        type=_sets,
        default=",".join(FULL),
        help="comma-separated: full (default; all whole sets), tiny (all tiny ones), "
        f"{', '.join(FULL)}, or SET@CxK for C classes with K training images each",
    )
    parser.add_argument(
        "--shared", type=Path, default=Path("data"), help="a folder with images/SET (default data)"
    )
    parser.add_argument(
        "--samples-per-class",
        type=_sizes,
        default="20",
        help="of whole sets, such as 5,20,all (default 20)",
    )
    parser.add_argument("--image-size", type=int, default=96)


def _sets(text: str) -> list[ImageSet]:
    try:
        return parse_sets(text)
    except (ConfigError, DataError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _sizes(text: str) -> tuple[int | None, ...]:
    try:
        return parse_samples_per_class(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
