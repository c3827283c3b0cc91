"""The folder of a search: its options, and what its trials came to."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from delta_transfer.config.search import VARIED, SearchOptions
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.metrics.metrics import METRICS, Metric
from delta_transfer.runs.folder import (
    RESULT_NEUTRAL_OPTIONS,
    SEARCH_FILE,
    TRIALS,
    check_options,
    open_several,
)
from delta_transfer.utils.files import write_atomically

OUTCOME = "outcome.json"  # of a trial that has ended
STORAGE = "search.db"
BEST = "best.yaml"

# What is large, or of no use once a trial has ended.
_PASSING = ("checkpoints", "tensorboard", "attention.safetensors", "spent.json", "losses.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a trial.

    Args:
        state: complete; pruned, when it promised nothing; or failed.
        loss: the calibrated held-out loss, by which trials are compared; NaN if not complete.
        metric: the metric of the data.
        score: that metric on what was held out; NaN if not complete.
        best_epoch: the one that was kept.
        losses: calibrated validation losses of the first training, by the percent of it that was
            over.
        seconds: that it took.
        failure: why it failed.
    """

    state: Literal["complete", "pruned", "failed"]
    loss: float = math.nan
    metric: str = "accuracy"
    score: float = math.nan
    best_epoch: int | None = None
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""

    @property
    def measure(self) -> Metric:
        """That of the metric."""
        return METRICS[self.metric]

    @property
    def words(self) -> str:
        """The outcome in words."""
        if self.state == "failed":
            return f"failed: {self.failure}"
        seconds = f"{self.seconds:.0f} s"
        if self.state == "pruned":
            return f"pruned after {max(self.losses)}% of the first training, {seconds}"
        score = f"{self.measure.display_name} {self.measure.format(self.score)}"
        return f"validation loss {self.loss:.4f}, {score}, {seconds}"

    def save(self, folder: Path) -> None:
        """Write it into the folder of the trial."""
        write_atomically(folder / OUTCOME, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Outcome | None":
        """Read that of a trial; None if it has not ended.

        Raises:
            UserError: if the file is damaged.
        """
        path = folder / OUTCOME
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            losses = {int(share): float(loss) for share, loss in values["losses"].items()}
            found = cls(**{**values, "losses": losses})
            found.measure  # noqa: B018
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is no outcome of a trial: {error}; delete the folder {folder}, and the "
                "trial is made again"
            ) from error
        return found


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return folder / TRIALS / str(number)


def outcomes(folder: Path) -> dict[int, Outcome]:
    """Read the outcomes of all trials of a search that have ended, by number."""
    numbers = [int(path.name) for path in (folder / TRIALS).glob("*") if path.name.isdecimal()]
    found = {number: Outcome.load(trial_folder(folder, number)) for number in sorted(numbers)}
    return {number: outcome for number, outcome in found.items() if outcome is not None}


def clear(trial: Path) -> None:
    """Delete what a trial that has ended needs no more."""
    for path in [path for name in _PASSING for path in trial.glob(f"**/{name}")]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def options_of(config: TrainConfig, asked: SearchOptions, threads: int | None) -> dict[str, Any]:
    """Return the options as `search -c` takes them, but for those that change no result."""
    varied = {name: getattr(asked, name) for name in VARIED}  # as it was asked for
    return {**_compared(config), **varied, "pruner": asked.pruner, "num_threads": threads}


def open_folder(folder: Path, config: TrainConfig, asked: SearchOptions) -> int | None:
    """Check that a search may be written into a folder, or resume there.

    Args:
        folder: where it is to be.
        config: the options that all trials share.
        asked: what is searched.

    Returns:
        The threads of each trial, if they are known.

    Raises:
        UserError: if the folder is in use for something else, or for another search.
    """
    there = open_several(folder, SEARCH_FILE, config)
    if there is None:
        return asked.num_threads
    threads: int | None = asked.num_threads or there.get("num_threads")
    check_options(there, options_of(config, asked, threads), f"--out {folder} contains a search")
    if asked.storage is None and not (folder / STORAGE).is_file() and outcomes(folder):
        raise UserError(
            f"{folder} has trials, but its {STORAGE} is not there any more: give the --storage "
            "that they are in, another --out, or --overwrite to start anew"
        )
    return threads


def unfinished_runs(runs: Iterable[TrainConfig]) -> list[TrainConfig]:
    """Return those that are still to be made; one of what was the best before is replaced."""
    found = []
    for run in runs:
        file = Path(run.out or "", "config.yaml")
        if file.is_file() and _compared(TrainConfig.load(file)) != _compared(run):
            found.append(dataclasses.replace(run, overwrite=True, resume=False))
        elif not file.with_name("result.json").is_file():
            found.append(run)
    return found


def _compared(config: TrainConfig) -> dict[str, Any]:
    """Return the options that change a result."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in RESULT_NEUTRAL_OPTIONS
    }
