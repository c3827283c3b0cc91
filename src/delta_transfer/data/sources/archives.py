"""Data sets that are read as their official archives unpack, and that nothing downloads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import scipy.io

from delta_transfer.data.download import default_data_root, format_error
from delta_transfer.data.sources.listing import list_images, subfolders
from delta_transfer.data.sources.local_files import candidate_folders
from delta_transfer.data.sources.torchvision_files import make_split
from delta_transfer.data.splits import (
    PartialTaskData,
    check_min_per_class,
    draw_missing_splits,
    refuse_test_split,
    split_per_class,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError
from delta_transfer.utils.paths import user_path
from delta_transfer.utils.seeds import derive_seed

LabelledPaths = list[tuple[Path, str]]
"""Images with the names of their classes."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A data set in its official archive.

    Attributes:
        list_splits: the images for training and those for testing, none where they are drawn.
        num_images: how many there are.
        folder: what its folder below the data root is called.
        contents: what must lie in that folder, or in a folder `lists` in it.
        instructions: where it is to be had, and what to do with it.
        per_class: images of each class that are drawn for training and for testing; None for
            the official splits.
    """

    list_splits: Callable[[Path], tuple[LabelledPaths, LabelledPaths]]
    num_images: int
    folder: str
    contents: tuple[str, ...]
    instructions: str
    per_class: tuple[int, int] | None = None


def load_archive(
    name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
) -> TaskData:
    """The task of a data set in `ARCHIVES`.

    Args:
        name: in `ARCHIVES`.
        seed: draws the validation split, and the others where there are no official ones.
        val_fraction: the part of the training images held out for validation.
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
            f"{name} is not in '{root}', and nothing downloads it: {data.instructions}, so that "
            "these "
            f"are there: {needed}; --data-root names another folder to look in"
        )
    try:
        trained, tested = data.list_splits(folder)
        classes = tuple(sorted({label for _, label in trained}))
        train, test = (_split(folder, rows, classes, data) for rows in (trained, tested))
    except UserError:
        raise
    # Damaged lists may raise anything here or in scipy.
    except Exception as error:
        raise UserError(
            f"the files of {name} in '{folder}' cannot be used ({format_error(error)}): "
            f"{data.instructions}"
        ) from error
    notes = []
    if len(train) + len(test) != data.num_images:
        count = len(train) + len(test)
        notes.append(f"{name} should have {data.num_images} images, but there are {count}")
    if data.per_class is not None:
        train, test = _draw(name, data.per_class, train, classes=classes, seed=seed)
        notes.append(
            f"no official splits: of every class {data.per_class[0]} images for training and "
            f"{data.per_class[1]} for testing are drawn by seed {seed}"
        )
    given = PartialTaskData(
        name=name,
        display_name=name,
        classes=classes,
        train=train,
        val=None,
        test=test,
        notes=tuple(notes),
    )
    return draw_missing_splits(given, seed=seed, val_fraction=val_fraction, test_fraction=None)


def is_available(name: str, root: Path) -> bool:
    """Whether a data set of this name lies whole below a folder."""
    return _locate(name, root) is not None


def _locate(name: str, root: Path) -> Path | None:
    """The folder that has all of a set: as the archive calls it, or of our name for the set."""
    data = ARCHIVES[name]
    found = (
        folder
        for base in (root, root / name.partition("/")[0])
        for folder in candidate_folders(base, data.folder)
        if all(_find_list_file(folder, part).exists() for part in data.contents)
    )
    return next(found, None)


def _split(folder: Path, rows: LabelledPaths, classes: tuple[str, ...], data: Archive) -> Split:
    number = {name: label for label, name in enumerate(classes)}
    return make_split(folder, [(file, number[label]) for file, label in rows], data.instructions)


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
    check_min_per_class(
        everything,
        for_training + for_testing,
        classes=classes,
        purpose=f"{name}, {for_training} images a class for train and {for_testing} for test,",
        hint="these files are not whole; unpack the archive again",
    )
    rest, test = split_per_class(everything, for_testing, seed=derive_seed(seed, name, "test"))
    _, train = split_per_class(rest, for_training, seed=derive_seed(seed, name, "train"))
    return train, test


