"""The command search."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transfer.cli.arguments import parse_command
from delta_transfer.cli.tables import print_trials
from delta_transfer.config.commands import merge_with_train_options, split_options
from delta_transfer.config.search import SearchOptions
from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import ConfigError

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
    for label, name in (("options", "best.yaml"), ("run", "best"), ("trials", "trials.csv")):
        print(f"{label:<10} {found.folder / name}")


SHOWN = 10  # most trials in the table


def run(parsed: Any) -> "SearchResult":
    """Run the search.

    Args:
        parsed: options from `merge_with_train_options(SearchOptions, ...)`.

    Raises:
        UserError: if an option, the data or the network cannot be used.
    """
    from delta_transfer.experiments.search.search import search as make
    from delta_transfer.experiments.search.space import train_options
    from delta_transfer.runs.folder import data_name, free_folder, time_stamp

    asked, values = split_options(parsed, SearchOptions)
    if asked.epochs != "search" and values["steps"] is not None:
        raise ConfigError("--epochs and --steps exclude each other: use one of them")
    config = TrainOptions(**values, **train_options(asked), overwrite=asked.overwrite).resolve()
    name = f"search-{data_name(config.data)}-{config.method}-{time_stamp()}"
    return make(config, Path(asked.out).expanduser() if asked.out else free_folder(name), asked)


def shown(result: "SearchResult") -> "list[Trial]":
    """Return the trials to show: the best ones, and the default."""
    complete = result.complete
    return complete[:SHOWN] + [trial for trial in complete[SHOWN:] if trial.number == 0]


def lines(result: "SearchResult") -> list[str]:
    """Format the result as lines."""
    from delta_transfer.experiments.search.space import AUTO
    from delta_transfer.report.formatting import pluralize

    complete, count = result.complete, len(result.trials)
    best, default = complete[0], next(trial for trial in complete if trial.number == 0)
    metric, lost = best.outcome.metric, count - len(complete)
    ended = pluralize(count, "trial") + (f", {lost} pruned or failed" if lost else "")
    found = [f"best       trial {best.number} of {ended}"]
    if best is default:
        found.append(f"           the default configuration is the best: {_metrics(default)}")
    else:
        found += [
            f"           validation: {_metrics(best)}; default: {_metrics(default)}",
            "           this result is optimistic, because the trial was selected by it",
        ]
    test = {name: metric.format(score) for name, score in _tested(result).items()}
    if test:
        of_default = f"; default: {test['default']}" if "default" in test else ""
        scores = f"{metric.display_name} {test['best']}{of_default}"
        found.append(f"test       {scores} (not used for selection)")
    # The parameter AUTO is a part of the option strength.
    importances = dict(result.importances)
    if AUTO in importances:
        importances["strength"] = importances.pop(AUTO) + importances.get("strength", 0.0)
    ranked = sorted(importances.items(), key=lambda item: -item[1])
    if ranked:
        text = ", ".join(f"{name} {100 * importance:.0f}%" for name, importance in ranked)
        found.append(f"importance {text} (fraction of the loss variance, estimated by Optuna)")
    return found


def _metrics(trial: "Trial") -> str:
    outcome, metric = trial.outcome, trial.outcome.metric
    return f"loss {outcome.loss:.4f}, {metric.display_name} {metric.format(outcome.score)}"


def _tested(result: "SearchResult") -> dict[str, float]:
    test = {name: run.metric_value("test") for name, run in result.runs.items()}
    return {name: score for name, score in test.items() if score is not None}
