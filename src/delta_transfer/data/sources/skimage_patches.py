"""`skimage/patches`: cells of photographs in scikit-image, with the photograph as class."""

from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from delta_transfer.data.images.decode import read_image
from delta_transfer.data.splits import SplitOptions
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import EnvironmentError
from delta_transfer.utils.seeds import derive_seed

NAME = "skimage/patches"

IMAGES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cell": "cell.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "text": "text.png",
}
"""Each class and the file that its cells are cut from, of those in the wheel itself.

Left out: the right-hand image of the motorcycle (the same scene), the second chessboard and all
drawings (chessboard, colour wheel, horse, logo, phantom), the clock (blurred to flat grey), and
images with too few cells (microaneurysms, the animation).
"""

CELL = 40
"""Height and width of a cell, in pixels; the grid starts at the upper left and has no overlap."""

TRAIN, VAL, TEST = 5, 10, 40
"""Cells of each class: for training and validation exactly, for testing at most."""

# Cells whose channels all vary less than this (standard deviation, of 255) are empty. Only
# `retina` has such cells: the black around the round image of the eye, one in six of its grid.
_FLAT = 1.0


def load_skimage_patches(options: SplitOptions) -> TaskData:
    """Load the dataset, with cells drawn by seed; nothing is downloaded.

    Args:
        options: the seed; `val_fraction` is ignored with a note, as there are always ten validation
            cells of a class, and `test_split` must be the default.

    Raises:
        UserError: if scikit-image or one of its images is missing, or a test split is chosen.
    """
    options.refuse_test_split(NAME)
    classes = tuple(sorted(IMAGES))
    cells: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(classes):
        order = np.random.default_rng(derive_seed(options.seed, NAME, name)).permutation(
            _cells(name)
        )
        parts = (order[:TRAIN], order[TRAIN : TRAIN + VAL], order[TRAIN + VAL :][:TEST])
        for split, part in zip(cells.values(), parts, strict=True):
            split += [(str(path), label) for path in sorted(part)]
    return TaskData(
        name=NAME,
        classes=classes,
        train=_split(cells["train"]),
        val=_split(cells["val"]),
        test=_split(cells["test"]),
        notes=tuple(options.unused_val_fraction(NAME)),
    )


def read_cell(path: str) -> Image.Image:
    """Return the cell of 40 x 40 pixels of a path such as `astronaut/r03c05`."""
    name, position = path.split("/")
    row, column = (int(number) for number in position[1:].split("c"))
    left, top = column * CELL, row * CELL
    return _image(name).crop((left, top, left + CELL, top + CELL))


def _split(cells: list[tuple[str, int]]) -> Split:
    return Split(
        paths=tuple(path for path, _ in cells),
        labels=tuple(label for _, label in cells),
        read=read_cell,
    )


@cache
def _cells(name: str) -> tuple[str, ...]:
    """Return the paths of all cells of an image that are not empty."""
    image = _image(name)
    paths = [
        f"{name}/r{row:02d}c{column:02d}"
        for row in range(image.height // CELL)
        for column in range(image.width // CELL)
    ]
    return tuple(
        path for path in paths if np.asarray(read_cell(path)).std(axis=(0, 1)).max() >= _FLAT
    )


@cache
def _image(name: str) -> Image.Image:
    """Read a whole image from the installed package, not by its downloading functions."""
    try:
        package = resources.files("skimage")
    except ModuleNotFoundError as error:
        raise EnvironmentError(
            f"{NAME} needs scikit-image, which is not installed: pip install scikit-image"
        ) from error
    file = Path(str(package)) / "data" / IMAGES[name]
    if not file.is_file():
        raise EnvironmentError(
            f"{NAME}: the installed scikit-image lacks the image '{file.name}'; install another "
            "release: pip install scikit-image==0.26.0"
        )
    return read_image(file)
