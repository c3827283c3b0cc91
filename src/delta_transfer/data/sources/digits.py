"""`sklearn/digits`: the 1,797 handwritten digits of 8 x 8 pixels in scikit-learn."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from delta_transfer.data.splits import SplitOptions, hold_out
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import EnvironmentError
from delta_transfer.utils.seeds import derive_seed

NAME = "sklearn/digits"


def load_sklearn_digits(options: SplitOptions) -> TaskData:
    """Load the dataset: half of each digit for testing, a fraction of the rest for validation.

    Args:
        options: the seed and the fraction; `test_split` must be the default.

    Raises:
        UserError: if scikit-learn is missing or a test split is chosen.
    """
    options.refuse_test_split(NAME)
    _, labels = _digits()
    everything = Split(
        paths=tuple(f"{label}/{index:04d}" for index, label in enumerate(labels)),
        labels=labels,
        read=read_digit,
    )
    seed = options.seed
    rest, test = hold_out(everything, 0.5, seed=derive_seed(seed, NAME, "test"))
    train, val = hold_out(rest, options.val_fraction, seed=derive_seed(seed, NAME, "validation"))
    classes = tuple(str(digit) for digit in range(10))
    return TaskData(name=NAME, classes=classes, train=train, val=val, test=test, val_drawn=True)


def read_digit(path: str) -> Image.Image:
    """Return the RGB image of 8 x 8 pixels of a path such as `7/0123`."""
    pixels, _ = _digits()
    return Image.fromarray(pixels[int(path.split("/")[1])]).convert("RGB")


@cache
def _digits() -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Return all images `[N, 8, 8]`, scaled from 0..16 to 0..255, and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise EnvironmentError(
            f"{NAME} needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    return pixels, tuple(int(label) for label in data.target)
