"""Learning curves and drift of a comparison: means over the seeds, per epoch."""

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
    scores_over_epochs,
    series,
)
from delta_transfer.report.figures import Plot
from delta_transfer.report.formatting import method_label
from delta_transfer.report.run_files import probe_validation_score, read_drift, read_metrics
from delta_transfer.report.templates import Table

ByMethod = dict[str, dict[int, float]]
MAX_TAP_PLOTS = 8  # the table has all taps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Values over epochs.

    Args:
        plots: one or several.
        table: their values.
        conclusion: a sentence that summarises them, or an empty string.
    """

    plots: list[Plot]
    table: Table
    conclusion: str


def learning_curves(comparison: Comparison) -> Curves | None:
    """Plot scores and losses of training and validation; None if no run has trained an epoch.

    Args:
        comparison: runs of one size.
    """
    metrics = {
        method: [read_metrics(comparison.folder / run.folder) or {} for run in runs]
        for method, runs in ((method, comparison.runs_of(method)) for method in comparison.methods)
    }
    metric = comparison.metric
    scores = _means(metrics, f"val_{metric.name}")
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
        metric,
        probe=probe if math.isfinite(probe) else None,
        seeds=len(comparison.seeds),
        methods=comparison.methods,
    )
    epochs = sorted({epoch for values in scores.values() for epoch in values})
    return Curves(
        plots=[plot, *_loss_plots(losses)],
        table=Table(
            f"Validation {metric.display_name} by epoch",
            ["Epoch", *map(method_label, scores)],
            [(str(epoch), _cells(scores, epoch, metric)) for epoch in epochs],
        ),
        conclusion=_overfitting(
            {method: found["val_loss"] for method, found in losses.items() if "val_loss" in found}
        ),
    )


def drift_curves(comparison: Comparison) -> Curves | None:
    """Plot how far each tap moved from the pretrained network; None if no run has measured it.

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
    methods = comparison.methods
    plots = [
        lines_plot(taps[tap], f"drift{number}", title=f"Distance at {tap}", methods=methods)
        for number, tap in enumerate(names[::-1][::step][::-1])
    ]
    last = {
        method: {
            tap: values[method][max(values[method])]
            for tap, values in taps.items()
            if method in values
        }
        for method in methods
    }
    last = {method: values for method, values in last.items() if values}
    rows = [
        (tap, [f"{values[tap]:.3g}" if tap in values else "" for values in last.values()])
        for tap in names
    ]
    return Curves(
        plots=[plot for plot in plots if plot is not None],
        table=Table(
            "Distance from the pretrained network at the last epoch",
            ["Tap", *map(method_label, last)],
            rows,
        ),
        conclusion=_furthest({m: statistics.fmean(v.values()) for m, v in last.items()}),
    )


def _means(
    metrics: Mapping[str, Sequence[Mapping[int, Mapping[str, float]]]], name: str
) -> ByMethod:
    """Average over the seeds, for each method with values beyond the initialization."""
    means = {
        method: _mean([values for values in (series(run, name) for run in runs) if values])
        for method, runs in metrics.items()
    }
    least = 1 if name.startswith("train") else 2  # epoch 0 has no training loss
    return {method: values for method, values in means.items() if len(values) >= least}


def _mean(runs: Sequence[Series]) -> dict[int, float]:
    """Average over the epochs that all runs have, so that each point averages the same runs."""
    common = set.intersection(*map(set, runs)) if runs else set()
    return {epoch: statistics.fmean(run[epoch] for run in runs) for epoch in sorted(common)}


def _cells(curves: ByMethod, epoch: int, metric: Metric) -> list[str]:
    return [metric.format(values[epoch]) if epoch in values else "" for values in curves.values()]


def _loss_plots(losses: Mapping[str, Mapping[str, Series]]) -> list[Plot]:
    """Plot each method's losses on the same axis, which outliers may exceed."""
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
        return "No method overfits: every validation loss ends within 1% of its minimum."
    return (
        f"{method_label(worst)} overfits most: its validation loss rises from "
        f"{values[lowest]:.3g} at epoch {lowest} to {values[max(values)]:.3g} at the end."
    )


def _furthest(distances: Mapping[str, float]) -> str:
    most, least = (pick(distances, key=distances.__getitem__) for pick in (max, min))
    text = (
        f"At the last epoch, averaged over the taps, {method_label(most)} is furthest from the "
        f"pretrained network ({distances[most]:.3g})"
    )
    if len(distances) == 1:
        return f"{text}."
    return f"{text}, {method_label(least)} is nearest ({distances[least]:.3g})."
