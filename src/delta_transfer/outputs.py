"""Predictions as files: CSV tables, and a few pictures worth looking at."""

import csv
import io
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from delta_transfer.data.task import Split
from delta_transfer.metrics.objectives import CLASSES, Classes, Objective
from delta_transfer.utils.files import write_atomically

MISTAKES, RIGHT, APART = 12, 8, 6  # most pictures of each kind
THUMBNAIL = 160


def write_predictions(
    path: Path,
    split: Split,
    answers: Tensor,
    classes: Sequence[str],
    objective: Objective = CLASSES,
) -> None:
    """Writes a row for each picture.

    Of classes, `path,label,prediction` and a column of probabilities per class; of questions
    `path`, then `label NAME` and `probability NAME` of each, and of values `label NAME` and
    `prediction NAME`. A label that is not known is empty.

    Args:
        path: the CSV file.
        split: the pictures.
        answers: `[N, K]`.
        classes: the K names; see `column_names`.
        objective: what the answers mean.
    """
    told = _classes if isinstance(objective, Classes) else _values
    write_atomically(path, to_csv(told(split, answers, classes, objective)))


def _classes(
    split: Split, answers: Tensor, classes: Sequence[str], objective: Objective
) -> list[list[str]]:
    names = column_names(classes)
    rows = [["path", "label", "prediction", *names]]
    told = zip(split.paths, split.class_indices, answers.tolist(), strict=True)
    for path, label, row in told:
        prediction = names[row.index(max(row))]
        rows.append([path, names[label], prediction, *map(as_number, row)])
    return rows


def _values(
    split: Split, answers: Tensor, names: Sequence[str], objective: Objective
) -> list[list[str]]:
    columns = [[f"label {name}", f"{objective.answer} {name}"] for name in names]
    rows = [["path", *itertools.chain.from_iterable(columns)]]
    told = zip(split.paths, split.targets.tolist(), answers.tolist(), strict=True)
    for path, *pair in told:
        cells = [[_known(label), f"{answer:.7g}"] for label, answer in zip(*pair, strict=True)]
        rows.append([path, *itertools.chain.from_iterable(cells)])
    return rows


def _known(label: float) -> str:
    return "" if math.isnan(label) else f"{label:.7g}"


def column_names(classes: Sequence[str]) -> list[str]:
    """The names that classes go by in a table, so that none is the name of another column.

    Example:
        >>> column_names(["cat", "path", "path (class)"])
        ['cat', 'path (class)', 'path (class) (class)']
    """
    return [f"{name} (class)" if _COLUMN.fullmatch(name) else name for name in classes]


_COLUMN = re.compile(r"(path|label|prediction|probability)( \(class\))*")


def write_examples(
    folder: Path, split: Split, probabilities: Tensor, probe: Tensor, classes: Sequence[str]
) -> None:
    """Writes small copies of telling pictures, and `examples.csv`.

    These are the most confident mistakes and right answers, and pictures on which network and
    linear probe disagree about right and wrong.

    Args:
        folder: of the run.
        split: the pictures.
        probabilities: `[N, K]`.
        probe: `[N, K]`, of the linear probe.
        classes: the names of the K classes.
    """
    confidence, predicted = probabilities.max(dim=1)
    labels = split.targets
    right, probe_right = predicted == labels, probe.argmax(dim=1) == labels
    order = confidence.argsort(descending=True, stable=True).tolist()
    kinds = (
        (~right, MISTAKES),
        (right, RIGHT),
        (right & ~probe_right, APART),
        (~right & probe_right, APART),
    )
    chosen: dict[int, None] = {}
    for kind, most in kinds:
        chosen |= dict.fromkeys([i for i in order if kind[i]][:most])
    (folder / "examples").mkdir()
    rows = [["file", "path", "label", "prediction", "probability"]]
    for number, i in enumerate(chosen):
        name = f"{number:02d}.jpg"
        picture = split.read(split.paths[i])
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        picture.save(folder / "examples" / name, quality=85)
        label, prediction = classes[split.class_indices[i]], classes[int(predicted[i])]
        rows.append([name, split.paths[i], label, prediction, f"{confidence[i].item():.4f}"])
    write_atomically(folder / "examples.csv", to_csv(rows))


def as_number(value: float) -> str:
    """A probability as it stands in a table."""
    return f"{value:.6f}"


def to_csv(rows: Sequence[Sequence[str]]) -> bytes:
    """A table as a file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # File names may hold bytes that are no text.
    return text.getvalue().encode(errors="backslashreplace")
