"""The runs of a comparison, and what they say about each method."""

import dataclasses
import math
import statistics
from pathlib import Path, PurePosixPath

from delta_transfer.errors import UserError
from delta_transfer.report.run_files import read_result
from delta_transfer.report.tables import Row, read_table
from delta_transfer.result import COMPARISON_COLUMNS
from delta_transfer.stats import Summary, paired_difference, summarize

BASELINE = "l2"  # plain fine-tuning
PROBE = "probe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of a comparison.

    Args:
        method: its method.
        seed: its seed.
        accuracy: on the split that the comparison is made on.
        probe: of the linear probe on the same pictures.
        best_epoch: the epoch that was kept.
        seconds: that it took.
        folder: where it lies, seen from the folder of the comparison.
    """

    method: str
    seed: int
    accuracy: float
    probe: float
    best_epoch: int
    seconds: float
    folder: PurePosixPath


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All runs, in the order of the table, and the split ("test", "validation") of accuracies."""

    folder: Path
    split: str
    entries: tuple[Entry, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order in which they come."""
        return tuple(dict.fromkeys(entry.method for entry in self.entries))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all runs, in their order."""
        return tuple(sorted({entry.seed for entry in self.entries}))

    @property
    def probe(self) -> float:
        """Mean accuracy of the linear probe, each seed counted once."""
        return statistics.fmean({entry.seed: entry.probe for entry in self.entries}.values())

    def of(self, method: str) -> list[Entry]:
        """The runs of a method, by seed."""
        entries = [entry for entry in self.entries if entry.method == method]
        return sorted(entries, key=lambda entry: entry.seed)

    def accuracies(self, method: str) -> dict[int, float]:
        """The accuracies of a method, by seed."""
        return {entry.seed: entry.accuracy for entry in self.of(method)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """What the runs say about one method; accuracies and differences are fractions.

    Args:
        method: its name.
        accuracy: over its seeds.
        to_baseline: its accuracy less plain fine-tuning's, paired by seed; None for plain
            fine-tuning itself and where there is none with the same seed.
        to_probe: its accuracy less the linear probe's, paired by seed; None for the probe itself.
        seconds: mean time of a run.
    """

    method: str
    accuracy: Summary
    to_baseline: Summary | None
    to_probe: Summary | None
    seconds: float


def read_comparison(folder: Path) -> Comparison:
    """The runs of a comparison.

    Where one has no test accuracy, all are compared on the validation split.

    Raises:
        UserError: if `results.csv`, or a run that it needs, is missing or damaged.
    """
    path = folder / "results.csv"
    rows = read_table(path, COMPARISON_COLUMNS)
    if not rows:
        raise UserError(f"{path} holds no runs")
    tested = all(row.cells["test_accuracy"] for row in rows)
    entries: dict[tuple[str, int], Entry] = {}
    for row in rows:
        entry = _entry(row, folder, tested=tested)
        if (entry.method, entry.seed) in entries:
            raise row.error(f"{entry.method} with seed {entry.seed} is there twice")
        entries[entry.method, entry.seed] = entry
    return Comparison(folder, "test" if tested else "validation", tuple(entries.values()))


def summarize_methods(comparison: Comparison) -> list[MethodSummary]:
    """A summary for each method, in the order in which they come."""
    baseline = comparison.accuracies(BASELINE)
    summaries = []
    for method in comparison.methods:
        entries, accuracies = comparison.of(method), comparison.accuracies(method)
        probe = {entry.seed: entry.probe for entry in entries}
        paired = method != BASELINE and bool(accuracies.keys() & baseline.keys())
        summaries.append(
            MethodSummary(
                method=method,
                accuracy=summarize(list(accuracies.values())),
                to_baseline=paired_difference(accuracies, baseline) if paired else None,
                to_probe=paired_difference(accuracies, probe) if method != PROBE else None,
                seconds=statistics.fmean(entry.seconds for entry in entries),
            )
        )
    return summaries


def best_methods(summaries: list[MethodSummary]) -> list[MethodSummary]:
    """The fine-tuned methods with the highest mean accuracy; the probe only if it is alone."""
    tuned = [summary for summary in summaries if summary.method != PROBE] or summaries
    highest = max(summary.accuracy.mean for summary in tuned)
    return [summary for summary in tuned if math.isclose(summary.accuracy.mean, highest)]


def _entry(row: Row, folder: Path, *, tested: bool) -> Entry:
    own = PurePosixPath(row.cells["folder"])
    if own.is_absolute() or ".." in own.parts or not own.parts:
        raise row.error(f"folder must lie in the comparison's, got {row.cells['folder']!r}")
    if tested:
        accuracy = row.fraction("test_accuracy")
        probe = row.fraction("linear_probe_test_accuracy")
    else:
        accuracy = row.fraction("val_accuracy")
        probe = read_result(folder / own).linear_probe_val_accuracy
    return Entry(
        method=row.cells["method"],
        seed=row.whole("seed"),
        accuracy=accuracy,
        probe=probe,
        best_epoch=row.whole("best_epoch"),
        seconds=row.number("seconds"),
        folder=own,
    )
