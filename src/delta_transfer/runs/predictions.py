"""Predictions as files: CSV tables, and a few images worth looking at."""

import csv
import io
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from delta_transfer.data.task import Split
from delta_transfer.features.taps import Taps
from delta_transfer.features.variance import FeatureVariance
from delta_transfer.metrics.task_types import MULTICLASS, Multiclass, TaskType
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.module_state import device_of, eval_mode

MAX_MISTAKES, MAX_CORRECT, MAX_DISAGREEMENTS = 12, 8, 6  # most images of each kind
THUMBNAIL = 160


def write_predictions(
    path: Path,
    split: Split,
    predictions: Tensor,
    classes: Sequence[str],
    task_type: TaskType = MULTICLASS,
) -> None:
    """Writes a row for each image.

    Of classes, `path,label,prediction` and a column of probabilities per class; of questions
    `path`, then `label NAME` and `probability NAME` of each, and of values `label NAME` and
    `prediction NAME`. A label that is not known is empty.

    Args:
        path: the CSV file.
        split: the images.
        predictions: `[N, K]`.
        classes: the K names; see `column_names`.
        task_type: what the answers mean.
    """
    told = _class_rows if isinstance(task_type, Multiclass) else _target_rows
    write_atomically(path, to_csv(told(split, predictions, classes, task_type)))


def _class_rows(
    split: Split, predictions: Tensor, classes: Sequence[str], task_type: TaskType
) -> list[list[str]]:
    names = column_names(classes)
    rows = [["path", "label", "prediction", *names]]
    told = zip(split.paths, split.class_indices, predictions.tolist(), strict=True)
    for path, label, row in told:
        prediction = names[row.index(max(row))]
        rows.append([path, names[label], prediction, *map(as_number, row)])
    return rows


def _target_rows(
    split: Split, predictions: Tensor, names: Sequence[str], task_type: TaskType
) -> list[list[str]]:
    columns = [[f"label {name}", f"{task_type.prediction_name} {name}"] for name in names]
    rows = [["path", *itertools.chain.from_iterable(columns)]]
    told = zip(split.paths, split.targets.tolist(), predictions.tolist(), strict=True)
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
    """Writes small copies of telling images, and `examples.csv`.

    These are the most confident mistakes and right answers, and images on which network and
    linear probe disagree about right and wrong.

    Args:
        folder: of the run.
        split: the images.
        probabilities: `[N, K]`.
        probe: `[N, K]`, of the linear probe.
        classes: the names of the K classes.
    """
    confidence, predicted = probabilities.max(dim=1)
    labels = split.targets
    right, probe_right = predicted == labels, probe.argmax(dim=1) == labels
    order = confidence.argsort(descending=True, stable=True).tolist()
    kinds = (
        (~right, MAX_MISTAKES),
        (right, MAX_CORRECT),
        (right & ~probe_right, MAX_DISAGREEMENTS),
        (~right & probe_right, MAX_DISAGREEMENTS),
    )
    chosen: dict[int, None] = {}
    for kind, most in kinds:
        chosen |= dict.fromkeys([i for i in order if kind[i]][:most])
    (folder / "examples").mkdir()
    rows = [["file", "path", "label", "prediction", "probability"]]
    for number, i in enumerate(chosen):
        name = f"{number:02d}.jpg"
        image = split.read(split.paths[i])
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(folder / "examples" / name, quality=85)
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


MAX_MOLECULES = 512  # molecules at most
NUM_MOST_CHANGED, NUM_LEAST_CHANGED = 9, 3  # that are drawn


def write_molecules(
    folder: Path, split: Split, *, network: nn.Module, source: nn.Module, taps: Sequence[str]
) -> None:
    """Draws the molecules whose features moved most and least: `examples/`, `molecules.csv`.

    The darker an atom, the further its features moved, on one scale for all.

    Args:
        folder: of the run.
        split: the molecules, of which some are looked at if there are many.
        network: fine-tuned.
        source: what it started from.
        taps: of which the last one with a row for each atom is looked at.
    """
    # RDKit is installed for graph tasks only.
    from delta_transfer.data.molecules.drawing import draw_molecule

    count = min(MAX_MOLECULES, len(split))
    some = split.subset(i * len(split) // count for i in range(count))
    distances = atom_distances(some, network=network, source=source, taps=taps)
    if not distances:
        return
    means = torch.stack([distance.mean() for distance in distances])
    order = means.argsort(descending=True, stable=True).tolist()
    chosen = dict.fromkeys([*order[:NUM_MOST_CHANGED], *order[-NUM_LEAST_CHANGED:]])
    darkest = max(float(distances[i].max()) for i in chosen) or 1.0
    (folder / "examples").mkdir()
    rows = [["file", "path", "distance"]]
    for number, i in enumerate(chosen):
        file, name = f"{number:02d}.png", some.paths[i]
        shades = (distances[i] / darkest).tolist()
        draw_molecule(name, shades).save(folder / "examples" / file)
        rows.append([file, name, f"{means[i].item():.6g}"])
    write_atomically(folder / "molecules.csv", to_csv(rows))


def atom_distances(
    split: Split, *, network: nn.Module, source: nn.Module, taps: Sequence[str]
) -> list[Tensor]:
    """How far the features of each node of each graph moved: `[nodes]` for each, on the CPU.

    In the unit of DELTA without attention, `1/2 mean_c (F(w) - F(w0))^2 / v`, in eval mode, at the
    last tap that has a row for each node; nothing if none has.

    Args:
        split: graphs.
        network: fine-tuned.
        source: what it started from.
        taps: names of modules of both.
    """
    # PyTorch Geometric is installed for graph tasks only.
    from delta_transfer.data.graphs.loader import collate_graphs

    graphs, _ = collate_graphs([(split.read(path), 0) for path in split.paths])
    groups = graphs.groups
    found = []
    for model in (network, source):
        with Taps(model, taps) as recorded, eval_mode(model), torch.no_grad():
            recorded.record(graphs.to(device_of(model)))
            found.append(recorded.features())
    tap = next((tap for tap in reversed(taps) if len(found[1][tap]) == len(groups)), None)
    if tap is None:
        return []
    variance = FeatureVariance()
    variance.update(found[1][tap])
    squares = (found[0][tap] - found[1][tap]).square().mean(dim=1)
    distances = (0.5 * squares / variance.compute()).cpu()
    return list(torch.split(distances, torch.bincount(groups).tolist()))
