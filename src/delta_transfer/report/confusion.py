"""Which classes are right how often, and which are taken for which."""

import dataclasses
from collections import Counter

from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from delta_transfer.report.figures import ACCENT, STRONG, Plot, inline_svg, printable
from delta_transfer.report.run_files import Predictions
from delta_transfer.report.words import shorten

MOST_CLASSES = 30
CELLS = {6: 46, 12: 32, MOST_CLASSES: 24}  # most classes: side of a cell in CSS pixels
LABEL = 20  # letters of a class name beside the matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """How often one class is right, and what it is most often taken for.

    Args:
        name: of the class.
        count: its pictures.
        right: those that are right.
        mistaken_for: the wrong class that is predicted most often for it, None if there is none.
        mistakes: how often that is.
    """

    name: str
    count: int
    right: int
    mistaken_for: str | None
    mistakes: int

    @property
    def accuracy(self) -> float:
        """The fraction that is right."""
        return self.right / self.count


def confusions(predictions: Predictions) -> Counter[tuple[str, str]]:
    """How often each label has each prediction."""
    return Counter((row.label, row.prediction) for row in predictions.rows)


def class_accuracies(predictions: Predictions) -> list[ClassAccuracy]:
    """The classes that have pictures, the one with the lowest accuracy first."""
    counts = confusions(predictions)
    totals = Counter(row.label for row in predictions.rows)
    order = {name: position for position, name in enumerate(predictions.classes)}
    worst: dict[str, tuple[int, int, str]] = {}
    for (label, prediction), count in counts.items():
        if label != prediction:  # of two that are as frequent, the first in the order of classes
            found = (count, -order[prediction], prediction)
            worst[label] = max(found, worst.get(label, found))
    table = [
        ClassAccuracy(
            name=name,
            count=totals[name],
            right=counts[name, name],
            mistaken_for=worst[name][2] if name in worst else None,
            mistakes=worst[name][0] if name in worst else 0,
        )
        for name in predictions.classes
        if totals[name]
    ]
    return sorted(table, key=lambda entry: entry.accuracy)


def confusion_plot(predictions: Predictions) -> Plot | None:
    """The confusion matrix, a row per label; None if there are too many classes to read it."""
    classes = predictions.classes
    if len(classes) > MOST_CLASSES:
        return None
    counts = confusions(predictions)
    totals = Counter(row.label for row in predictions.rows)
    order = {name: position for position, name in enumerate(classes)}
    names = [shorten(printable(name), LABEL) for name in classes]
    cell = next(size for most, size in CELLS.items() if len(classes) <= most)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        squares, colours = [], []
        for (label, prediction), count in counts.items():
            x, y = order[prediction], order[label]
            squares.append(Rectangle((x - 0.5, y - 0.5), 1, 1))
            colours.append(to_rgba(ACCENT, 0.08 + 0.5 * count / totals[label]))
            text = axes.text(x, y, str(count), ha="center", va="center", fontsize=10, color=STRONG)
            text.set_in_layout(False)
        axes.add_collection(PatchCollection(squares, facecolors=colours, linewidths=0))
        axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
        axes.set(xlabel="prediction", ylabel="label")

    margin = 6.2 * max(map(len, names)) + 40
    side = cell * len(classes) + margin
    right = sum(counts[name, name] for name in classes)
    wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]]
    said = [f"{label} taken for {prediction} ({n})" for (label, prediction), n in wrong[:8]]
    text = f"Confusion matrix: {right} of {len(predictions.rows)} on the diagonal. "
    text += f"Most frequent mistakes: {', '.join(said)}." if said else "No mistakes."
    return Plot(
        title="Confusion matrix",
        svg=inline_svg(draw, "confusion", size=(side, side), text=text),
        caption="A row for each label, a column for each prediction. Numbers are pictures; "
        "the fuller the colour, the larger the share of the row.",
        wide=True,
    )
