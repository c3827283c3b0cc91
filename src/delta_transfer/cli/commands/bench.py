"""The command bench."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import BenchOptions

if TYPE_CHECKING:  # they load torch, which --help does without
    from delta_transfer.experiments.benchmark.benchmark import Bench, Line, Table
    from delta_transfer.experiments.benchmark.plan import Need
    from delta_transfer.experiments.benchmark.recipe import Published, Recipe


def bench(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("bench", BenchOptions, args, positional=["name"])
    from delta_transfer.experiments.benchmark.recipe import find_recipe, list_recipes

    if options.name is None:
        print("\n".join(listing(list_recipes(), data_root=options.data_root)))
        return
    recipe = find_recipe(options.name)
    from delta_transfer.experiments.benchmark import benchmark as benches

    asked = benches.ask(recipe, options)
    if options.dry_run:
        print("\n".join(plan(asked)))
        return
    compared = benches.run(asked, jobs=options.jobs)
    if compared.results:
        for line in table(asked):
            print(line)
    from delta_transfer.cli.commands.compare import check_failures

    check_failures(compared)


_WIDTH = 100
_THERE = {True: "yes", False: "no", None: "?"}


def listing(recipes: "Sequence[Recipe]", *, data_root: str | None) -> Iterator[str]:
    """A line for each recipe.

    Args:
        recipes: of the table.
        data_root: where data sets lie.
    """
    from delta_transfer.data.presence import is_there

    rows = [
        (
            recipe.name,
            recipe.options["data"],
            recipe.metric,
            _figure(recipe.published.get("delta")),
            _THERE[is_there(recipe.options["data"], data_root=data_root)],
        )
        for recipe in recipes
    ]
    yield from _aligned([("recipe", "data", "metric", "DELTA", "data there"), *rows])
    yield f"DELTA: as published; (r): recalled, not read. Data: in {_root(data_root)}."


def plan(bench: "Bench") -> Iterator[str]:
    """What the runs of a recipe would take."""
    from delta_transfer.experiments.benchmark.plan import estimate_hours, list_needs

    recipe, root = bench.recipe, _root(bench.config.data_root)
    yield from _labelled("recipe", recipe.summary)
    yield from _labelled("source", recipe.source)
    yield from _labelled("split", recipe.split)
    methods, seeds = ", ".join(bench.methods), ", ".join(map(str, bench.seeds))
    limit = "" if bench.limit is None else f", {bench.limit} training samples a class"
    yield from _labelled("runs", f"{bench.runs}: {methods}; seeds {seeds}{limit}; {bench.folder}")
    for need in list_needs(bench):
        yield from _labelled(need.download.what, _need(need, root))
    if bench.weights is not None:
        assert recipe.weights is not None
        found = bench.weights.is_file()
        how = "is there" if found else f"is not there: {recipe.weights.how}; or --weights FILE"
        yield from _labelled("weights", f"'{bench.weights}' {how}")
    hours = estimate_hours(bench)
    if hours is None:
        yield from _labelled("time", "not known before the graphs are there")
    else:
        steps = "of training steps here, one run after another, by one that was measured"
        of_all = "" if bench.limit is None else ", with all training samples"
        beside = "attention, validation and test come on top"
        yield from _labelled("time", f"{_duration(hours)} {steps}{of_all}; {beside}")
    yield from _differences(recipe)


def table(bench: "Bench") -> Iterator[str]:
    """Our figures beside the published ones; nothing where no run of this size is finished.

    Raises:
        UserError: if the runs cannot be read, or their figure is not that of the recipe.
    """
    from delta_transfer.experiments.benchmark.benchmark import read_table

    found = read_table(bench)
    if found is None:
        return
    rows = [(line.method, _ours(line, found), _figure(line.published)) for line in found.lines]
    yield found.title
    yield from _aligned([("method", "ours", "published"), *rows])
    if any(line.published is not None and line.published.recalled for line in found.lines):
        yield "(r): recalled, not read in the source"
    yield from _labelled("source", bench.recipe.source)
    yield from _differences(bench.recipe)
    yield f"results  {bench.folder / 'results.csv'}"
    yield f"report   {bench.folder / 'report.html'}"


def _ours(line: "Line", table: "Table") -> str:
    """Mean and standard deviation; of one seed its figure. And how many seeds, if not all."""
    from delta_transfer.experiments.benchmark.benchmark import count_seeds

    if line.ours is None:
        return "-"
    scale, count = table.scale, line.ours.count
    spread = f" +- {scale * line.ours.deviation:.2f}" if count > 1 else ""
    seeds = "" if count == table.seeds else f" ({count_seeds(count)})"
    return f"{scale * line.ours.mean:.2f}{spread}{seeds}"


def _figure(published: "Published | None") -> str:
    if published is None:
        return "-"
    spread = "" if published.deviation is None else f" +- {published.deviation:.2f}"
    return f"{published.figure:.2f}{spread}{' (r)' if published.recalled else ''}"


def _need(need: "Need", root: str) -> str:
    from delta_transfer.data.download import size_in_words

    one = need.download
    if need.there:
        return "there"
    size = "" if one.megabytes is None else f", {size_in_words(one.megabytes)}"
    note = "" if one.note is None else f" ({one.note})"
    if one.by_hand:
        return f"not in {root}, to be got by hand{size}: {one.url}{note}"
    how = "will be downloaded" if need.there is False else "will be downloaded if not there"
    return f"{how}{size}: {one.url}{note}"


def _differences(recipe: "Recipe") -> Iterator[str]:
    for text in recipe.differs:
        yield from _labelled("differs", text)


def _labelled(label: str, text: str) -> Iterator[str]:
    """A label and, beside it, a text in lines."""
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
    """Rows with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _duration(hours: float) -> str:
    if hours < 1:
        return f"about {60 * hours:.0f} minutes"
    return f"about {hours:.1f} hours" if hours < 48 else f"about {hours / 24:.0f} days"


def _root(data_root: str | None) -> str:
    from delta_transfer.data.download import default_data_root

    return str(default_data_root() if data_root is None else data_root)
