"""A recipe at work: its comparison, and our figures beside the published ones."""

import dataclasses
from pathlib import Path

from delta_transfer.config.commands import BenchOptions, parse_seeds
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.download import default_data_root
from delta_transfer.errors import UserError
from delta_transfer.experiments.benchmark.definition import Benchmark, PublishedResult
from delta_transfer.experiments.comparison.compare import ComparisonResult, compare
from delta_transfer.metrics.metrics import METRICS
from delta_transfer.metrics.statistics import Summary, summarize
from delta_transfer.report.comparison.runs import read_comparison
from delta_transfer.utils.paths import user_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """What is asked for: a recipe, and what the command says of it.

    Args:
        benchmark: of the row.
        config: the options that all runs share.
        folder: of the runs.
        methods: that are compared.
        seeds: of each of them.
        samples_per_class: training images of each class; None for all.
        weights: where the recipe's own weights are looked for; None if it has none, or others are
            given.
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
        """How many there are."""
        return len(self.methods) * len(self.seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """A method in the table.

    Args:
        method: its name.
        ours: over the seeds, a fraction; None where it was not run.
        published: None where nothing was.
    """

    method: str
    ours: Summary | None
    published: PublishedResult | None


def make_plan(benchmark: Benchmark, options: BenchOptions) -> BenchmarkPlan:
    """What a recipe and the options of the command come to; nothing is read but for the options.

    Raises:
        UserError: if an option does not suit the recipe.
    """
    measure = METRICS[benchmark.metric]
    if options.samples_per_class is not None and measure.name != "accuracy":
        raise UserError(
            f"--samples-per-class {options.samples_per_class}: {benchmark.name} has "
            "no classes: leave it out"
        )
    named = benchmark.methods if options.methods is None else options.methods.split(",")
    methods = tuple(method.strip() for method in named)
    if len(set(methods)) < len(methods):
        raise UserError(f"--method {','.join(methods)}: give each method once")
    own = None
    if benchmark.weights is not None and options.weights is None:
        root = options.data_root
        folder = default_data_root() if root is None else user_path(root)
        own = folder / benchmark.weights.file
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
    """Makes the runs that are not there yet.

    Args:
        plan: what is asked for.
        n_jobs: runs at a time, as of `compare`.

    Raises:
        UserError: if the recipe's weights are not there, or as of `compare`.
    """
    if plan.weights is not None and not plan.weights.is_file():
        assert plan.benchmark.weights is not None
        raise UserError(
            f"{plan.benchmark.name} starts from weights that are not there, '{plan.weights}': "
            f"{plan.benchmark.weights.instructions}; put them there, or name them with --weights "
            "FILE"
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
    """Our figures beside the published ones.

    Args:
        title: the figure, the number of seeds and the size.
        scale: what our figures are multiplied by where they are written.
        num_seeds: how many there are of the methods that were run most.
        lines: the methods that were run, then the others that were published.
    """

    title: str
    scale: int
    num_seeds: int
    lines: list[BenchmarkRow]


def read_table(plan: BenchmarkPlan) -> BenchmarkTable | None:
    """Our figures beside the published ones; None where no run with so many samples is finished.

    Raises:
        UserError: if the runs cannot be read, or their figure is not that of the recipe.
    """
    runs = read_comparison(plan.folder).with_size(plan.samples_per_class)
    if not runs.entries:
        return None
    recipe, published = plan.benchmark, plan.benchmark.published
    if runs.metric != METRICS[recipe.metric]:
        raise UserError(
            f"{recipe.name}: the runs have a figure of their own, {runs.metric.display_name}, and "
            "the "
            f"published ones are of another, metric: {recipe.metric}; put it right in the recipe"
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
        else f", {plan.samples_per_class} training {runs.sample_type}s a class"
    )
    return BenchmarkTable(
        title=f"{recipe.name}: {runs.split} {runs.metric.heading}, {format_num_seeds(most)}{limit}",
        scale=runs.metric.scale,
        num_seeds=most,
        lines=lines,
    )


def format_num_seeds(count: int) -> str:
    """A number of seeds in words."""
    return f"{count} seed{'' if count == 1 else 's'}"
