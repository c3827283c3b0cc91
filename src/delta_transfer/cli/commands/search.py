"""The command search."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transfer.cli.arguments import parse_command
from delta_transfer.cli.tables import print_trials
from delta_transfer.config.commands import merge_with_train_options, split_options
from delta_transfer.config.search import SearchOptions
from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import UserError

if TYPE_CHECKING:  # they load torch, which --help does without
    from delta_transfer.experiments.search.search import SearchResult, Trial


def search(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    kind = merge_with_train_options(
        SearchOptions, without=["resume", "devices", "num_nodes", "strategy"]
    )
    exclusive = ["epochs", "steps"]
    options = parse_command(
        "search", kind, args, positional=["data"], config_file=True, exclusive=exclusive
    )
    found = run(options)
    print_trials(shown(found), names=found.names)
    print("\n".join(lines(found)))
    for what, name in (("options", "best.yaml"), ("run", "best"), ("trials", "trials.csv")):
        print(f"{what:<10} {found.folder / name}")


SHOWN = 10


def run(parsed: Any) -> "SearchResult":
    """Make the search.

    Args:
        parsed: options as `options.merge_with_train_options(SearchOptions, ...)` has them.

    Raises:
        UserError: if an option, the data or the network is not as it must be.
    """
    from delta_transfer.experiments.search.search import search as make
    from delta_transfer.experiments.search.space import train_options
    from delta_transfer.runs.folder import data_name, free_folder, time_stamp

    asked, values = split_options(parsed, SearchOptions)
    if asked.epochs != "search" and values["steps"] is not None:
        raise UserError("--epochs and --steps exclude each other: give one of them")
    config = TrainOptions(**values, **train_options(asked), overwrite=asked.overwrite).resolve()
    name = f"search-{data_name(config.data)}-{config.method}-{time_stamp()}"
    return make(config, Path(asked.out).expanduser() if asked.out else free_folder(name), asked)


def shown(result: "SearchResult") -> "list[Trial]":
    """Return the trials that are worth showing: the best ones, and the default."""
    complete = result.complete
    return complete[:SHOWN] + [trial for trial in complete[SHOWN:] if trial.number == 0]


def lines(result: "SearchResult") -> list[str]:
    """Return the result in words."""
    from delta_transfer.experiments.search.space import AUTO

    complete, count = result.complete, len(result.trials)
    best, default = complete[0], next(trial for trial in complete if trial.number == 0)
    measure, lost = best.outcome.measure, count - len(complete)
    ended = f"{count} trials" + (f", {lost} of them pruned or failed" if lost else "")
    found = [f"best       trial {best.number} of {ended}"]
    if best is default:
        found.append(f"           it is the default: {_metrics(default)}; nothing was better")
    else:
        found += [
            f"           validation: {_metrics(best)}; the default: {_metrics(default)}",
            "           it was chosen by this figure, which flatters it: by how much it is better "
            "on other",
            f"           {result.runs['best'].sample_type}s only these can tell",
        ]
    test = {name: measure.format(score) for name, score in _tested(result).items()}
    if test:
        beside = f"; the default: {test['default']}" if "default" in test else ""
        found.append(
            f"test       {measure.display_name} {test['best']}{beside} (nothing was chosen by it)"
        )
    # Whether strength is auto is a part of strength.
    importances = dict(result.importances)
    if AUTO in importances:
        importances["strength"] = importances.pop(AUTO) + importances.get("strength", 0.0)
    ranked = sorted(importances.items(), key=lambda item: -item[1])
    if ranked:
        said = ", ".join(f"{name} {100 * importance:.0f}%" for name, importance in ranked)
        found.append(f"mattered   {said} (of what the loss varied by, as Optuna estimates it)")
    return found


def _metrics(trial: "Trial") -> str:
    outcome, measure = trial.outcome, trial.outcome.measure
    return f"loss {outcome.loss:.4f}, {measure.display_name} {measure.format(outcome.score)}"


def _tested(result: "SearchResult") -> dict[str, float]:
    test = {name: run.metric_value("test") for name, run in result.runs.items()}
    return {name: score for name, score in test.items() if score is not None}
