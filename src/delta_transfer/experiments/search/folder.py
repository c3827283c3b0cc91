"""The folder of a search: its options and the outcomes of its trials."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from delta_transfer.config.search import VARIED, SearchOptions
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError, ModelError
from delta_transfer.metrics.metrics import METRICS, Metric
from delta_transfer.runs.cost import USAGE_FILE
from delta_transfer.runs.folder import (
    RESULT_NEUTRAL_OPTIONS,
    SEARCH_FILE,
    TRIALS,
    check_options,
    open_several,
)
from delta_transfer.utils.files import write_atomically

OUTCOME = "outcome.json"  # of a finished trial
STORAGE = "search.db"
BEST = "best.yaml"

LOSSES = "losses.json"  # of a trial's first training until now

# Files that are large, or not used after a trial has finished.
_PASSING = ("checkpoints", "tensorboard", "attention.safetensors", USAGE_FILE, LOSSES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a trial.

    Args:
        state: complete, pruned or failed.
        loss: the temperature-scaled held-out loss, which ranks trials; NaN if not complete.
        metric_name: the metric of the data.
        score: its value on the held-out samples; NaN if not complete.
        losses: temperature-scaled validation losses of the first training, by its progress in
            percent.
        wall_time_s: duration in seconds.
        failure: the reason of a failure.
    """

    state: Literal["complete", "pruned", "failed"]
    loss: float = math.nan
    metric_name: str = "accuracy"
    score: float = math.nan
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    wall_time_s: float = 0.0
    failure: str = ""

    @property
    def metric(self) -> Metric:
        """The metric of the score."""
        return METRICS[self.metric_name]

    @property
    def summary(self) -> str:
        """A summary in one line."""
        if self.state == "failed":
            return f"failed: {self.failure}"
        seconds = f"{self.wall_time_s:.0f} s"
        if self.state == "pruned":
            return f"pruned after {max(self.losses)}% of the first training, {seconds}"
        score = f"{self.metric.display_name} {self.metric.format(self.score)}"
        return f"validation loss {self.loss:.4f}, {score}, {seconds}"

    def save(self, folder: Path) -> None:
        """Write the outcome to the folder of the trial."""
        write_atomically(folder / OUTCOME, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Outcome | None":
        """Read the outcome of a trial; None if it has not finished.

        Raises:
            UserError: if the file is damaged.
        """
        path = folder / OUTCOME
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            losses = {int(percent): float(loss) for percent, loss in values["losses"].items()}
            outcome = cls(**{**values, "losses": losses})
            outcome.metric  # noqa: B018  # a KeyError if the name is unknown
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{path} is not the outcome of a trial: {error}; delete the folder {folder} to "
                "repeat the trial"
            ) from error
        return outcome


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return folder / TRIALS / str(number)


def outcomes(folder: Path) -> dict[int, Outcome]:
    """Read the outcomes of all finished trials of a search, by number."""
    numbers = [int(path.name) for path in (folder / TRIALS).glob("*") if path.name.isdecimal()]
    found = {number: Outcome.load(trial_folder(folder, number)) for number in sorted(numbers)}
    return {number: outcome for number, outcome in found.items() if outcome is not None}


def clear(trial: Path) -> None:
    """Delete files that a finished trial no longer needs."""
    for path in [path for name in _PASSING for path in trial.glob(f"**/{name}")]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def options_of(config: TrainConfig, asked: SearchOptions, threads: int | None) -> dict[str, Any]:
    """Return the options in the format of `search -c`, without those that affect no result."""
    varied = {name: getattr(asked, name) for name in VARIED}
    return {**_compared(config), **varied, "pruner": asked.pruner, "num_threads": threads}


def open_folder(folder: Path, config: TrainConfig, asked: SearchOptions) -> int | None:
    """Check that a search may be written to a folder, or resumed there.

    Args:
        folder: of the search.
        config: the options that all trials share.
        asked: the options of the search.

    Returns:
        The threads of each trial, if they are known.

    Raises:
        ConfigError: if the folder is in use for something else, or for another search.
    """
    there = open_several(folder, SEARCH_FILE, config)
    if there is None:
        return asked.num_threads
    threads: int | None = asked.num_threads or there.get("num_threads")
    check_options(there, options_of(config, asked, threads), f"`out={folder}` contains a search")
    if asked.storage is None and not (folder / STORAGE).is_file() and outcomes(folder):
        raise ConfigError(
            f"{folder} has trials, but no {STORAGE}: use their `storage`, another `out`, or "
            "`overwrite` to start from scratch"
        )
    return threads


def unfinished_runs(runs: Iterable[TrainConfig]) -> list[TrainConfig]:
    """Return the runs that are not finished; a run of a previous best trial is replaced."""
    found = []
    for run in runs:
        file = Path(run.out or "", "config.yaml")
        if file.is_file() and _compared(TrainConfig.load(file)) != _compared(run):
            found.append(dataclasses.replace(run, overwrite=True, resume=False))
        elif not file.with_name("result.json").is_file():
            found.append(run)
    return found


def _compared(config: TrainConfig) -> dict[str, Any]:
    """Return the options that affect results."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in RESULT_NEUTRAL_OPTIONS
    }
