"""The command compare."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transfer.cli.arguments import parse_command
from delta_transfer.cli.tables import print_table
from delta_transfer.config.commands import (
    CompareOptions,
    merge_with_train_options,
    parse_samples_per_class,
    parse_seeds,
    split_options,
)
from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import UserError

if TYPE_CHECKING:  # they load torch, which --help does without
    from delta_transfer.experiments.comparison.compare import ComparisonResult
    from delta_transfer.report.comparison.runs import MethodSummary


def compare(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    alone = ["method", "seed", "resume", "devices", "num_nodes", "strategy"]
    kind = merge_with_train_options(CompareOptions, without=alone)
    exclusive = ["epochs", "steps"]
    options = parse_command(
        "compare", kind, args, positional=["data"], config_file=True, exclusive=exclusive
    )
    show_comparison(run(options))


def show_comparison(compared: "ComparisonResult") -> None:
    """Print the tables of a comparison and the paths of its files.

    Raises:
        UserError: if a run failed.
    """
    if compared.results:
        for table in tables(compared):
            print_table(table.methods, title=table.title, failed=table.failed)
        print(f"results  {compared.folder / 'results.csv'}")
        print(f"report   {compared.folder / 'report.html'}")
    check_failures(compared)


def run(parsed: Any) -> "ComparisonResult":
    """Run the comparison.

    Args:
        parsed: options of `merge_with_train_options(CompareOptions, ...)`.

    Raises:
        UserError: if an option, the data or the network cannot be used.
    """
    from delta_transfer.experiments.comparison.compare import compare as make
    from delta_transfer.runs.folder import data_name

    options, values = split_options(parsed, CompareOptions)
    config = TrainOptions(**values, overwrite=options.overwrite).resolve()
    return make(
        config,
        comparison_folder(options.out, otherwise=f"compare-{data_name(config.data)}"),
        methods=[method.strip() for method in options.methods.split(",")],
        seeds=parse_seeds(options.seeds),
        sizes=parse_samples_per_class(options.samples_per_class),
        n_jobs=options.jobs,
        num_threads=options.num_threads,
        ray=options.ray,
    )


def comparison_folder(out: str | None, *, otherwise: str) -> Path:
    """Return the requested folder, or runs/NAME-TIME."""
    from delta_transfer.runs.folder import free_folder, time_stamp

    return Path(out).expanduser() if out else free_folder(f"{otherwise}-{time_stamp()}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The table of one training set size.

    Args:
        title: metric, number of seeds and size.
        methods: results of each method.
        failed: method -> number of failed runs, if any.
    """

    title: str
    methods: "list[MethodSummary]"
    failed: dict[str, int]


def tables(compared: "ComparisonResult") -> Iterator[Table]:
    """Yield one table per training set size, smallest first."""
    from delta_transfer.report.comparison.runs import read_comparison, summarize_methods
    from delta_transfer.report.formatting import pluralize

    runs = read_comparison(compared.folder)
    for size in runs.sizes:
        here = runs.with_size(size)
        seeds, kind = pluralize(len(here.seeds), "seed"), f"training {runs.sample_type}"
        samples = "" if size is None else f", {pluralize(size, kind)} per class"
        yield Table(
            title=f"{runs.split.capitalize()} {runs.metric.heading}, {seeds}{samples}",
            methods=summarize_methods(here),
            failed=Counter(
                run.method for run, _ in compared.failures if run.samples_per_class == size
            ),
        )


def check_failures(compared: "ComparisonResult") -> None:
    """Raise an error that lists the failed runs, if any.

    Raises:
        UserError: if a run failed.
    """
    from delta_transfer.experiments.comparison.compare import describe_run
    from delta_transfer.report.formatting import pluralize

    if compared.failures:
        reasons = "; ".join(f"{describe_run(run)}: {reason}" for run, reason in compared.failures)
        raise UserError(
            f"{pluralize(len(compared.failures), 'run')} failed; rerun the command with --out "
            f"{compared.folder} to retry them: {reasons}"
        )
