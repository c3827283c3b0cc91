"""The command search."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_transfer.cli.arguments import parse_command
from delta_transfer.cli.tables import print_trials
from delta_transfer.config.commands import merge_with_train_options, split_options
from delta_transfer.config.search import SearchOptions
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError

if TYPE_CHECKING:  # they load torch, which --help does without
    from delta_transfer.experiments.search.search import Searched, Trial


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


def run(parsed: Any) -> "Searched":
    """Makes the search.

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
    config = TrainConfig(**values, **train_options(asked), overwrite=asked.overwrite)
    name = f"search-{data_name(config.data)}-{config.method}-{time_stamp()}"
    return make(config, Path(asked.out).expanduser() if asked.out else free_folder(name), asked)


def shown(searched: "Searched") -> "list[Trial]":
    """The trials that are worth showing: the best ones, and the default."""
    complete = searched.complete
    best = complete[:SHOWN]
    return best + [trial for trial in complete[SHOWN:] if trial.number == 0]


def lines(searched: "Searched") -> list[str]:
    """What it came to, in words."""
    best = searched.complete[0]
    default = next(trial for trial in searched.complete if trial.number == 0)
    measure = best.outcome.measure
    count, tried = len(searched.trials), len(searched.complete)
    ended = f"{count} trials, {count - tried} of them pruned or failed"
    found = [f"best       trial {best.number} of {ended if tried < count else f'{count} trials'}"]
    if best.number == 0:
        found.append(f"           it is the default: {_figures(default)}; nothing was better")
    else:
        found.append(f"           validation: {_figures(best)}; the default: {_figures(default)}")
        found.append(
            "           it was chosen by this figure, which flatters it: by how much it is better "
            "on other"
        )
        found.append(f"           {_noun(searched)}s only these can tell")
    test = {name: result.metric_value("test") for name, result in searched.runs.items()}
    if test["best"] is not None:
        beside = (
            "" if "default" not in test else f"; the default: {measure.format(test['default'])}"
        )
        found.append(
            f"test       {measure.display_name} {measure.format(test['best'])}{beside} (nothing "
            "was chosen "
            "by it)"
        )
    shares = _shares(searched.importances)
    if shares:
        said = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items())
        found.append(f"mattered   {said} (of what the loss varied by, as Optuna estimates it)")
    return found


def _figures(trial: "Trial") -> str:
    outcome, measure = trial.outcome, trial.outcome.measure
    return f"loss {outcome.loss:.4f}, {measure.display_name} {measure.format(outcome.score)}"


def _noun(searched: "Searched") -> str:
    return searched.runs["best"].sample_type


def _shares(importances: dict[str, float]) -> dict[str, float]:
    """With whether strength is auto as a part of strength; the largest first."""
    from delta_transfer.experiments.search.space import AUTO

    found: dict[str, float] = {}
    for name, share in importances.items():
        option = "strength" if name == AUTO else name
        found[option] = found.get(option, 0.0) + share
    return dict(sorted(found.items(), key=lambda item: -item[1]))
