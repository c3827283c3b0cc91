"""The command evaluate."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import EvaluateOptions

if TYPE_CHECKING:  # they load torch, which --help does without
    from delta_transfer.inference.evaluation import Evaluation
    from delta_transfer.inference.evaluation_per_target import PerTargetEvaluation

_log = logging.getLogger("delta_transfer")


def evaluate(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("evaluate", EvaluateOptions, args, positional=["run", "data"])
    from delta_transfer.inference import evaluation_folder
    from delta_transfer.inference.predictor import Predictor

    if options.out is not None:
        evaluation_folder.check_folder(Path(options.out), data=options.data)
    predictor = Predictor(
        options.run,
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )
    found = predictor.evaluate(options.data, data_root=options.data_root)
    if found.overlaps_training_data:
        _log.warning(
            "the run was trained on %ss of %s: these metrics are optimistic",
            found.split.sample_type,
            options.data,
        )
    folder = evaluation_folder.save_evaluation(found, run=Path(options.run), out=options.out)
    if options.json:
        print(found.to_json(), end="")
        return
    print("\n".join(format_evaluation(found)))
    if folder is not None:
        print(f"\nfiles    {folder}")


MAX_MATRIX_CLASSES = 20  # with more classes, the most confused pairs are listed instead
MAX_PAIRS = 10


def format_evaluation(evaluation: "Evaluation | PerTargetEvaluation") -> list[str]:
    """Return metrics, then a line per class, with the confusion matrix or its largest entries.

    Binary and regression targets have a line each instead.
    """
    from delta_transfer.inference.evaluation_per_target import (
        PerTargetEvaluation,
        format_per_target_evaluation,
    )

    if isinstance(evaluation, PerTargetEvaluation):
        return format_per_target_evaluation(evaluation)
    percent = {
        "accuracy": evaluation.accuracy,
        "mean_class_accuracy": evaluation.mean_class_accuracy,
        "calibration_error": evaluation.calibration_error,
    }
    noun = evaluation.split.sample_type
    figures = [f"{noun + 's':21}{evaluation.num_samples}"]
    for name, value in percent.items():
        main = name == evaluation.metric_name != "accuracy"
        mark = "  (the metric of this data set)" if main else ""
        figures.append(f"{name.replace('_', ' '):21}{100 * value:.1f}%{mark}")
    figures.append(f"{noun + 's/s':21}{evaluation.samples_per_second:.1f}")
    drawn = len(evaluation.classes) <= MAX_MATRIX_CLASSES
    return [
        *figures,
        "",
        *_classes(evaluation, _matrix(evaluation.confusion) if drawn else None),
        "",
        *(_KEY if drawn else _pairs(evaluation)),
    ]


_KEY = ("Right: confusion matrix; rows are true classes, columns are predictions.",)


def _classes(evaluation: "Evaluation", matrix: Sequence[str] | None) -> list[str]:
    """Return a line per class, with its row of the matrix."""
    width = max(cell_len(figures.name) for figures in evaluation.classes)
    width = max(width, len("class"))
    head, *rest = matrix or [""] * (len(evaluation.classes) + 1)
    nouns = f"{evaluation.split.sample_type}s"
    lines = [f"    {'class':{width}}  {nouns}  accuracy{head}"]
    for number, (figures, line) in enumerate(zip(evaluation.classes, rest, strict=True), start=1):
        accuracy = "-" if figures.accuracy is None else f"{100 * figures.accuracy:.1f}%"
        name = figures.name + " " * (width - cell_len(figures.name))
        lines.append(f"{number:3} {name}  {figures.num_samples:{len(nouns)}}  {accuracy:>8}{line}")
    return lines


def _matrix(confusion: Sequence[Sequence[int]]) -> list[str]:
    """Return the column numbers, and the counts of each row."""
    cell = 1 + max(3, len(str(max(map(max, confusion)))))
    head = "".join(f"{number:{cell}}" for number in range(1, len(confusion) + 1))
    rows = ["".join(f"{count or '.':>{cell}}" for count in row) for row in confusion]
    return [f"  {line}" for line in (head, *rows)]


def _pairs(evaluation: "Evaluation") -> list[str]:
    """Return the most frequently confused pairs of classes."""
    names = [figures.name for figures in evaluation.classes]
    pairs = [
        (-count, row, column)
        for row, counts in enumerate(evaluation.confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    lines = [
        f"{-count:8}  {names[row]} predicted as {names[column]}"
        for count, row, column in sorted(pairs)[:MAX_PAIRS]
    ]
    return ["Most often confused:", *lines] if lines else ["No errors."]
