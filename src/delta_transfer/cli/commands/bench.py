"""The command bench."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import BenchOptions

if TYPE_CHECKING:  # they load torch, which --help does without
    from delta_transfer.experiments.benchmark.benchmark import (
        BenchmarkPlan,
        BenchmarkRow,
        BenchmarkTable,
    )
    from delta_transfer.experiments.benchmark.definition import Benchmark, PublishedResult
    from delta_transfer.experiments.benchmark.plan import DownloadStatus


def bench(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("bench", BenchOptions, args, positional=["name"])
    from delta_transfer.experiments.benchmark.definition import find_benchmark, list_benchmarks

    if options.name is None:
        print("\n".join(format_benchmark_list(list_benchmarks(), data_root=options.data_root)))
        return
    from delta_transfer.experiments.benchmark.benchmark import make_plan, run_benchmark

    plan = make_plan(find_benchmark(options.name), options)
    if options.dry_run:
        print("\n".join(format_plan(plan)))
        return
    result = run_benchmark(plan, n_jobs=options.jobs)
    if result.results:
        for line in format_results(plan):
            print(line)
    from delta_transfer.cli.commands.compare import check_failures

    check_failures(result)


_WIDTH = 100
_AVAILABLE = {True: "yes", False: "no", None: "?"}


def format_benchmark_list(
    benchmarks: "Sequence[Benchmark]", *, data_root: str | None
) -> Iterator[str]:
    """Format a line for each benchmark.

    Args:
        benchmarks: to list.
        data_root: folder of data sets.
    """
    from delta_transfer.data.registry import is_available

    rows = [
        (
            one.name,
            one.options["data"],
            one.metric,
            _format_published(one.published.get("delta_attention")),
            _AVAILABLE[is_available(one.options["data"], data_root=data_root)],
        )
        for one in benchmarks
    ]
    yield from _aligned([("benchmark", "data", "metric", "DELTA", "available"), *rows])
    yield f"DELTA: as published; (u): unverified, from memory. Data: in {_root(data_root)}."


def format_plan(benchmark_plan: "BenchmarkPlan") -> Iterator[str]:
    """Format the downloads and the estimated time of a benchmark."""
    from delta_transfer.experiments.benchmark.plan import estimate_hours, list_downloads
    from delta_transfer.report.formatting import pluralize

    benchmark, root = benchmark_plan.benchmark, _root(benchmark_plan.config.data_root)
    yield from _labelled("benchmark", benchmark.summary)
    yield from _labelled("reference", benchmark.reference)
    yield from _labelled("split", benchmark.split)
    methods, seeds = ", ".join(benchmark_plan.methods), ", ".join(map(str, benchmark_plan.seeds))
    size = benchmark_plan.samples_per_class
    limit = "" if size is None else f", {pluralize(size, 'training sample')} per class"
    yield from _labelled(
        "runs",
        f"{benchmark_plan.num_runs}: {methods}; seeds {seeds}{limit}; {benchmark_plan.folder}",
    )
    for need in list_downloads(benchmark_plan):
        yield from _labelled(need.download.name, _format_download(need, root))
    if benchmark_plan.weights is not None:
        assert benchmark.weights is not None
        status = (
            "is available"
            if benchmark_plan.weights.is_file()
            else f"is missing: {benchmark.weights.instructions}; or --weights FILE"
        )
        yield from _labelled("weights", f"'{benchmark_plan.weights}' {status}")
    hours = estimate_hours(benchmark_plan)
    if hours is None:
        yield from _labelled("time", "unknown until the graphs are downloaded")
    else:
        steps = "of training steps on this machine, one run after another, by timing one step"
        samples = "" if benchmark_plan.samples_per_class is None else ", with all training samples"
        excluded = "without attention, validation and test"
        yield from _labelled("time", f"{_duration(hours)} {steps}{samples}; {excluded}")
    yield from _differences(benchmark)


def format_results(benchmark_plan: "BenchmarkPlan") -> Iterator[str]:
    """Format our results next to the published ones; empty if no run of this size is finished.

    Raises:
        UserError: if the runs cannot be read, or their metric is not that of the benchmark.
    """
    from delta_transfer.experiments.benchmark.benchmark import read_table

    found = read_table(benchmark_plan)
    if found is None:
        return
    rows = [
        (line.method, _ours(line, found), _format_published(line.published)) for line in found.lines
    ]
    yield found.title
    yield from _aligned([("method", "ours", "published"), *rows])
    if any(line.published is not None and line.published.unverified for line in found.lines):
        yield "(u): unverified, from memory"
    yield from _labelled("reference", benchmark_plan.benchmark.reference)
    yield from _differences(benchmark_plan.benchmark)
    yield f"results  {benchmark_plan.folder / 'results.csv'}"
    yield f"report   {benchmark_plan.folder / 'report.html'}"


def _ours(line: "BenchmarkRow", table: "BenchmarkTable") -> str:
    """Format mean and standard deviation, or the result of one seed; with the seeds if not all."""
    from delta_transfer.report.formatting import pluralize

    if line.ours is None:
        return "-"
    scale, count = table.scale, line.ours.count
    spread = f" +- {scale * line.ours.std:.2f}" if count > 1 else ""
    seeds = "" if count == table.num_seeds else f" ({pluralize(count, 'seed')})"
    return f"{scale * line.ours.mean:.2f}{spread}{seeds}"


def _format_published(published: "PublishedResult | None") -> str:
    if published is None:
        return "-"
    spread = "" if published.std is None else f" +- {published.std:.2f}"
    return f"{published.value:.2f}{spread}{' (u)' if published.unverified else ''}"


def _format_download(status: "DownloadStatus", root: str) -> str:
    from delta_transfer.data.download import format_size

    one = status.download
    if status.is_available:
        return "available"
    size = "" if one.size_mb is None else f", {format_size(one.size_mb)}"
    note = "" if one.note is None else f" ({one.note})"
    if one.manual:
        return f"not in {root}, download it manually{size}: {one.url}{note}"
    condition = "" if status.is_available is False else " if missing"
    return f"will be downloaded{condition}{size}: {one.url}{note}"


def _differences(benchmark: "Benchmark") -> Iterator[str]:
    for text in benchmark.differences:
        yield from _labelled("differs", text)


def _labelled(label: str, text: str) -> Iterator[str]:
    """Wrap a text next to a label."""
    first, rest = f"{label:<9} ", " " * 10
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align the columns of rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _duration(hours: float) -> str:
    from delta_transfer.report.formatting import pluralize

    if hours < 1:
        return f"about {pluralize(round(60 * hours), 'minute')}"
    return f"about {hours:.1f} hours" if hours < 48 else f"about {hours / 24:.0f} days"


def _root(data_root: str | None) -> str:
    from delta_transfer.data.download import resolve_data_root

    return str(resolve_data_root(data_root))
