"""Run a benchmark, and compare our results to the published ones."""

import dataclasses
from pathlib import Path

from delta_transfer.config.commands import BenchOptions, parse_seeds
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.download import resolve_data_root
from delta_transfer.errors import ConfigError, ModelError
from delta_transfer.experiments.benchmark.definition import Benchmark, PublishedResult
from delta_transfer.experiments.comparison.compare import ComparisonResult, compare
from delta_transfer.metrics.metrics import METRICS
from delta_transfer.metrics.statistics import Summary, summarize
from delta_transfer.report.comparison.runs import read_comparison
from delta_transfer.report.formatting import pluralize


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """A benchmark with the options of the command.

    Args:
        benchmark: to run.
        config: the options that all runs share.
        folder: of the runs.
        methods: to compare.
        seeds: of each method.
        samples_per_class: training images of each class; None for all.
        weights: expected location of the benchmark's own weights; None if it has none, or other
            weights were chosen.
    """

    benchmark: Benchmark
    config: TrainConfig
    folder: Path
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    samples_per_class: int | None
    weights: Path | None

    @property
    def num_runs(self) -> int:
        """The number of runs."""
        return len(self.methods) * len(self.seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """A method in the table.

    Args:
        method: its name.
        ours: our result over the seeds, a fraction; None if it was not run.
        published: the published result; None if there is none.
    """

    method: str
    ours: Summary | None
    published: PublishedResult | None


def make_plan(benchmark: Benchmark, options: BenchOptions) -> BenchmarkPlan:
    """Combine a benchmark and the options of the command, without reading any data.

    Raises:
        ConfigError: if an option does not fit the benchmark.
    """
    if options.samples_per_class is not None and benchmark.metric != "accuracy":
        raise ConfigError(
            f"`samples_per_class={options.samples_per_class}`: {benchmark.name} has "
            "no classes: leave it out"
        )
    named = benchmark.methods if options.methods is None else options.methods.split(",")
    methods = tuple(method.strip() for method in named)
    if len(set(methods)) < len(methods):
        raise ConfigError(f"`methods={','.join(methods)}`: use each method once")
    own = None
    if benchmark.weights is not None and options.weights is None:
        own = resolve_data_root(options.data_root) / benchmark.weights.file
    config = benchmark.config(
        weights=str(own) if own is not None else options.weights,
        data_root=options.data_root,
        overwrite=options.overwrite,
        device=options.device,
        **({} if options.num_workers is None else {"num_workers": options.num_workers}),
    )
    return BenchmarkPlan(
        benchmark=benchmark,
        config=config,
        folder=Path(options.out).expanduser()
        if options.out
        else Path(f"runs/bench-{benchmark.name}"),
        methods=methods,
        seeds=benchmark.seeds if options.seeds is None else parse_seeds(options.seeds),
        samples_per_class=options.samples_per_class,
        weights=own,
    )


def run_benchmark(plan: BenchmarkPlan, *, n_jobs: int | None) -> ComparisonResult:
    """Execute the runs that are not finished.

    Args:
        plan: the runs.
        n_jobs: parallel runs, as in `compare`.

    Raises:
        UserError: if the benchmark's weights are missing, or as in `compare`.
    """
    if plan.weights is not None and not plan.weights.is_file():
        assert plan.benchmark.weights is not None
        raise ModelError(
            f"the pretrained weights of {plan.benchmark.name} are missing, '{plan.weights}': "
            f"{plan.benchmark.weights.instructions}; put them there, or use `weights=FILE`"
        )
    return compare(
        plan.config,
        plan.folder,
        methods=plan.methods,
        seeds=plan.seeds,
        sizes=(plan.samples_per_class,),
        n_jobs=n_jobs,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkTable:
    """Our results and the published ones.

    Args:
        title: the metric, the number of seeds and the training set size.
        scale: factor of our results when they are printed.
        num_seeds: the largest number of seeds of a method.
        lines: the methods that were run, then the other published ones.
    """

    title: str
    scale: int
    num_seeds: int
    lines: list[BenchmarkRow]


def read_table(plan: BenchmarkPlan) -> BenchmarkTable | None:
    """Read our results and the published ones; None if no run of this size is finished.

    Raises:
        UserError: if the runs cannot be read, or their metric is not that of the benchmark.
    """
    runs = read_comparison(plan.folder).with_size(plan.samples_per_class)
    if not runs.entries:
        return None
    benchmark, published = plan.benchmark, plan.benchmark.published
    if runs.metric != METRICS[benchmark.metric]:
        raise ConfigError(
            f"{benchmark.name}: the runs have the metric {runs.metric.display_name}, but the "
            f"benchmark has metric: {benchmark.metric}; correct the benchmark"
        )
    lines = []
    for name in dict.fromkeys([*runs.methods, *published]):
        scores = list(runs.scores(name).values())
        ours = summarize(scores) if scores else None
        lines.append(BenchmarkRow(method=name, ours=ours, published=published.get(name)))
    most = max(line.ours.count for line in lines if line.ours is not None)
    limit = (
        ""
        if plan.samples_per_class is None
        else f", {pluralize(plan.samples_per_class, f'training {runs.sample_type}')} per class"
    )
    score = f"{runs.split} {runs.metric.heading}"
    return BenchmarkTable(
        title=f"{benchmark.name}: {score}, {pluralize(most, 'seed')}{limit}",
        scale=runs.metric.scale,
        num_seeds=most,
        lines=lines,
    )
