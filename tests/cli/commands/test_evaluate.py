import dataclasses

import pytest

from delta_transfer.cli.commands.evaluate import format_evaluation
from delta_transfer.data.task import Split
from delta_transfer.inference.evaluation import ClassMetrics, Evaluation


def evaluation(names: list[str], confusion: list[list[int]]) -> Evaluation:
    """Metrics that do not have to agree with the confusion matrix."""
    import torch
    from PIL import Image

    counts = [sum(row) for row in confusion]
    accuracies = [
        row[number] / count if count else None
        for number, (row, count) in enumerate(zip(confusion, counts, strict=True))
    ]
    return Evaluation(
        data="/data",
        num_samples=sum(counts),
        num_unreadable=0,
        accuracy=0.5,
        mean_class_accuracy=0.41234,
        calibration_error=0.0567,
        metric_name="accuracy",
        overlaps_training_data=False,
        samples_per_second=123.45,
        classes=tuple(map(ClassMetrics, names, counts, accuracies)),
        confusion=tuple(map(tuple, confusion)),
        split=Split((), (), lambda path: Image.new("RGB", (1, 1))),
        probabilities=torch.empty(0, len(names)),
    )


FEW = evaluation(["cat", "a long name", "owl"], [[3, 1, 0], [1200, 5, 0], [0, 0, 0]])


def test_few_classes_are_shown_with_the_matrix():
    assert format_evaluation(FEW) == [
        "images               1209",
        "accuracy             50.0%",
        "mean class accuracy  41.2%",
        "calibration error    5.7%",
        "images/s             123.5",
        "",
        "    class        images  accuracy      1    2    3",
        "  1 cat               4     75.0%      3    1    .",
        "  2 a long name    1205      0.4%   1200    5    .",
        "  3 owl               0         -      .    .    .",
        "",
        "Right: confusion matrix; rows are true classes, columns are predictions.",
    ]


def test_the_metric_of_the_data_set_is_marked():
    marked = format_evaluation(dataclasses.replace(FEW, metric_name="mean_class_accuracy"))
    assert marked[1:3] == [
        "accuracy             50.0%",
        "mean class accuracy  41.2%  (the metric of this data set)",
    ]


def test_wide_characters_are_aligned():
    lines = format_evaluation(evaluation(["猫", "dog"], [[1, 0], [0, 1]]))
    assert lines[7:9] == [
        "  1 猫          1    100.0%     1   .",
        "  2 dog         1    100.0%     .   1",
    ]


@pytest.mark.parametrize(("count", "drawn"), [(20, True), (21, False)])
def test_many_classes_are_shown_with_the_most_confused_pairs(count, drawn):
    confusion = [[0] * count for _ in range(count)]
    for number in range(count):
        confusion[number][number] = 5
        confusion[number][(number + 1) % count] = number
    lines = format_evaluation(evaluation([f"class {number}" for number in range(count)], confusion))
    assert lines[6].startswith("    class ")
    assert lines[6].endswith("accuracy") is not drawn
    assert lines[7 + count] == ""
    rest = lines[8 + count :]
    if drawn:
        assert len(rest) == 1
    else:
        assert rest[0] == "Most often confused:"
        assert rest[1] == "      20  class 20 predicted as class 0"
        assert rest[2] == "      19  class 19 predicted as class 20"
        assert len(rest) == 11


def test_a_perfect_evaluation_has_no_pairs():
    confusion = [[int(row == column) for column in range(30)] for row in range(30)]
    lines = format_evaluation(evaluation([str(number) for number in range(30)], confusion))
    assert lines[-1] == "No errors."
