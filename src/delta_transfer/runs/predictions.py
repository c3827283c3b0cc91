"""Prediction files of a run: CSV tables, example images and molecules."""

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
from delta_transfer.utils.files import to_csv, write_atomically
from delta_transfer.utils.module_state import device_of, eval_mode

MAX_MISTAKES, MAX_CORRECT, MAX_DISAGREEMENTS = 12, 8, 6  # images of each kind
THUMBNAIL = 160


def write_predictions(
    path: Path,
    split: Split,
    predictions: Tensor,
    classes: Sequence[str],
    task_type: TaskType = MULTICLASS,
) -> None:
    """Write a CSV file with a row for each sample.

    The columns are, for classes, `path,label,prediction` and a probability per class; for binary
    targets `path`, then `label NAME` and `probability NAME` of each; for regression targets
    `label NAME` and `prediction NAME`. Missing labels are empty.

    Args:
        path: the CSV file.
        split: the samples.
        predictions: `[N, K]`.
        classes: the K names; see `column_names`.
        task_type: the meaning of the predictions.
    """
    make_rows = _class_rows if isinstance(task_type, Multiclass) else _target_rows
    write_atomically(path, to_csv(make_rows(split, predictions, classes, task_type)))


def _class_rows(
    split: Split, predictions: Tensor, classes: Sequence[str], task_type: TaskType
) -> list[list[str]]:
    names = column_names(classes)
    rows = [["path", "label", "prediction", *names]]
    samples = zip(split.paths, split.class_indices, predictions.tolist(), strict=True)
    for path, label, row in samples:
        prediction = names[row.index(max(row))]
        rows.append([path, names[label], prediction, *map(as_number, row)])
    return rows


def _target_rows(
    split: Split, predictions: Tensor, names: Sequence[str], task_type: TaskType
) -> list[list[str]]:
    columns = [[f"label {name}", f"{task_type.prediction_name} {name}"] for name in names]
    rows = [["path", *itertools.chain.from_iterable(columns)]]
    samples = zip(split.paths, split.targets.tolist(), predictions.tolist(), strict=True)
    for path, *pair in samples:
        cells = [[_known(label), f"{found:.7g}"] for label, found in zip(*pair, strict=True)]
        rows.append([path, *itertools.chain.from_iterable(cells)])
    return rows


def _known(label: float) -> str:
    return "" if math.isnan(label) else f"{label:.7g}"


def column_names(classes: Sequence[str]) -> list[str]:
    """Return column names for classes, none of which is the name of another column.

    Example:
        >>> column_names(["cat", "path", "path (class)"])
        ['cat', 'path (class)', 'path (class) (class)']
    """
    return [f"{name} (class)" if _COLUMN.fullmatch(name) else name for name in classes]


_COLUMN = re.compile(r"(path|label|prediction|probability)( \(class\))*")


def write_examples(
    folder: Path, split: Split, probabilities: Tensor, probe: Tensor, classes: Sequence[str]
) -> None:
    """Write thumbnails of informative images, and `examples.csv`.

    These are the most confident mistakes and correct predictions, and images that only one of
    network and linear probe classifies correctly.

    Args:
        folder: folder of the run.
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
    """Format a probability for a table."""
    return f"{value:.6f}"


MAX_MOLECULES = 512  # to measure
NUM_MOST_CHANGED, NUM_LEAST_CHANGED = 9, 3  # to draw


def write_molecules(
    folder: Path, split: Split, *, network: nn.Module, source: nn.Module, taps: Sequence[str]
) -> None:
    """Draw the molecules whose features moved most and least: `examples/`, `molecules.csv`.

    Atoms whose features moved further are darker, on one scale for all molecules.

    Args:
        folder: folder of the run.
        split: the molecules, of which at most `MAX_MOLECULES` are measured.
        network: the fine-tuned network.
        source: the pretrained network.
        taps: names of modules; the last one with a row for each atom is used.
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
    """Return how far the features of each graph's nodes moved: `[nodes]` each, on the CPU.

    The distance is that of DELTA without attention, `1/2 mean_c (F(w) - F(w0))^2 / v`, in eval
    mode, at the last tap with a row for each node; empty without such a tap.

    Args:
        split: graphs.
        network: the fine-tuned network.
        source: the pretrained network.
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
