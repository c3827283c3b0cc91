"""Predictions of pictures without labels as a line, as JSON and as a CSV file."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from delta_transfer.errors import UserError
from delta_transfer.files import write_atomically
from delta_transfer.outputs import as_number, column_names, to_csv
from delta_transfer.predict import Prediction


def to_line(prediction: Prediction, *, top: int) -> str:
    """The path and the `top` most probable classes with their probabilities, tabs between."""
    best = itertools.islice(prediction.probabilities.items(), top)
    return "\t".join([prediction.path, *(f"{name}\t{value:.4f}" for name, value in best)])


def to_json(predictions: Sequence[Prediction], *, top: int | None) -> str:
    """A list of `path`, `prediction` and `probabilities`.

    Args:
        predictions: of the pictures.
        top: how many of the most probable classes to name; all if None.
    """
    rows = [
        {
            "path": prediction.path,
            "prediction": prediction.best,
            "probabilities": dict(itertools.islice(prediction.probabilities.items(), top)),
        }
        for prediction in predictions
    ]
    return json.dumps(rows, indent=2)


def check_table(path: Path, *, overwrite: bool) -> None:
    """Checks that `write_table` may write a file, before anything slow begins.

    Raises:
        UserError: if it is there and may not be replaced, or its folder cannot be written.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"--csv {path} is no file: give the name of a file")
    if path.exists() and not overwrite:
        raise UserError(f"--csv {path} is there already: give another name, or --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"--csv {path}: there is no folder {path.parent}: make it, or give another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--csv {path}: the folder {path.parent} cannot be written: give another")


def write_table(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Writes `path,prediction,probability` and a column of probabilities per class.

    Args:
        path: the CSV file.
        predictions: of the pictures, a row each.
        classes: the names of the columns, in their order; see `column_names`.

    Raises:
        UserError: if it cannot be written; there is no file then, or the old one.
    """
    names = dict(zip(classes, column_names(classes), strict=True))
    rows = [["path", "prediction", "probability", *names.values()]]
    for prediction in predictions:
        best = prediction.best
        values = (prediction.probabilities[name] for name in (best, *names))
        rows.append([prediction.path, names[best], *map(as_number, values)])
    try:
        write_atomically(path, to_csv(rows))
    except OSError as error:
        raise UserError(
            f"--csv {path} cannot be written ({error.strerror}): free some space, or give another "
            "file"
        ) from error
