"""The page of a comparison."""

import dataclasses
import statistics
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from delta_transfer.files import write_atomically
from delta_transfer.report.accuracies import accuracies_plot
from delta_transfer.report.comparison import (
    BASELINE,
    Comparison,
    MethodSummary,
    best_methods,
    read_comparison,
    summarize_methods,
)
from delta_transfer.report.contrast import contrast
from delta_transfer.report.curves import methods_plot, series
from delta_transfer.report.figures import Plot
from delta_transfer.report.pages import NAME, data_name, render_page
from delta_transfer.report.run_files import (
    Example,
    read_config,
    read_examples,
    read_metrics,
    read_result,
)
from delta_transfer.report.words import interval, label, percent, points, verdict
from delta_transfer.stats import Summary


@dataclasses.dataclass(frozen=True)
class Difference:
    """A cell of the table: a difference and its interval as words, and whether it is clear."""

    mean: str
    interval: str
    clear: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table, as words."""

    label: str
    best: bool
    mean: str
    deviation: str
    seeds: int
    to_baseline: Difference | None
    to_probe: Difference | None
    seconds: float


def write_comparison_report(folder: Path) -> Path:
    """Writes `report.html` for a folder of runs, from their files alone.

    It links to the page of each run that has one, so those are written first.

    Args:
        folder: of the comparison.

    Returns:
        The page.

    Raises:
        UserError: if `results.csv`, or a file of a run, is missing or damaged.
    """
    comparison = read_comparison(folder)
    summaries = summarize_methods(comparison)
    best = best_methods(summaries)[0]
    configs = [read_config(folder / entry.folder) for entry in comparison.entries]
    beside = contrast(comparison, best.method)
    page = render_page(
        "comparison.html.j2",
        {
            "comparison": comparison,
            "data": _all(data_name(config.get("data", "unknown data")) for config in configs),
            "model": _all(config.get("model", "an unknown model") for config in configs),
            "findings": _findings(comparison, summaries),
            "table": [_line(summary, best=summary is best) for summary in summaries],
            "baseline": label(BASELINE) if BASELINE in comparison.methods else None,
            "plots": _plots(comparison, summaries),
            "best": best.method,
            "contrast": beside,
            "examples": () if beside else _examples(comparison, best.method),
            "runs": [
                (entry, _link(folder, entry.folder.as_posix())) for entry in comparison.entries
            ],
        },
    )
    path = folder / NAME
    write_atomically(path, page)
    return path


def _line(summary: MethodSummary, *, best: bool) -> Line:
    deviation = summary.accuracy.deviation
    return Line(
        label=label(summary.method),
        best=best,
        mean=percent(summary.accuracy.mean),
        deviation=f"± {100 * deviation:.1f}" if summary.accuracy.count > 1 else "",
        seeds=summary.accuracy.count,
        to_baseline=_difference(summary.to_baseline),
        to_probe=_difference(summary.to_probe),
        seconds=summary.seconds,
    )


def _difference(difference: Summary | None) -> Difference | None:
    if difference is None:
        return None
    clear = verdict(difference) in ("above", "below")
    return Difference(points(difference.mean), interval(difference), clear)


def _findings(comparison: Comparison, summaries: list[MethodSummary]) -> list[str]:
    """What the table shows, in sentences that claim no more than it does."""
    equals = best_methods(summaries)
    best, names = equals[0], [label(summary.method) for summary in equals]
    named = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    count = best.accuracy.count
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    said = [
        f"Of the {'fine-tuned ' if best.to_probe else ''}methods, {named} "
        f"{'share' if len(names) > 1 else 'has'} the highest {comparison.split} accuracy: "
        f"{percent(best.accuracy.mean)} ({seeds})."
    ]
    if len(names) > 1:
        said.append(f"What follows is said of {names[0]}.")
    if best.to_baseline:
        said.append(_sentence(best.to_baseline, label(BASELINE).lower()))
    if best.to_probe:
        said.append(_sentence(best.to_probe, "the linear probe"))
    if any(summary.accuracy.count < 2 for summary in summaries):
        said.append(
            "With fewer than two seeds there is no interval: such a difference may be chance."
        )
    return said


def _sentence(difference: Summary, other: str) -> str:
    if difference.count < 2:
        return f"Against {other}: {points(difference.mean)} points, on one seed."
    found = {
        "above": f"that is above {other} beyond what the choice of seed explains",
        "below": f"that is below {other} beyond what the choice of seed explains",
        "unclear": "the interval includes zero, so these seeds do not tell the two apart",
    }[verdict(difference)]
    return (
        f"Against {other}: {points(difference.mean)} points "
        f"(95% interval {interval(difference)}); {found}."
    )


def _plots(comparison: Comparison, summaries: list[MethodSummary]) -> list[Plot]:
    plots = [accuracies_plot(comparison, summaries)]
    curves: dict[str, dict[int, float]] = {}
    for method in comparison.methods:
        runs = [read_metrics(comparison.folder / entry.folder) for entry in comparison.of(method)]
        found = [series(metrics, "val_accuracy") for metrics in runs if metrics]
        # Epochs that all seeds have, so that each point is a mean over the same runs.
        common = set.intersection(*map(set, found)) if found else set()
        if len(common) > 1:
            curves[method] = {
                epoch: statistics.fmean(values[epoch] for values in found)
                for epoch in sorted(common)
            }
    if curves:
        by_seed = {
            entry.seed: read_result(comparison.folder / entry.folder).linear_probe_val_accuracy
            for entry in comparison.entries
        }
        probe = statistics.fmean(by_seed.values())
        plots.append(methods_plot(curves, probe=probe, seeds=len(comparison.seeds)))
    return plots


def _examples(comparison: Comparison, method: str) -> list[Example]:
    first = comparison.of(method)[0]
    examples = read_examples(comparison.folder / first.folder) or ()
    return sorted(examples, key=lambda example: example.prediction.right)


def _link(folder: Path, run: str) -> str | None:
    return quote(f"{run}/{NAME}") if (folder / run / NAME).is_file() else None


def _all(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
