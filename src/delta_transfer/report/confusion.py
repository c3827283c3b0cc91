"""Accuracy per class and the confusion matrix."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from delta_transfer.report.figures import ACCENT, SMALL, STRONG, Plot, inline_svg, printable
from delta_transfer.report.formatting import shorten
from delta_transfer.report.run_files import Predictions

MAX_CLASSES, MAX_NUMBERED_CLASSES = 100, 30
# most classes: side of a cell in CSS pixels
CELLS = {6: 46, 12: 32, MAX_NUMBERED_CLASSES: 24, MAX_CLASSES: 12}
SHADES = 20  # one drawn path each, however many cells share it
LABEL = 20  # letters of a class name beside the matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """The accuracy of one class, and the class it is most often mistaken for.

    Args:
        name: of the class.
        num_samples: its samples.
        num_correct: samples that are classified correctly.
        mistaken_for: the most frequent wrong prediction, None if there is none.
        num_mistaken: how often it is predicted.
    """

    name: str
    num_samples: int
    num_correct: int
    mistaken_for: str | None
    num_mistaken: int

    @property
    def accuracy(self) -> float:
        """The fraction that is correct."""
        return self.num_correct / self.num_samples


def count_confusions(predictions: Predictions) -> Counter[tuple[str, str]]:
    """Count the pairs of label and prediction."""
    return Counter((row.label, row.prediction) for row in predictions.rows)


def class_accuracies(predictions: Predictions) -> list[ClassAccuracy]:
    """Return the classes that have samples, the one with the lowest accuracy first."""
    counts = count_confusions(predictions)
    totals = Counter(row.label for row in predictions.rows)
    order = {name: position for position, name in enumerate(predictions.classes)}
    worst: dict[str, tuple[int, int, str]] = {}
    for (label, prediction), count in counts.items():
        if label != prediction:  # ties go to the first in the order of classes
            found = (count, -order[prediction], prediction)
            worst[label] = max(found, worst.get(label, found))
    table = [
        ClassAccuracy(
            name=name,
            num_samples=totals[name],
            num_correct=counts[name, name],
            mistaken_for=worst[name][2] if name in worst else None,
            num_mistaken=worst[name][0] if name in worst else 0,
        )
        for name in predictions.classes
        if totals[name]
    ]
    return sorted(table, key=lambda entry: entry.accuracy)


def pool_predictions(runs: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several runs as those of one."""
    classes = dict.fromkeys(name for run in runs for name in run.classes)
    return Predictions(tuple(classes), tuple(row for run in runs for row in run.rows))


def confusion_plot(
    predictions: Predictions,
    name: str = "confusion",
    *,
    title: str = "Confusion matrix",
    sample_type: str = "image",
) -> Plot | None:
    """Plot the confusion matrix, a row per label; None if there are too many classes to read it.

    Args:
        predictions: labels and predictions to count.
        name: of the figure, for its ids.
        title: its heading.
        sample_type: what one sample is called, such as "image".
    """
    classes = predictions.classes
    if len(classes) > MAX_CLASSES:
        return None
    names = [shorten(printable(each), LABEL) for each in classes]
    cell = next(size for most, size in CELLS.items() if len(classes) <= most)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        _draw_cells(axes, predictions)
        size = 9 if len(classes) > MAX_NUMBERED_CLASSES else SMALL
        axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(classes)), names, fontsize=size)
        axes.set(xlabel="prediction", ylabel="label")

    margin = 6.2 * max(map(len, names)) + 40
    side = cell * len(classes) + margin
    numbers = f" Numbers are {sample_type}s;" if len(classes) <= MAX_NUMBERED_CLASSES else ""
    svg = inline_svg(draw, name, size=(side, side), text=_spoken(predictions))
    return Plot(
        title=title,
        svg=svg,
        caption=f"A row for each label, a column for each prediction.{numbers} "
        f"{'the' if numbers else 'The'} stronger the colour, the larger the fraction of the row.",
        wide=True,
    )


def _draw_cells(axes: Axes, predictions: Predictions) -> None:
    counts = count_confusions(predictions)
    totals = Counter(row.label for row in predictions.rows)
    order = {name: position for position, name in enumerate(predictions.classes)}
    shades: dict[int, list[Path]] = {}
    for (label, prediction), count in counts.items():
        x, y = order[prediction], order[label]
        corners = [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
        shade = round(SHADES * count / totals[label])
        shades.setdefault(shade, []).append(Path([*corners, corners[0]], closed=True))
        if len(order) <= MAX_NUMBERED_CLASSES:
            text = axes.text(x, y, str(count), ha="center", va="center", fontsize=10, color=STRONG)
            text.set_in_layout(False)
    for shade, cells in shades.items():
        square = Path.make_compound_path(*cells)
        alpha = 0.08 + 0.5 * shade / SHADES
        axes.add_patch(PathPatch(square, facecolor=ACCENT, alpha=alpha, linewidth=0))


def _spoken(predictions: Predictions) -> str:
    counts = count_confusions(predictions)
    correct = sum(counts[name, name] for name in predictions.classes)
    wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]]
    pairs = [f"{label} predicted as {prediction} ({n})" for (label, prediction), n in wrong[:8]]
    text = f"Confusion matrix: {correct} of {len(predictions.rows)} on the diagonal. "
    return text + (f"Most frequent mistakes: {', '.join(pairs)}." if pairs else "No mistakes.")
