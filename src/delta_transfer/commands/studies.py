"""Commands that make many runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from delta_transfer.commands.parsing import parse
from delta_transfer.config.commands import BenchOptions, CompareOptions, DemoOptions, with_train
from delta_transfer.config.search import SearchOptions
from delta_transfer.console_tables import print_table, print_trials

if TYPE_CHECKING:  # which loads torch
    from delta_transfer.experiments.comparison.compare import Compared


def compare(args: Sequence[str]) -> None:
    """Compare methods on the same pictures, by several seeds; goes on where it was broken off."""
    alone = ["method", "seed", "resume", "devices", "num_nodes", "strategy"]
    kind = with_train(CompareOptions, without=alone)
    exclusive = ["epochs", "steps"]
    options = parse(kind, args, compare, ["data"], config_file=True, exclusive=exclusive)
    from delta_transfer import compare_command

    _show(compare_command.run(options))


def search(args: Sequence[str]) -> None:
    """Look for a better strength, learning rate, number of epochs and taps by many trials."""
    kind = with_train(SearchOptions, without=["resume", "devices", "num_nodes", "strategy"])
    exclusive = ["epochs", "steps"]
    options = parse(kind, args, search, ["data"], config_file=True, exclusive=exclusive)
    from delta_transfer import search_command

    found = search_command.run(options)
    print_trials(search_command.shown(found), names=found.names)
    print("\n".join(search_command.lines(found)))
    for what, name in (("options", "best.yaml"), ("run", "best"), ("trials", "trials.csv")):
        print(f"{what:<10} {found.folder / name}")


def bench(args: Sequence[str]) -> None:
    """Make a published row again, and print our figures beside the published ones."""
    options = parse(BenchOptions, args, bench, ["name"])
    from delta_transfer import bench_text
    from delta_transfer.experiments.benchmark.recipe import find_recipe, list_recipes

    if options.name is None:
        print("\n".join(bench_text.listing(list_recipes(), data_root=options.data_root)))
        return
    recipe = find_recipe(options.name)
    from delta_transfer.experiments.benchmark import benchmark as benches

    asked = benches.ask(recipe, options)
    if options.dry_run:
        print("\n".join(bench_text.plan(asked)))
        return
    compared = benches.run(asked, jobs=options.jobs)
    if compared.results:
        for line in bench_text.table(asked):
            print(line)
    from delta_transfer.compare_command import check_failures

    check_failures(compared)


def demo(args: Sequence[str]) -> None:
    """Compare DELTA with its peers on photographs that come installed: a few minutes, offline."""
    options = parse(DemoOptions, args, demo, [])
    from delta_transfer import compare_command

    _show(compare_command.demo(options))


def _show(compared: "Compared") -> None:
    """Prints the tables of a comparison and where its files are.

    Raises:
        UserError: if a run failed.
    """
    from delta_transfer.compare_command import check_failures, tables

    if compared.results:
        for table in tables(compared):
            print_table(table.methods, title=table.title, failed=table.failed)
        print(f"results  {compared.folder / 'results.csv'}")
        print(f"report   {compared.folder / 'report.html'}")
    check_failures(compared)
