"""A recipe at work: its comparison, and our figures beside the published ones."""

import dataclasses
from pathlib import Path

from delta_transfer.config.commands import BenchOptions, seed_list
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.download import default_data_root
from delta_transfer.errors import UserError
from delta_transfer.experiments.benchmark.recipe import Published, Recipe
from delta_transfer.experiments.comparison.compare import Compared, compare
from delta_transfer.metrics.metrics import MEASURES
from delta_transfer.metrics.statistics import Summary, summarize
from delta_transfer.report.comparison.runs import read_comparison
from delta_transfer.utils.paths import user_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What is asked for: a recipe, and what the command says of it.

    Args:
        recipe: of the row.
        config: the options that all runs share.
        folder: of the runs.
        methods: that are compared.
        seeds: of each of them.
        limit: training pictures of each class; None for all.
        weights: where the recipe's own weights are looked for; None if it has none, or others are
            given.
    """

    recipe: Recipe
    config: TrainConfig
    folder: Path
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    limit: int | None
    weights: Path | None

    @property
    def runs(self) -> int:
        """How many there are."""
        return len(self.methods) * len(self.seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A method in the table.

    Args:
        method: its name.
        ours: over the seeds, a fraction; None where it was not run.
        published: None where nothing was.
    """

    method: str
    ours: Summary | None
    published: Published | None


def ask(recipe: Recipe, options: BenchOptions) -> Bench:
    """What a recipe and the options of the command come to; nothing is read but for the options.

    Raises:
        UserError: if an option does not suit the recipe.
    """
    measure = MEASURES[recipe.metric]
    if options.limit is not None and measure.name != "accuracy":
        raise UserError(
            f"--limit {options.limit}: {recipe.name} has no classes, of which so many could be "
            "drawn: leave it out"
        )
    named = recipe.methods if options.method is None else options.method.split(",")
    methods = tuple(method.strip() for method in named)
    if len(set(methods)) < len(methods):
        raise UserError(f"--method {','.join(methods)}: give each method once")
    own = None
    if recipe.weights is not None and options.weights is None:
        root = options.data_root
        folder = default_data_root() if root is None else user_path(root)
        own = folder / recipe.weights.file
    config = recipe.config(
        weights=str(own) if own is not None else options.weights,
        data_root=options.data_root,
        overwrite=options.overwrite,
        device=options.device,
        **({} if options.workers is None else {"workers": options.workers}),
    )
    return Bench(
        recipe=recipe,
        config=config,
        folder=Path(options.out).expanduser() if options.out else Path(f"runs/bench-{recipe.name}"),
        methods=methods,
        seeds=recipe.seeds if options.seeds is None else seed_list(options.seeds),
        limit=options.limit,
        weights=own,
    )


def run(bench: Bench, *, jobs: int | None) -> Compared:
    """Makes the runs that are not there yet.

    Args:
        bench: what is asked for.
        jobs: runs at a time, as of `compare`.

    Raises:
        UserError: if the recipe's weights are not there, or as of `compare`.
    """
    if bench.weights is not None and not bench.weights.is_file():
        assert bench.recipe.weights is not None
        raise UserError(
            f"{bench.recipe.name} starts from weights that are not there, '{bench.weights}': "
            f"{bench.recipe.weights.how}; put them there, or name them with --weights FILE"
        )
    return compare(
        bench.config,
        bench.folder,
        methods=bench.methods,
        seeds=bench.seeds,
        sizes=(bench.limit,),
        jobs=jobs,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Our figures beside the published ones.

    Args:
        title: the figure, the number of seeds and the size.
        scale: what our figures are multiplied by where they are written.
        seeds: how many there are of the methods that were run most.
        lines: the methods that were run, then the others that were published.
    """

    title: str
    scale: int
    seeds: int
    lines: list[Line]


def read_table(bench: Bench) -> Table | None:
    """Our figures beside the published ones; None where no run with so many samples is finished.

    Raises:
        UserError: if the runs cannot be read, or their figure is not that of the recipe.
    """
    runs = read_comparison(bench.folder).at(bench.limit)
    if not runs.entries:
        return None
    recipe, published = bench.recipe, bench.recipe.published
    if runs.measure != MEASURES[recipe.metric]:
        raise UserError(
            f"{recipe.name}: the runs have a figure of their own, {runs.measure.words}, and the "
            f"published ones are of another, metric: {recipe.metric}; put it right in the recipe"
        )
    lines = []
    for name in dict.fromkeys([*runs.methods, *published]):
        scores = list(runs.scores(name).values())
        ours = summarize(scores) if scores else None
        lines.append(Line(method=name, ours=ours, published=published.get(name)))
    most = max(line.ours.count for line in lines if line.ours is not None)
    limit = "" if bench.limit is None else f", {bench.limit} training {runs.noun}s a class"
    return Table(
        title=f"{recipe.name}: {runs.split} {runs.measure.heading}, {count_seeds(most)}{limit}",
        scale=runs.measure.scale,
        seeds=most,
        lines=lines,
    )


def count_seeds(count: int) -> str:
    """A number of seeds in words."""
    return f"{count} seed{'' if count == 1 else 's'}"
