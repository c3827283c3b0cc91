"""What happened during the training of a comparison, epoch by epoch: means over the seeds."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from delta_transfer.metrics.metrics import Metric
from delta_transfer.report.comparison.runs import Comparison
from delta_transfer.report.curves import (
    LOSSES,
    Series,
    drop_non_finite,
    lines_plot,
    methods_plot,
    scores_over_epochs,
    series,
)
from delta_transfer.report.figures import Plot
from delta_transfer.report.formatting import method_label
from delta_transfer.report.run_files import probe_validation_score, read_drift, read_metrics
from delta_transfer.report.templates import Table

ByMethod = dict[str, dict[int, float]]
MAX_TAP_PLOTS = 8  # that are drawn; the table has all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Values over epochs.

    Args:
        plots: the drawings.
        table: the numbers behind them.
        conclusion: what they show, in a sentence; empty if there is nothing to say.
    """

    plots: list[Plot]
    table: Table
    conclusion: str


def learning_curves(comparison: Comparison) -> Curves | None:
    """The score and the losses of training and validation; None if no run has trained an epoch.

    Args:
        comparison: runs of one size.
    """
    metrics = {
        method: [read_metrics(comparison.folder / run.folder) or {} for run in runs]
        for method, runs in ((method, comparison.runs_of(method)) for method in comparison.methods)
    }
    measure = comparison.metric
    scores = _means(metrics, f"val_{measure.name}")
    losses: dict[str, ByMethod] = {}
    for name in LOSSES:
        for method, values in _means(metrics, name).items():
            losses.setdefault(method, {})[name] = values
    if not scores:
        return None
    by_seed = {
        run.seed: probe_validation_score(comparison.folder / run.folder)
        for run in comparison.entries
    }
    probe = statistics.fmean(by_seed.values())
    plot = scores_over_epochs(
        scores,
        measure,
        probe=probe if math.isfinite(probe) else None,
        seeds=len(comparison.seeds),
        methods=comparison.methods,
    )
    epochs = sorted({epoch for values in scores.values() for epoch in values})
    return Curves(
        plots=[plot, *_loss_plots(losses)],
        table=Table(
            f"Validation {measure.display_name} by epoch",
            ["Epoch", *map(method_label, scores)],
            [(str(epoch), _cells(scores, epoch, measure)) for epoch in epochs],
        ),
        conclusion=_overfitting(
            {method: found["val_loss"] for method, found in losses.items() if "val_loss" in found}
        ),
    )


def drift_curves(comparison: Comparison) -> Curves | None:
    """How far each tap moved from the source; None if no run has measured it.

    Args:
        comparison: runs of one size.
    """
    taps: dict[str, ByMethod] = {}
    for method in comparison.methods:
        found = [
            read_drift(comparison.folder / run.folder) or {} for run in comparison.runs_of(method)
        ]
        for tap in dict.fromkeys(tap for drift in found for tap in drift):
            values = _mean([drop_non_finite(drift[tap]) for drift in found if tap in drift])
            if len(values) > 1:
                taps.setdefault(tap, {})[method] = values
    if not taps:
        return None
    names = list(taps)
    step = max(1, -(-len(names) // MAX_TAP_PLOTS))
    plots = [
        methods_plot(
            taps[tap],
            f"drift{number}",
            title=f"Distance at {tap}",
            methods=comparison.methods,
            caption="",
        )
        for number, tap in enumerate(names[::-1][::step][::-1])
    ]
    last = {
        method: {
            tap: values[method][max(values[method])]
            for tap, values in taps.items()
            if method in values
        }
        for method in comparison.methods
    }
    last = {method: values for method, values in last.items() if values}
    rows = [
        (tap, [f"{values[tap]:.3g}" if tap in values else "" for values in last.values()])
        for tap in names
    ]
    return Curves(
        plots=plots,
        table=Table(
            "Distance from the source at the last epoch", ["Tap", *map(method_label, last)], rows
        ),
        conclusion=_furthest({m: statistics.fmean(v.values()) for m, v in last.items()}),
    )


def _means(
    metrics: Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]], name: str
) -> ByMethod:
    """The means over the seeds of each method that has more than the start of it."""
    means = {
        method: _mean([values for values in (series(run, name) for run in runs) if values])
        for method, runs in metrics.items()
    }
    least = 1 if name.startswith("train") else 2  # the start has no training
    return {method: values for method, values in means.items() if len(values) >= least}


def _mean(runs: Sequence[Series]) -> dict[int, float]:
    """Over the epochs that all have, so that each point is a mean of the same runs."""
    common = set.intersection(*map(set, runs)) if runs else set()
    return {epoch: statistics.fmean(run[epoch] for run in runs) for epoch in sorted(common)}


def _cells(curves: ByMethod, epoch: int, metric: Metric) -> list[str]:
    return [metric.format(values[epoch]) if epoch in values else "" for values in curves.values()]


def _loss_plots(losses: Mapping[str, Mapping[str, Series]]) -> list[Plot]:
    """A plot a method, all with the same axis; one that leaves it does not flatten the others."""
    peaks = [max(max(v.values()) for v in found.values()) for found in losses.values()]
    top = 1.05 * min(max(peaks), 2 * statistics.median(peaks)) if peaks else None
    plots = [
        lines_plot(
            {LOSSES[name]: values for name, values in found.items()},
            f"loss{number}",
            title=f"{method_label(method)}: task loss",
            top=top,
        )
        for number, (method, found) in enumerate(losses.items())
    ]
    return [plot for plot in plots if plot is not None]


def _overfitting(losses: Mapping[str, Series]) -> str:
    rises = {}
    for method, values in losses.items():
        lowest = min(values, key=values.__getitem__)
        rises[method] = (values[max(values)] - values[lowest], lowest)
    if not rises:
        return ""
    worst = max(rises, key=rises.__getitem__)
    (rise, lowest), values = rises[worst], losses[worst]
    if rise <= 0.01 * values[lowest]:
        return "The validation loss of no method ends more than 1% above its lowest."
    return (
        "Where the validation loss rises while the training loss falls, images are learnt by "
        f"heart: most so by {method_label(worst)}, from {values[lowest]:.3g} at epoch {lowest} to "
        f"{values[max(values)]:.3g} at the end."
    )


def _furthest(distances: Mapping[str, float]) -> str:
    most, least = (pick(distances, key=distances.__getitem__) for pick in (max, min))
    said = (
        f"At the last epoch {method_label(most)} is furthest from the source, {distances[most]:.3g}"
    )
    if len(distances) == 1:
        return f"{said} on average over the taps."
    nearest = f"{method_label(least)} is nearest, {distances[least]:.3g}"
    return f"{said} on average over the taps; {nearest}."
