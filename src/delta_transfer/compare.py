"""Several methods and seeds on the same data, and the table that compares them."""

import csv
import dataclasses
import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from delta_transfer.config import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.files import write_atomically
from delta_transfer.prepare import prepare
from delta_transfer.report import write_comparison_report
from delta_transfer.result import COMPARISON_COLUMNS, RunResult
from delta_transfer.run import check, train_prepared
from delta_transfer.run_attention import given_attention
from delta_transfer.run_folder import check_folder, make_folder
from delta_transfer.stats import Summary, paired_difference, summarize

logger = logging.getLogger(__name__)


def compare(
    config: TrainConfig, folder: Path, *, methods: Sequence[str], seeds: Sequence[int]
) -> list[RunResult]:
    """Trains every method with every seed; all methods of a seed see the same pictures.

    Args:
        config: the options, of which method, seed and out are replaced.
        folder: where the runs go, `METHOD-seedN`, `results.csv`, a row a run, and `report.html`.
        methods: names of methods.
        seeds: each draws splits, subsets, batch order, augmentation and head start.

    Returns:
        The figures of each run.

    Raises:
        UserError: if an option, the data or the network is not as it must be.
    """
    _check_each_once("methods", methods)
    _check_each_once("seeds", seeds)
    for method in methods:
        check(dataclasses.replace(config, method=method))
    if Path(config.attention).is_file() and len(seeds) > 1:
        raise UserError(
            f"--attention {config.attention}: the file was made on the pictures of one seed; give "
            "one seed, or let it be estimated (--attention refined)"
        )
    check_folder(folder, config)
    results: list[RunResult] = []
    try:
        for seeded in [dataclasses.replace(config, seed=seed) for seed in seeds]:
            _add_seed(results, seeded, folder, methods)
    finally:  # where a run fails, those before it are worth looking at
        if results:
            write_comparison_report(folder)
    return results


def _add_seed(
    results: list[RunResult], config: TrainConfig, folder: Path, methods: Sequence[str]
) -> None:
    """Trains every method with the seed of the options."""
    started = time.perf_counter()
    prepared = prepare(config)
    seconds = time.perf_counter() - started
    if not results:
        for method in methods:
            given_attention(prepared, dataclasses.replace(config, method=method))
        make_folder(folder, overwrite=config.overwrite)
        write_atomically(folder / "results.csv", _csv(results, folder))
    for method in methods:
        logger.info("--- %s, seed %d", method, config.seed)
        own = folder / f"{method}-seed{config.seed}"
        options = dataclasses.replace(config, method=method, out=str(own))
        began = time.perf_counter() - seconds
        results.append(train_prepared(prepared, options, own, started=began))
        write_atomically(folder / "results.csv", _csv(results, folder))


@dataclasses.dataclass(frozen=True)
class Row:
    """A method's line in the table; accuracies in fractions, differences paired by seed.

    Args:
        method: its name.
        accuracy: over the seeds, the main figure of the data (`RunResult.score`).
        difference: to the baseline, None for the baseline itself or where they share no seed.
        seconds: of a run.
    """

    method: str
    accuracy: Summary
    difference: Summary | None
    seconds: float


def table(results: Sequence[RunResult], *, baseline: str = "l2") -> list[Row]:
    """A row for each method, in the order in which they came."""
    by_method: dict[str, dict[int, float]] = {}
    seconds: dict[str, list[float]] = {}
    for result in results:
        by_method.setdefault(result.method, {})[result.seed] = result.score
        seconds.setdefault(result.method, []).append(result.seconds)
    base = by_method.get(baseline, {})
    rows = []
    for method, values in by_method.items():
        paired = method != baseline and values.keys() & base.keys()
        difference = paired_difference(values, base) if paired else None
        accuracy = summarize(list(values.values()))
        rows.append(Row(method, accuracy, difference, summarize(seconds[method]).mean))
    return rows


def _check_each_once(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        shown = ",".join(map(str, values))
        raise UserError(f"--{name} {shown!r}: give at least one, and each once")


def _csv(results: Sequence[RunResult], folder: Path) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COMPARISON_COLUMNS)
    for result in results:
        values = [getattr(result, column) for column in COMPARISON_COLUMNS[:-1]]
        row = ["" if value is None else value for value in values]
        writer.writerow([*row, result.folder.relative_to(folder).as_posix()])
    return text.getvalue()
