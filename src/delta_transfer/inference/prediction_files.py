"""Predictions of images without labels as a line, as JSON and as a CSV file."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from delta_transfer.errors import UserError
from delta_transfer.inference.predictor import Prediction
from delta_transfer.metrics.task_types import MULTICLASS, Multiclass, TaskType
from delta_transfer.runs.predictions import as_number, column_names, to_csv
from delta_transfer.utils.files import write_atomically


def to_line(prediction: Prediction, *, top: int, task_type: TaskType = MULTICLASS) -> str:
    """The path and the `top` most probable classes with their probabilities, tabs between.

    Of questions and values the answers to all of them.
    """
    most = top if isinstance(task_type, Multiclass) else None
    best = itertools.islice(prediction.values.items(), most)
    form = ".4f" if task_type.metric.percent else ".6g"
    return "\t".join([prediction.path, *(f"{name}\t{value:{form}}" for name, value in best)])


def to_json(
    predictions: Sequence[Prediction], *, top: int | None, task_type: TaskType = MULTICLASS
) -> str:
    """A list of `path`, `prediction` and `probabilities`.

    Of questions `path` and `probabilities`, and of values `path` and `predictions`.

    Args:
        predictions: of the images.
        top: how many of the most probable classes to name; all if None.
        task_type: what is predicted.
    """
    classes = isinstance(task_type, Multiclass)
    answers = "predictions" if task_type.prediction_name == "prediction" else "probabilities"
    rows = [
        {
            "path": prediction.path,
            **({"prediction": prediction.top_class} if classes else {}),
            answers: dict(itertools.islice(prediction.values.items(), top if classes else None)),
        }
        for prediction in predictions
    ]
    return json.dumps(rows, indent=2)


def check_csv_path(path: Path, *, overwrite: bool) -> None:
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


def write_csv(
    path: Path,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    task_type: TaskType = MULTICLASS,
) -> None:
    """Writes `path,prediction,probability` and a column of probabilities per class.

    Of questions `path` and `probability NAME` of each, and of values `prediction NAME`.

    Args:
        path: the CSV file.
        predictions: of the images, a row each.
        classes: the names of the columns, in their order; see `column_names`.
        task_type: what is predicted.

    Raises:
        UserError: if it cannot be written; there is no file then, or the old one.
    """
    if isinstance(task_type, Multiclass):
        rows = _classes(predictions, classes)
    else:
        rows = [["path", *(f"{task_type.prediction_name} {name}" for name in classes)]]
        for prediction in predictions:
            cells = (f"{prediction.values[name]:.7g}" for name in classes)
            rows.append([prediction.path, *cells])
    try:
        write_atomically(path, to_csv(rows))
    except OSError as error:
        raise UserError(
            f"--csv {path} cannot be written ({error.strerror}): free some space, or give another "
            "file"
        ) from error


def _classes(predictions: Sequence[Prediction], classes: Sequence[str]) -> list[list[str]]:
    names = dict(zip(classes, column_names(classes), strict=True))
    rows = [["path", "prediction", "probability", *names.values()]]
    for prediction in predictions:
        best = prediction.top_class
        values = (prediction.values[name] for name in (best, *names))
        rows.append([prediction.path, names[best], *map(as_number, values)])
    return rows
