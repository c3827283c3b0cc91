"""Format predictions as lines, JSON and CSV."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from delta_transfer.errors import ConfigError, EnvironmentError
from delta_transfer.inference.predictor import Prediction
from delta_transfer.metrics.task_types import MULTICLASS, Multiclass, TaskType
from delta_transfer.runs.predictions import as_number, column_names
from delta_transfer.utils.files import to_csv, write_atomically


def to_line(prediction: Prediction, *, top: int, task_type: TaskType = MULTICLASS) -> str:
    """Return the path and the `top` most probable classes with probabilities, tab-separated.

    For binary and regression targets, return the predictions of all of them.
    """
    most = top if isinstance(task_type, Multiclass) else None
    best = itertools.islice(prediction.values.items(), most)
    form = ".4f" if task_type.metric.percent else ".6g"
    return "\t".join([prediction.path, *(f"{name}\t{value:{form}}" for name, value in best)])


def to_json(
    predictions: Sequence[Prediction], *, top: int | None, task_type: TaskType = MULTICLASS
) -> str:
    """Return a list of `path`, `prediction` and `probabilities`.

    For binary targets: `path` and `probabilities`; for regression: `path` and `predictions`.

    Args:
        predictions: of the samples.
        top: number of most probable classes to list; all if None.
        task_type: of the predictions.
    """
    classes = isinstance(task_type, Multiclass)
    key = "predictions" if task_type.prediction_name == "prediction" else "probabilities"
    rows = [
        {
            "path": prediction.path,
            **({"prediction": prediction.top_class} if classes else {}),
            key: dict(itertools.islice(prediction.values.items(), top if classes else None)),
        }
        for prediction in predictions
    ]
    return json.dumps(rows, indent=2)


def check_csv_path(path: Path, *, overwrite: bool) -> None:
    """Check that `write_csv` may write a file, before anything slow starts.

    Raises:
        UserError: if the file exists and may not be replaced, or its folder is not writable.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"`csv={path}` is not a file: use the name of a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"`csv={path}` already exists: use another name, or `overwrite`")
    if not path.parent.is_dir():
        raise ConfigError(f"`csv={path}`: there is no folder {path.parent}: create it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EnvironmentError(f"`csv={path}`: the folder {path.parent} is not writable")


def write_csv(
    path: Path,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    task_type: TaskType = MULTICLASS,
) -> None:
    """Write `path,prediction,probability` and a column of probabilities per class.

    For binary targets: `path` and `probability NAME`; for regression: `path` and `prediction NAME`.

    Args:
        path: the CSV file.
        predictions: of the samples, a row each.
        classes: the names of the columns, in their order; see `column_names`.
        task_type: of the predictions.

    Raises:
        EnvironmentError: if it cannot be written; an existing file then stays as it is.
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
        raise EnvironmentError(
            f"`csv={path}` cannot be written ({error.strerror}): free some space, or use another "
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
