"""The table of scores per binary or regression target of the compared methods."""

import statistics
from collections.abc import Sequence

from delta_transfer.metrics.metrics import NO_VALUE
from delta_transfer.report.comparison.runs import Comparison
from delta_transfer.report.formatting import method_label
from delta_transfer.report.targets import read_target_metrics
from delta_transfer.report.templates import Table


def targets_by_method(comparison: Comparison, methods: Sequence[str]) -> Table:
    """Return the score of each target by method, the mean over the seeds.

    Args:
        comparison: runs of one size.
        methods: its methods, the best first.

    Raises:
        UserError: if predictions of a run are missing or damaged.
    """
    metric = comparison.metric
    scores: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        for run in comparison.runs_of(method):
            for target in read_target_metrics(comparison.folder / run.folder):
                score = getattr(target, metric.name)
                if score is not None:
                    scores.setdefault(target.name, {}).setdefault(method, []).append(score)
    rows = [
        (
            name,
            [metric.format(statistics.fmean(own[m])) if m in own else NO_VALUE for m in methods],
        )
        for name, own in scores.items()
    ]
    title = f"{metric.title} per target"
    return Table(title, ["Target", *map(method_label, methods)], rows)
