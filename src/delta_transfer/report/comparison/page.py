"""The self-contained report page of a comparison."""

import dataclasses
from pathlib import Path

from delta_transfer.errors import first_few
from delta_transfer.metrics.metrics import ACCURACY, Metric
from delta_transfer.metrics.run_result import ModelSelection
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.attention_ranks import attention_of_methods
from delta_transfer.report.comparison.curves import drift_curves, learning_curves
from delta_transfer.report.comparison.efficiency import efficiency
from delta_transfer.report.comparison.per_class import per_class_results
from delta_transfer.report.comparison.probe_disagreements import find_probe_disagreements
from delta_transfer.report.comparison.ranking import ranking_plot
from delta_transfer.report.comparison.retention import method_retention
from delta_transfer.report.comparison.runs import (
    BASELINE,
    Comparison,
    MethodSummary,
    best_methods,
    rank_methods,
    read_comparison,
    summarize_methods,
)
from delta_transfer.report.comparison.summary import summary_sentences
from delta_transfer.report.comparison.targets import targets_by_method
from delta_transfer.report.figures import Plot
from delta_transfer.report.formatting import (
    format_training_size,
    interval,
    method_label,
    pluralize,
    verdict,
)
from delta_transfer.report.run_files import read_config, read_result
from delta_transfer.report.templates import REPORT_FILE, data_name, render_page
from delta_transfer.report.trade_off import trade_off
from delta_transfer.utils.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Difference:
    """A table cell: a formatted difference, its interval, and whether it is significant."""

    mean: str
    interval: str
    is_significant: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingRow:
    """A formatted row of the ranking."""

    label: str
    best: bool
    mean: str
    std: str
    num_seeds: int
    vs_baseline: Difference | None
    vs_probe: Difference | None
    wall_time_s: float
    peak_memory_mib: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The methods at one size, the best first, and their plot."""

    size: int | None
    lines: list[RankingRow]
    plot: Plot


def write_comparison_report(folder: Path) -> Path:
    """Write `report.html` for a folder of runs, finished or not, from their files alone.

    If there are several training set sizes, details are shown for the largest only.

    Args:
        folder: of the comparison.

    Returns:
        The page.

    Raises:
        UserError: if `results.csv`, or a file of a run, is missing or damaged.
    """
    comparison = read_comparison(folder)
    *others, size = comparison.sizes
    part = comparison.with_size(size)
    summaries = rank_methods(summarize_methods(part))
    best = best_methods(summaries)[0].method
    methods = [best, *(found.method for found in summaries if found.method != best)]
    has_classes = comparison.metric is ACCURACY
    per_class, mistakes = per_class_results(part, methods) if has_classes else (None, [])
    selections = _selections(part)
    page = render_page(
        "comparison.html.j2",
        {
            "comparison": comparison,
            "sample_type": comparison.sample_type,
            "metric": comparison.metric,
            "part": part,
            **_about(comparison),
            "summary": summary_sentences(part, summaries),
            "missing": _missing(comparison),
            "efficiency": efficiency(comparison),
            "ranking": _ranking(part, summaries),
            "other_sizes": [
                _ranking(other, rank_methods(summarize_methods(other)))
                for other in map(comparison.with_size, others)
            ],
            "baseline": method_label(BASELINE) if BASELINE in comparison.methods else None,
            "curves": learning_curves(part),
            "best": best,
            "disagreements": find_probe_disagreements(part, best) if has_classes else None,
            "targets": None if has_classes else targets_by_method(part, methods),
            "per_class": per_class,
            "method_mistakes": mistakes,
            "drift": drift_curves(part),
            "retention": method_retention(part),
            "trade_off": trade_off(selections),
            "has_folds": any(one.folds for found in selections.values() for one in found),
            "attentions": attention_of_methods(part),
        },
    )
    path = folder / REPORT_FILE
    write_atomically(path, page)
    return path


def _selections(comparison: Comparison) -> dict[str, list[ModelSelection]]:
    """Read how the final weights were chosen, by method; without runs that trained nothing."""
    results = {
        method: [read_result(comparison.folder / run.folder) for run in comparison.runs_of(method)]
        for method in comparison.methods
    }
    return {
        method: [run.model_selection for run in runs if run.model_selection is not None]
        for method, runs in results.items()
    }


def _about(comparison: Comparison) -> dict[str, object]:
    """Collect data, model and options of all runs; an option that differs has several values."""
    folders = [comparison.folder / entry.folder for entry in comparison.entries]
    configs = [read_config(folder) for folder in folders]
    names = dict.fromkeys(name for config in configs for name in config if name != "out")
    options = {
        name: list(dict.fromkeys(config.get(name, "") for config in configs)) for name in names
    }
    return {
        "data": ", ".join(map(data_name, options.get("data", ["unknown data"]))),
        "model": ", ".join(options.get("model", ["an unknown model"])),
        "options": options,
        "versions": read_result(folders[0]).versions,
    }


def _missing(comparison: Comparison) -> str:
    """Describe the missing runs, judging by the others."""
    several = len(comparison.sizes) > 1
    names = [
        f"{method_label(method)} with seed {seed}"
        + (f" on {format_training_size(size, comparison.sample_type)}" if several else "")
        for method, seed, size in comparison.missing
    ]
    if not names:
        return ""
    runs = pluralize(len(names) + len(comparison.entries), "run")
    return f"Of {runs}, {len(names)} {'is' if len(names) == 1 else 'are'} missing: " + first_few(
        names
    )


def _ranking(comparison: Comparison, summaries: list[MethodSummary]) -> Ranking:
    """Format the ranked methods of a comparison of one size."""
    (size,) = comparison.sizes
    best = best_methods(summaries)[0]
    return Ranking(
        size,
        [_line(summary, best=summary is best) for summary in summaries],
        ranking_plot(comparison, summaries, f"ranking{size or 'all'}"),
    )


def _line(summary: MethodSummary, *, best: bool) -> RankingRow:
    metric = summary.metric
    return RankingRow(
        label=method_label(summary.method),
        best=best,
        mean=metric.format(summary.score.mean),
        std=f"± {metric.format_number(summary.score.std)}" if summary.score.count > 1 else "",
        num_seeds=summary.score.count,
        vs_baseline=_difference(summary.vs_baseline, metric),
        vs_probe=_difference(summary.vs_probe, metric),
        wall_time_s=summary.wall_time_s,
        peak_memory_mib=summary.peak_memory_mib,
    )


def _difference(difference: Summary | None, metric: Metric) -> Difference | None:
    if difference is None:
        return None
    return Difference(
        metric.format_difference(difference.mean),
        interval(difference, metric),
        is_significant=verdict(difference, metric) in ("above", "below"),
    )
