"""Datasets read from their unpacked official archives, which have to be downloaded by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import scipy.io

from delta_transfer.data.download import format_error, resolve_data_root
from delta_transfer.data.sources.folder import split_of_files
from delta_transfer.data.sources.listing import (
    candidate_folders,
    image_count_notes,
    images_by_class,
)
from delta_transfer.data.splits import (
    PartialTaskData,
    SplitOptions,
    check_min_per_class,
    draw_missing_splits,
    split_per_class,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import DataError, UserError
from delta_transfer.utils.seeds import derive_seed

_LabelledPaths = list[tuple[Path, str]]  # images with the names of their classes


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A dataset in its official archive.

    Attributes:
        list_splits: returns the images for training and those for testing, none where they are
            drawn.
        num_images: in the whole archive.
        folder: the name of its folder below the data root.
        contents: the required files in that folder, or in a folder `lists` in it.
        instructions: how to download and unpack it, for messages.
        per_class: images of each class to draw for training and for testing; None for the official
            splits.
    """

    list_splits: Callable[[Path], tuple[_LabelledPaths, _LabelledPaths]]
    num_images: int
    folder: str
    contents: tuple[str, ...]
    instructions: str
    per_class: tuple[int, int] | None = None


def load_archive(name: str, options: SplitOptions, data_root: str | None) -> TaskData:
    """Load a dataset in `ARCHIVES`.

    Args:
        name: in `ARCHIVES`.
        options: draws the validation split, and the others where there are no official ones;
            `test_split` must be the default.
        data_root: the folder that has the dataset's folder, or that folder itself; None for
            `default_data_root()`.

    Returns:
        The dataset; its paths are relative to its folder.

    Raises:
        UserError: if the dataset is missing, or its files are not as expected.
    """
    data = ARCHIVES[name]
    options.refuse_test_split(name)
    root = resolve_data_root(data_root)
    folder = _locate(name, root)
    if folder is None:
        needed = ", ".join(f"'{root / data.folder / part}'" for part in data.contents)
        raise DataError(
            f"{name} is not in '{root}', and cannot be downloaded automatically: "
            f"{data.instructions}, so that these exist: {needed}; or set `data_root`"
        )
    try:
        train_rows, test_rows = data.list_splits(folder)
        classes = tuple(sorted({label for _, label in train_rows}))
        number = {name: label for label, name in enumerate(classes)}
        train, test = (
            split_of_files(
                folder, [(file, number[label]) for file, label in rows], hint=data.instructions
            )
            for rows in (train_rows, test_rows)
        )
    except UserError:
        raise
    # Damaged lists may raise anything here or in scipy.
    except Exception as error:
        raise DataError(
            f"the files of {name} in '{folder}' cannot be used ({format_error(error)}): "
            f"{data.instructions}"
        ) from error
    notes = image_count_notes(name, len(train) + len(test), expected=data.num_images)
    if data.per_class is not None:
        seed = options.seed
        train, test = _draw(name, data.per_class, train, classes=classes, seed=seed)
        notes.append(
            f"no official splits: {data.per_class[0]} images of every class for training and "
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
    return draw_missing_splits(given, options, test_fraction=None)


def is_available(name: str, root: Path) -> bool:
    """Return whether all files of a dataset are below a folder."""
    return _locate(name, root) is not None


def _locate(name: str, root: Path) -> Path | None:
    """Return the folder with all files of a dataset, under the archive's name or ours."""
    data = ARCHIVES[name]
    found = (
        folder
        for base in (root, root / name.partition("/")[0])
        for folder in candidate_folders(base, data.folder)
        if all(_find_list_file(folder, part).exists() for part in data.contents)
    )
    return next(found, None)


def _draw(
    name: str, per_class: tuple[int, int], everything: Split, *, classes: tuple[str, ...], seed: int
) -> tuple[Split, Split]:
    """Draw fixed numbers of images of each class for training and for testing."""
    num_train, num_test = per_class
    check_min_per_class(
        everything,
        num_train + num_test,
        classes=classes,
        purpose=f"{name}, {num_train} images per class for train and {num_test} for test,",
        hint="the files are incomplete; unpack the archive again",
    )
    rest, test = split_per_class(everything, num_test, seed=derive_seed(seed, name, "test"))
    _, train = split_per_class(rest, num_train, seed=derive_seed(seed, name, "train"))
    return train, test


def _cub(folder: Path) -> tuple[_LabelledPaths, _LabelledPaths]:
    """List CUB-200-2011: three files, a line per image, with the image's number first."""
    images, labels, is_train = (
        dict(line.split() for line in (folder / name).read_text(encoding="utf-8").splitlines())
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    names = {labels[number]: path.partition("/")[0] for number, path in images.items()}
    rows: tuple[_LabelledPaths, _LabelledPaths] = ([], [])
    for number, path in images.items():
        part = rows[0 if is_train[number] == "1" else 1]
        part.append((folder / "images" / path, names[labels[number]]))
    return rows


def _dogs(folder: Path) -> tuple[_LabelledPaths, _LabelledPaths]:
    """List Stanford Dogs: two files of MATLAB."""
    train, test = (
        [
            str(cell[0])
            for cell in scipy.io.loadmat(_find_list_file(folder, name))["file_list"].ravel()
        ]
        for name in ("train_list.mat", "test_list.mat")
    )
    return _in_class_folders(folder, train), _in_class_folders(folder, test)


def _find_list_file(folder: Path, name: str) -> Path:
    """Return the path of a list, which many users unpack to a folder of its own."""
    inside = folder / "lists" / name
    return inside if inside.exists() else folder / name


def _indoor(folder: Path) -> tuple[_LabelledPaths, _LabelledPaths]:
    """List MIT Indoor 67: two files, a line per image."""
    train, test = (
        (folder / name).read_text(encoding="utf-8").split("\n")
        for name in ("TrainImages.txt", "TestImages.txt")
    )
    return _in_class_folders(folder, train), _in_class_folders(folder, test)


def _in_class_folders(folder: Path, lines: list[str]) -> _LabelledPaths:
    paths = [line.strip() for line in lines if line.strip()]
    return [(folder / "Images" / path, path.partition("/")[0]) for path in paths]


def _caltech256(folder: Path) -> tuple[_LabelledPaths, _LabelledPaths]:
    """List Caltech-256: a folder for each class, and one of clutter, which is not a class."""
    images = images_by_class(folder / "256_ObjectCategories", excluded="257.clutter")
    return [(file, name) for name, files in images.items() for file in files], []


def _of_caltech256(num_train: int) -> Archive:
    """Return Caltech-256 with 20 test images of each class, as the field uses it."""
    return Archive(
        list_splits=_caltech256,
        num_images=29_780,
        folder="caltech256",
        contents=("256_ObjectCategories",),
        instructions="get 256_ObjectCategories.tar from "
        "https://data.caltech.edu/records/nyy15-4j048 and unpack it",
        per_class=(num_train, 20),
    )


ARCHIVES: dict[str, Archive] = {
    "cub200": Archive(
        list_splits=_cub,
        num_images=11_788,
        folder="CUB_200_2011",
        contents=("images", "images.txt", "image_class_labels.txt", "train_test_split.txt"),
        instructions="get CUB_200_2011.tgz from "
        "https://data.caltech.edu/records/65de6-vp158 and unpack it",
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
"""The datasets by their names."""
