"""The page of a comparison: everything in one file, which needs nothing beside it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from delta_transfer.errors import first_few
from delta_transfer.metrics.metrics import ACCURACY, Metric
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.accuracies import ranking_plot
from delta_transfer.report.comparison.answers_by_class import per_class_results
from delta_transfer.report.comparison.attention_ranks import attention_of_methods
from delta_transfer.report.comparison.columns import targets_by_method
from delta_transfer.report.comparison.contrast import find_probe_disagreements
from delta_transfer.report.comparison.curves import drift_curves, learning_curves
from delta_transfer.report.comparison.efficiency import efficiency
from delta_transfer.report.comparison.findings import summary_sentences
from delta_transfer.report.comparison.runs import (
    BASELINE,
    Comparison,
    MethodSummary,
    best_methods,
    rank_methods,
    read_comparison,
    summarize_methods,
)
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
from delta_transfer.utils.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Difference:
    """A cell of the table: a difference and its interval as words, and whether it is clear."""

    mean: str
    interval: str
    is_significant: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingRow:
    """A line of the ranking, as words."""

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
    """The methods at one size, the best first, and their figure."""

    size: int | None
    lines: list[RankingRow]
    plot: Plot


def write_comparison_report(folder: Path) -> Path:
    """Writes `report.html` for a folder of runs, finished or not, from their files alone.

    Of several sizes of the training set, what goes beyond accuracies is shown of the largest.

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
    told = comparison.metric is ACCURACY  # class by class
    classes, given = per_class_results(part, methods) if told else (None, [])
    page = render_page(
        "comparison.html.j2",
        {
            "comparison": comparison,
            "noun": comparison.sample_type,
            "measure": comparison.metric,
            "part": part,
            **_about(comparison),
            "findings": summary_sentences(part, summaries),
            "missing": _missing(comparison),
            "efficiency": efficiency(comparison),
            "ranking": _ranking(part),
            "other_sizes": [_ranking(comparison.with_size(other)) for other in others],
            "baseline": method_label(BASELINE) if BASELINE in comparison.methods else None,
            "curves": learning_curves(part),
            "best": best,
            "contrast": find_probe_disagreements(part, best) if told else None,
            "columns": None if told else targets_by_method(part, methods),
            "classes": classes,
            "answers": given,
            "drift": drift_curves(part),
            "attentions": attention_of_methods(part),
        },
    )
    path = folder / REPORT_FILE
    write_atomically(path, page)
    return path


def _about(comparison: Comparison) -> dict[str, object]:
    """Data, model and options of all runs; an option that differs has several values."""
    folders = [comparison.folder / entry.folder for entry in comparison.entries]
    configs = [read_config(folder) for folder in folders]
    names = dict.fromkeys(name for config in configs for name in config if name != "out")
    options = {name: _each([config.get(name, "") for config in configs]) for name in names}
    return {
        "data": ", ".join(map(data_name, options.get("data", ["unknown data"]))),
        "model": ", ".join(options.get("model", ["an unknown model"])),
        "options": options,
        "versions": read_result(folders[0]).versions,
    }


def _each(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _missing(comparison: Comparison) -> str:
    """Which runs are not there, as far as the others show."""
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


def _ranking(comparison: Comparison) -> Ranking:
    """Of runs of one size."""
    (size,) = comparison.sizes
    summaries = rank_methods(summarize_methods(comparison))
    best = best_methods(summaries)[0]
    return Ranking(
        size,
        [_line(summary, best=summary is best) for summary in summaries],
        ranking_plot(comparison, summaries, f"ranking{size or 'all'}"),
    )


def _line(summary: MethodSummary, *, best: bool) -> RankingRow:
    deviation, measure = summary.score.std, summary.metric
    return RankingRow(
        label=method_label(summary.method),
        best=best,
        mean=measure.format(summary.score.mean),
        std=f"± {measure.format_number(deviation)}" if summary.score.count > 1 else "",
        num_seeds=summary.score.count,
        vs_baseline=_difference(summary.vs_baseline, measure),
        vs_probe=_difference(summary.vs_probe, measure),
        wall_time_s=summary.wall_time_s,
        peak_memory_mib=summary.peak_memory_mib,
    )


def _difference(difference: Summary | None, metric: Metric) -> Difference | None:
    if difference is None:
        return None
    clear = verdict(difference, metric) in ("above", "below")
    return Difference(
        metric.format_difference(difference.mean), interval(difference, metric), clear
    )