def _cub(folder: Path) -> tuple[LabelledPaths, LabelledPaths]:
    """CUB-200-2011: three lists, an image a line, by the images' numbers."""
    images, labels, taught = (
        dict(line.split() for line in (folder / name).read_text(encoding="utf-8").splitlines())
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    names = {labels[number]: path.partition("/")[0] for number, path in images.items()}
    rows: tuple[LabelledPaths, LabelledPaths] = ([], [])
    for number, path in images.items():
        part = rows[0 if taught[number] == "1" else 1]
        part.append((folder / "images" / path, names[labels[number]]))
    return rows


def _dogs(folder: Path) -> tuple[LabelledPaths, LabelledPaths]:
    """Stanford Dogs: two lists of MATLAB."""
    train, test = (
        [
            str(cell[0])
            for cell in scipy.io.loadmat(_find_list_file(folder, name))["file_list"].ravel()
        ]
        for name in ("train_list.mat", "test_list.mat")
    )
    return _in_class_folders(folder, train), _in_class_folders(folder, test)


def _find_list_file(folder: Path, name: str) -> Path:
    """A list: the archive of Stanford Dogs has no folder for them, and many make one."""
    inside = folder / "lists" / name
    return inside if inside.exists() else folder / name


def _indoor(folder: Path) -> tuple[LabelledPaths, LabelledPaths]:
    """MIT Indoor 67: two lists, an image a line."""
    train, test = (
        (folder / name).read_text(encoding="utf-8").split("\n")
        for name in ("TrainImages.txt", "TestImages.txt")
    )
    return _in_class_folders(folder, train), _in_class_folders(folder, test)


def _in_class_folders(folder: Path, lines: list[str]) -> LabelledPaths:
    paths = [line.strip() for line in lines if line.strip()]
    return [(folder / "Images" / path, path.partition("/")[0]) for path in paths]


def _caltech256(folder: Path) -> tuple[LabelledPaths, LabelledPaths]:
    """Caltech-256: a folder for each class, and one of clutter, which is none."""
    classes = subfolders(folder / "256_ObjectCategories")
    return [
        (file, one.name)
        for one in classes
        if one.name != "257.clutter"
        for file in list_images(one)
    ], []


def _of_caltech256(count: int) -> Archive:
    """With so many training images of each class and 20 for testing, as the field has it."""
    return Archive(
        list_splits=_caltech256,
        num_images=29_780,
        folder="caltech256",
        contents=("256_ObjectCategories",),
        instructions="get 256_ObjectCategories.tar from "
        "https://data.caltech.edu/records/nyy15-4j048 "
        "and unpack it",
        per_class=(count, 20),
    )


ARCHIVES: dict[str, Archive] = {
    "cub200": Archive(
        list_splits=_cub,
        num_images=11_788,
        folder="CUB_200_2011",
        contents=("images", "images.txt", "image_class_labels.txt", "train_test_split.txt"),
        instructions="get CUB_200_2011.tgz from "
        "https://data.caltech.edu/records/65de6-vp158 and unpack "
        "it",
    ),
    "stanford_dogs": Archive(
        list_splits=_dogs,
        num_images=20_580,
        folder="stanford_dogs",
        contents=("Images", "train_list.mat", "test_list.mat"),
        instructions="get images.tar and lists.tar from "
        "http://vision.stanford.edu/aditya86/ImageNetDogs/ and unpack them",
    ),
    "mit67": Archive(
        list_splits=_indoor,
        num_images=6_700,
        folder="mit67",
        contents=("Images", "TrainImages.txt", "TestImages.txt"),
        instructions="get indoorCVPR_09.tar, TrainImages.txt and TestImages.txt from "
        "https://web.mit.edu/torralba/www/indoor.html and unpack the first",
    ),
    "caltech256/30": _of_caltech256(30),
    "caltech256/60": _of_caltech256(60),
}
"""The data sets by their names."""
