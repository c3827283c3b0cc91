"""Per-class results of a comparison: accuracy of each class, and the most confident mistakes."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from delta_transfer.report.comparison.runs import BASELINE, PROBE, Comparison
from delta_transfer.report.confusion import class_accuracies, confusion_plot, pool_predictions
from delta_transfer.report.figures import Plot
from delta_transfer.report.formatting import method_label, percent, points
from delta_transfer.report.run_files import (
    PredictionRow,
    Predictions,
    read_examples,
    read_predictions,
)
from delta_transfer.report.templates import Table

MAX_MISTAKES = 12


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image as a data: URI, its most confident wrong prediction, and how many runs are wrong."""

    image: str
    prediction: PredictionRow
    num_wrong_runs: int
    num_runs: int


@dataclasses.dataclass(frozen=True)
class MethodMistakes:
    """A method's confusion matrix and most confident mistakes over all seeds."""

    method: str
    confusion: Plot | None
    mistakes: list[Mistake]


@dataclasses.dataclass(frozen=True)
class PerClassAccuracy:
    """The accuracy of each class by method, and a sentence that summarises it, or none."""

    table: Table
    summary: str


def per_class_results(
    comparison: Comparison, methods: Sequence[str]
) -> tuple[PerClassAccuracy, list[MethodMistakes]]:
    """Return the accuracy of each class, and the mistakes of each method.

    Args:
        comparison: runs of one size.
        methods: its methods, the best first.
    """
    folders = {
        method: [comparison.folder / run.folder for run in comparison.runs_of(method)]
        for method in methods
    }
    runs = {method: list(map(read_predictions, own)) for method, own in folders.items()}
    pooled = {method: pool_predictions(own) for method, own in runs.items()}
    by_method = [
        MethodMistakes(
            method,
            confusion_plot(
                pooled[method],
                f"confusion{number}",
                title=f"Confusion matrix of {method_label(method)}",
                sample_type=comparison.sample_type,
            ),
            _mistakes(folders[method], runs[method]),
        )
        for number, method in enumerate(methods)
    ]
    return _accuracies(pooled), by_method


def _mistakes(folders: Sequence[Path], runs: Sequence[Predictions]) -> list[Mistake]:
    """Return the mistakes with the highest probability over all seeds, each image once."""
    total = Counter(row.path for run in runs for row in run.rows)
    wrong = Counter(row.path for run in runs for row in run.rows if not row.is_correct)
    examples = [example for folder in folders for example in read_examples(folder) or ()]
    surest = {
        example.prediction.path: example
        for example in sorted(examples, key=lambda example: example.prediction.probability)
        if not example.prediction.is_correct
    }
    found = sorted(surest.values(), key=lambda example: -example.prediction.probability)
    return [
        Mistake(
            example.image,
            example.prediction,
            wrong[example.prediction.path],
            total[example.prediction.path],
        )
        for example in found[:MAX_MISTAKES]
    ]


def _accuracies(pooled: Mapping[str, Predictions]) -> PerClassAccuracy:
    """Return the classes that have images, the hardest for the first method first."""
    tables = {
        method: {entry.name: entry for entry in class_accuracies(predictions)}
        for method, predictions in pooled.items()
    }
    first, *others = tables
    names = dict.fromkeys(name for entries in tables.values() for name in entries)
    rows = []
    for name in names:
        accuracies = [
            percent(entries[name].accuracy) if name in entries else ""
            for entries in tables.values()
        ]
        own = tables[first].get(name)
        taken = (
            f"{own.mistaken_for} ({own.num_mistaken} of {own.num_samples})"
            if own and own.num_mistaken
            else ""
        )
        rows.append((name, [*accuracies, taken]))
    headings = [
        "Class",
        *map(method_label, tables),
        f"Most frequent mistake ({method_label(first)})",
    ]
    other = next((method for method in (PROBE, BASELINE) if method in others), None)
    summary = ""
    if other:
        both = tables[first].keys() & tables[other].keys()
        gains = {
            name: tables[first][name].accuracy - tables[other][name].accuracy
            for name in names
            if name in both
        }
        summary = _extremes(gains, first, other)
    return PerClassAccuracy(Table("Accuracy per class", headings, rows), summary)


def _extremes(gains: Mapping[str, float], method: str, other: str) -> str:
    if not gains:
        return ""
    up = sum(gain > 0 for gain in gains.values())
    down = sum(gain < 0 for gain in gains.values())
    reference = "the linear probe" if other == PROBE else method_label(other).lower()
    text = (
        f"Compared to {reference}, {method_label(method)} is better on {up} of {len(gains)} "
        f"classes and worse on {down}"
    )
    parts = []
    most, least = (pick(gains, key=gains.__getitem__) for pick in (max, min))
    if gains[most] > 0:
        parts.append(f"the largest gain is on {most} ({points(gains[most])} points)")
    if gains[least] < 0:
        parts.append(f"the largest loss is on {least} ({points(gains[least])} points)")
    return f"{text}; {', '.join(parts)}." if parts else f"{text}."
