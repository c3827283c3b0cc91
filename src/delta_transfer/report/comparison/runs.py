"""The runs of a comparison, and a summary of each method."""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from delta_transfer.errors import DataError
from delta_transfer.metrics.metrics import ACCURACY, METRICS, Metric
from delta_transfer.metrics.run_result import RETENTION_COLUMNS, comparison_columns
from delta_transfer.metrics.statistics import Summary, paired_difference, summarize
from delta_transfer.report.run_files import probe_validation_score, read_result
from delta_transfer.report.tables import Row, read_lines, read_table

BASELINE = "l2"  # plain fine-tuning
PROBE = "probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of a comparison.

    Args:
        method: its method.
        seed: its seed.
        samples_per_class: training samples of each class; None for all.
        score: by the comparison's metric, on its split.
        probe: score of the linear probe, by the same metric and split.
        trained_share: share of trained weights in the final ones; 0 for the initial ones alone.
        strength: of the method's penalty, None where it has none.
        wall_time_s: training time in seconds.
        peak_memory_mib: peak memory in MiB.
        folder: relative to the folder of the comparison.
        retention: what fine-tuning has kept, by `RETENTION_COLUMNS`; without what is unknown.
    """

    method: str
    seed: int
    samples_per_class: int | None
    score: float
    probe: float
    trained_share: float
    strength: float | None
    wall_time_s: float
    peak_memory_mib: float
    folder: PurePosixPath
    retention: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All runs in the order of the table, with the split and the metric that compares them.

    The split is "test" or "validation". Methods and seeds are compared among runs of one training
    set size: see `with_size`.
    """

    folder: Path
    split: str
    metric: Metric
    entries: tuple[Entry, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in order of appearance."""
        return tuple(dict.fromkeys(entry.method for entry in self.entries))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all runs, sorted."""
        return tuple(sorted({entry.seed for entry in self.entries}))

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """The training samples per class, ascending; None, for all of them, is last."""
        sizes = {entry.samples_per_class for entry in self.entries}
        return tuple(sorted(sizes, key=lambda size: math.inf if size is None else size))

    def with_size(self, size: int | None) -> "Comparison":
        """Return the comparison of the runs with this number of training samples per class."""
        entries = [entry for entry in self.entries if entry.samples_per_class == size]
        return dataclasses.replace(self, entries=tuple(entries))

    @functools.cached_property
    def sample_type(self) -> str:
        """The sample type of the first run, such as "image"."""
        return read_result(self.folder / self.entries[0].folder).sample_type

    @property
    def missing(self) -> tuple[tuple[str, int, int | None], ...]:
        """Method, seed and size of the missing runs, judging by the others."""
        there = {(entry.method, entry.seed, entry.samples_per_class) for entry in self.entries}
        all_of_them = itertools.product(self.methods, self.seeds, self.sizes)
        return tuple(run for run in all_of_them if run not in there)

    @property
    def probe(self) -> float:
        """The mean score of the linear probe, counting each seed once."""
        return statistics.fmean({entry.seed: entry.probe for entry in self.entries}.values())

    def runs_of(self, method: str) -> list[Entry]:
        """Return the runs of a method, by seed."""
        entries = [entry for entry in self.entries if entry.method == method]
        return sorted(entries, key=lambda entry: entry.seed)

    def scores(self, method: str) -> dict[int, float]:
        """Return the scores of a method, by seed."""
        return {entry.seed: entry.score for entry in self.runs_of(method)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """The results of one method over its seeds.

    Args:
        method: its name.
        metric: the metric of the comparison.
        score: mean, deviation and interval over its seeds.
        vs_baseline: its score minus plain fine-tuning's, paired by seed; None for plain
            fine-tuning itself and if no seed has both.
        vs_probe: its score minus the linear probe's, paired by seed; None for the probe itself.
        wall_time_s: mean training time in seconds.
        peak_memory_mib: mean peak memory in MiB.
    """

    method: str
    metric: Metric
    score: Summary
    vs_baseline: Summary | None
    vs_probe: Summary | None
    wall_time_s: float
    peak_memory_mib: float


def read_comparison(folder: Path) -> Comparison:
    """Read the runs of a comparison, finished or not.

    If a run has no test score, all are compared on the validation split. A run whose metric is
    undefined, such as ROC-AUC if all labels are positive, is left out.

    Raises:
        UserError: if `results.csv`, or a run that it lists, is missing or damaged.
    """
    path = folder / "results.csv"
    header, _ = read_lines(path)
    metric = next((m for m in METRICS.values() if f"val_{m.name}" in header), ACCURACY)
    required = [name for name in comparison_columns(metric) if name not in RETENTION_COLUMNS]
    rows = read_table(path, required)
    if not rows:
        raise DataError(f"{path} has no runs")
    tests = [bool(row.cells[f"test_{metric.name}"]) for row in rows]
    tested = all(tests) or (metric is not ACCURACY and any(tests))
    split = "test" if tested else "validation"
    if metric is not ACCURACY:
        column = f"{'test' if tested else 'val'}_{metric.name}"
        rows = [row for row in rows if row.cells[column]]
    if not rows:
        raise DataError(
            f"{path}: no run has a defined {metric.display_name} on the {split} split, where all "
            "labels of a target are equal: use more samples"
        )
    entries: dict[tuple[str, int, int | None], Entry] = {}
    for row in rows:
        entry = _entry(row, folder, metric, tested=tested)
        key = (entry.method, entry.seed, entry.samples_per_class)
        if key in entries:
            raise row.error(f"{entry.method} with seed {entry.seed} is listed twice")
        entries[key] = entry
    return Comparison(folder, split, metric, tuple(entries.values()))


def summarize_methods(comparison: Comparison) -> list[MethodSummary]:
    """Summarise each method, in order of appearance."""
    baseline = comparison.scores(BASELINE)
    summaries = []
    for method in comparison.methods:
        entries, scores = comparison.runs_of(method), comparison.scores(method)
        probe = {entry.seed: entry.probe for entry in entries}
        paired = method != BASELINE and bool(scores.keys() & baseline.keys())
        summaries.append(
            MethodSummary(
                method=method,
                metric=comparison.metric,
                score=summarize(list(scores.values())),
                vs_baseline=paired_difference(scores, baseline) if paired else None,
                vs_probe=paired_difference(scores, probe) if method != PROBE else None,
                wall_time_s=statistics.fmean(entry.wall_time_s for entry in entries),
                peak_memory_mib=statistics.fmean(entry.peak_memory_mib for entry in entries),
            )
        )
    return summaries


def best_methods(summaries: list[MethodSummary]) -> list[MethodSummary]:
    """Return the fine-tuned methods with the best mean score; the probe only if it is alone."""
    tuned = [summary for summary in summaries if summary.method != PROBE] or summaries
    best = rank_methods(tuned)[0].score.mean
    return [summary for summary in tuned if math.isclose(summary.score.mean, best)]


def rank_methods(summaries: Sequence[MethodSummary]) -> list[MethodSummary]:
    """Sort by mean score, the best first; ties keep their order."""
    return sorted(summaries, key=lambda summary: summary.metric.gain(0, summary.score.mean))


def _entry(row: Row, folder: Path, metric: Metric, *, tested: bool) -> Entry:
    own = PurePosixPath(row.cells["folder"])
    if own.is_absolute() or ".." in own.parts or not own.parts:
        raise row.error(f"folder must be inside the comparison's, got {row.cells['folder']!r}")
    if tested:
        score = row.metric_value(f"test_{metric.name}", metric)
        probe = row.metric_value(f"linear_probe_test_{metric.name}", metric)
    else:
        score = row.metric_value(f"val_{metric.name}", metric)
        probe = probe_validation_score(folder / own)
    return Entry(
        method=row.cells["method"],
        seed=row.integer("seed"),
        samples_per_class=row.integer("samples_per_class")
        if row.cells["samples_per_class"]
        else None,
        score=score,
        probe=probe,
        trained_share=row.number("trained_share"),
        strength=row.number("strength") if row.cells["strength"] else None,
        wall_time_s=row.number("wall_time_s"),
        peak_memory_mib=row.number("peak_memory_mib"),
        folder=own,
        retention={name: row.fraction(name) for name in RETENTION_COLUMNS if row.cells.get(name)},
    )
