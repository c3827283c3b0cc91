"""Data sets that are read as their official archives unpack, and that nothing downloads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import scipy.io

from delta_transfer.data.download import default_data_root, error_in_words
from delta_transfer.data.sources.listing import loose_pictures, subfolders
from delta_transfer.data.sources.local_files import places
from delta_transfer.data.sources.torchvision_files import split_of
from delta_transfer.data.splits import (
    GivenSplits,
    complete,
    part_per_class,
    refuse_test_split,
    require_per_class,
)
from delta_transfer.data.task import Split, Task
from delta_transfer.errors import UserError
from delta_transfer.utils.paths import user_path
from delta_transfer.utils.seeds import derive_seed

Rows = list[tuple[Path, str]]
"""Pictures with the names of their classes."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A data set in its official archive.

    Attributes:
        read: the pictures for training and those for testing, none where they are drawn.
        pictures: how many there are.
        folder: what its folder below the data root is called.
        contents: what must lie in that folder, or in a folder `lists` in it.
        unpack: where it is to be had, and what to do with it.
        per_class: pictures of each class that are drawn for training and for testing; None for
            the official splits.
    """

    read: Callable[[Path], tuple[Rows, Rows]]
    pictures: int
    folder: str
    contents: tuple[str, ...]
    unpack: str
    per_class: tuple[int, int] | None = None


def load_archive(
    name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
) -> Task:
    """The task of a data set in `ARCHIVES`.

    Args:
        name: in `ARCHIVES`.
        seed: draws the validation split, and the others where there are no official ones.
        val_fraction: the part of the training pictures held out for validation.
        test_split: must be the default.
        data_root: where the folder of the set lies, or the folder itself; None for
            `default_data_root()`.

    Returns:
        The task; its paths are relative to the set's folder.

    Raises:
        UserError: if the set is not there, or its files are not as they must be.
    """
    data = ARCHIVES[name]
    refuse_test_split(name, test_split)
    root = default_data_root() if data_root is None else user_path(data_root)
    folder = _locate(name, root)
    if folder is None:
        needed = ", ".join(f"'{root / data.folder / part}'" for part in data.contents)
        raise UserError(
            f"{name} is not in '{root}', and nothing downloads it: {data.unpack}, so that these "
            f"are there: {needed}; --data-root names another folder to look in"
        )
    try:
        trained, tested = data.read(folder)
        classes = tuple(sorted({label for _, label in trained}))
        train, test = (_split(folder, rows, classes, data) for rows in (trained, tested))
    except UserError:
        raise
    # Damaged lists may raise anything here or in scipy.
    except Exception as error:
        raise UserError(
            f"the files of {name} in '{folder}' cannot be used ({error_in_words(error)}): "
            f"{data.unpack}"
        ) from error
    notes = []
    if len(train) + len(test) != data.pictures:
        count = len(train) + len(test)
        notes.append(f"{name} should have {data.pictures} pictures, but there are {count}")
    if data.per_class is not None:
        train, test = _draw(name, data.per_class, train, classes=classes, seed=seed)
        notes.append(
            f"no official splits: of every class {data.per_class[0]} pictures for training and "
            f"{data.per_class[1]} for testing are drawn by seed {seed}"
        )
    given = GivenSplits(
        name=name,
        source=name,
        classes=classes,
        train=train,
        val=None,
        test=test,
        notes=tuple(notes),
    )
    return complete(given, seed=seed, val_fraction=val_fraction, test_fraction=None)


def is_there(name: str, root: Path) -> bool:
    """Whether a data set of this name lies whole below a folder."""
    return _locate(name, root) is not None


def _locate(name: str, root: Path) -> Path | None:
    """The folder that has all of a set: as the archive calls it, or of our name for the set."""
    data = ARCHIVES[name]
    found = (
        folder
        for base in (root, root / name.partition("/")[0])
        for folder in places(base, data.folder)
        if all(_list(folder, part).exists() for part in data.contents)
    )
    return next(found, None)


def _split(folder: Path, rows: Rows, classes: tuple[str, ...], data: Archive) -> Split:
    number = {name: label for label, name in enumerate(classes)}
    return split_of(folder, [(file, number[label]) for file, label in rows], data.unpack)


def _draw(
    name: str,
    per_class: tuple[int, int],
    everything: Split,
    *,
    classes: tuple[str, ...],
    seed: int,
) -> tuple[Split, Split]:
    """So many for training of each class, and so many for testing."""
    for_training, for_testing = per_class
    require_per_class(
        everything,
        for_training + for_testing,
        classes=classes,
        wish=f"{name}, {for_training} pictures a class for training and {for_testing} for testing,",
        mend="these files are not whole; unpack the archive again",
    )
    rest, test = part_per_class(everything, for_testing, seed=derive_seed(seed, name, "test"))
    _, train = part_per_class(rest, for_training, seed=derive_seed(seed, name, "train"))
    return train, test


def _cub(folder: Path) -> tuple[Rows, Rows]:
    """CUB-200-2011: three lists, a picture a line, by the pictures' numbers."""
    images, labels, taught = (
        dict(line.split() for line in (folder / name).read_text(encoding="utf-8").splitlines())
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    names = {labels[number]: path.partition("/")[0] for number, path in images.items()}
    rows: tuple[Rows, Rows] = ([], [])
    for number, path in images.items():
        part = rows[0 if taught[number] == "1" else 1]
        part.append((folder / "images" / path, names[labels[number]]))
    return rows


def _dogs(folder: Path) -> tuple[Rows, Rows]:
    """Stanford Dogs: two lists of MATLAB."""
    train, test = (
        [str(cell[0]) for cell in scipy.io.loadmat(_list(folder, name))["file_list"].ravel()]
        for name in ("train_list.mat", "test_list.mat")
    )
    return _in_class_folders(folder, train), _in_class_folders(folder, test)


def _list(folder: Path, name: str) -> Path:
    """A list: the archive of Stanford Dogs has no folder for them, and many make one."""
    inside = folder / "lists" / name
    return inside if inside.exists() else folder / name


def _indoor(folder: Path) -> tuple[Rows, Rows]:
    """MIT Indoor 67: two lists, a picture a line."""
    train, test = (
        (folder / name).read_text(encoding="utf-8").split("\n")
        for name in ("TrainImages.txt", "TestImages.txt")
    )
    return _in_class_folders(folder, train), _in_class_folders(folder, test)


def _in_class_folders(folder: Path, lines: list[str]) -> Rows:
    paths = [line.strip() for line in lines if line.strip()]
    return [(folder / "Images" / path, path.partition("/")[0]) for path in paths]


def _caltech256(folder: Path) -> tuple[Rows, Rows]:
    """Caltech-256: a folder for each class, and one of clutter, which is none."""
    classes = subfolders(folder / "256_ObjectCategories")
    return [
        (file, one.name)
        for one in classes
        if one.name != "257.clutter"
        for file in loose_pictures(one)
    ], []


def _of_caltech256(count: int) -> Archive:
    """With so many training pictures of each class and 20 for testing, as the field has it."""
    return Archive(
        read=_caltech256,
        pictures=29_780,
        folder="caltech256",
        contents=("256_ObjectCategories",),
        unpack="get 256_ObjectCategories.tar from https://data.caltech.edu/records/nyy15-4j048 "
        "and unpack it",
        per_class=(count, 20),
    )


ARCHIVES: dict[str, Archive] = {
    "cub200": Archive(
        read=_cub,
        pictures=11_788,
        folder="CUB_200_2011",
        contents=("images", "images.txt", "image_class_labels.txt", "train_test_split.txt"),
        unpack="get CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158 and unpack "
        "it",
    ),
    "stanford_dogs": Archive(
        read=_dogs,
        pictures=20_580,
        folder="stanford_dogs",
        contents=("Images", "train_list.mat", "test_list.mat"),
        unpack="get images.tar and lists.tar from "
        "http://vision.stanford.edu/aditya86/ImageNetDogs/ and unpack them",
    ),
    "mit67": Archive(
        read=_indoor,
        pictures=6_700,
        folder="mit67",
        contents=("Images", "TrainImages.txt", "TestImages.txt"),
        unpack="get indoorCVPR_09.tar, TrainImages.txt and TestImages.txt from "
        "https://web.mit.edu/torralba/www/indoor.html and unpack the first",
    ),
    "caltech256/30": _of_caltech256(30),
    "caltech256/60": _of_caltech256(60),
}
"""The data sets by their names."""
