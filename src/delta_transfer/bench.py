"""A recipe at work: its comparison, and our figures beside the published ones."""

import dataclasses
from pathlib import Path

from delta_transfer.bench_options import BenchOptions
from delta_transfer.compare import Compared, compare
from delta_transfer.config import TrainConfig
from delta_transfer.data.download import default_data_root
from delta_transfer.data.paths import user_path
from delta_transfer.errors import UserError
from delta_transfer.measures import MEASURES
from delta_transfer.options import seed_list
from delta_transfer.recipe import Published, Recipe
from delta_transfer.report.comparison import read_comparison
from delta_transfer.stats import Summary, summarize


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
        methods=tuple(method.strip() for method in named),
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


def read_lines(bench: Bench) -> tuple[str, list[Line]]:
    """The title of the table and its lines: the methods that were run, then the other published.

    Raises:
        UserError: if the runs cannot be read.
    """
    runs = read_comparison(bench.folder).at(bench.limit)
    published = bench.recipe.published
    lines = []
    for name in dict.fromkeys([*runs.methods, *published]):
        scores = list(runs.scores(name).values())
        ours = summarize(scores) if scores else None
        lines.append(Line(method=name, ours=ours, published=published.get(name)))
    seeds = f"{len(runs.seeds)} seed{'' if len(runs.seeds) == 1 else 's'}"
    limit = "" if bench.limit is None else f", {bench.limit} training {runs.noun}s a class"
    return f"{bench.recipe.name}: {runs.split} {runs.measure.heading}, {seeds}{limit}", lines
