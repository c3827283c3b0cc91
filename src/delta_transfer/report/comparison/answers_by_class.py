"""What the runs of a comparison answer: accuracy class by class, and their surest mistakes."""

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
    """An image, as a data: URI, the surest wrong answer to it, and how many runs are wrong."""

    image: str
    prediction: PredictionRow
    num_wrong_runs: int
    num_runs: int


@dataclasses.dataclass(frozen=True)
class MethodMistakes:
    """What a method answers, over all seeds: the confusion matrix and the surest mistakes."""

    method: str
    confusion: Plot | None
    mistakes: list[Mistake]


@dataclasses.dataclass(frozen=True)
class PerClassAccuracy:
    """The accuracy of each class by method, and what it shows, in a sentence or none."""

    table: Table
    summary: str


def per_class_results(
    comparison: Comparison, methods: Sequence[str]
) -> tuple[PerClassAccuracy, list[MethodMistakes]]:
    """The accuracy of each class, and what each method mistakes.

    Args:
        comparison: runs of one size.
        methods: its methods, the best first.
    """
    folders = {
        method: [comparison.folder / run.folder for run in comparison.runs_of(method)]
        for method in methods
    }
    runs = {method: list(map(read_predictions, own)) for method, own in folders.items()}
    together = {method: pool_predictions(own) for method, own in runs.items()}
    made = [
        MethodMistakes(
            method,
            confusion_plot(
                together[method],
                f"confusion{number}",
                title=f"Confusion matrix of {method_label(method)}",
                sample_type=comparison.sample_type,
            ),
            _mistakes(folders[method], runs[method]),
        )
        for number, method in enumerate(methods)
    ]
    return _classes(together), made


def _mistakes(folders: Sequence[Path], runs: Sequence[Predictions]) -> list[Mistake]:
    """Those with the highest probability of all seeds, each image once."""
    seen = Counter(row.path for run in runs for row in run.rows)
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
            seen[example.prediction.path],
        )
        for example in found[:MAX_MISTAKES]
    ]


def _classes(together: Mapping[str, Predictions]) -> PerClassAccuracy:
    """The classes that have images, those first that the first method has most trouble with."""
    tables = {
        method: {entry.name: entry for entry in class_accuracies(predictions)}
        for method, predictions in together.items()
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
    headings = ["Class", *map(method_label, tables), f"{method_label(first)} takes it for"]
    other = next((method for method in (PROBE, BASELINE) if method in others), None)
    said = ""
    if other:
        both = tables[first].keys() & tables[other].keys()
        gains = {
            name: tables[first][name].accuracy - tables[other][name].accuracy
            for name in names
            if name in both
        }
        said = _extremes(gains, first, other)
    return PerClassAccuracy(Table("Accuracy per class", headings, rows), said)


def _extremes(gains: Mapping[str, float], method: str, other: str) -> str:
    if not gains:
        return ""
    up = sum(gain > 0 for gain in gains.values())
    down = sum(gain < 0 for gain in gains.values())
    against = "the linear probe" if other == PROBE else method_label(other).lower()
    said = (
        f"Against {against}, {method_label(method)} is better on {up} of {len(gains)} classes "
        f"and worse on {down}"
    )
    parts = []
    most, least = (pick(gains, key=gains.__getitem__) for pick in (max, min))
    if gains[most] > 0:
        parts.append(f"most is gained on {most} ({points(gains[most])} points)")
    if gains[least] < 0:
        parts.append(f"most is lost on {least} ({points(gains[least])})")
    return f"{said}: {', '.join(parts)}." if parts else f"{said}."
