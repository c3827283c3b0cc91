"""The folder of a search: its options, its trials and their table."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from delta_transfer.config.search import SearchOptions
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.metrics.metrics import METRICS, Metric
from delta_transfer.runs.folder import (
    RESULT_NEUTRAL_OPTIONS,
    SEARCH_FILE,
    TRIALS,
    check_folder,
    check_options,
    check_output_location,
    find_temporary_files,
    make_folder,
)
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.locks import LOCK, check_unlocked

OUTCOME = "outcome.json"  # of a trial that has ended
STORAGE = "search.db"
BEST = "best.yaml"

# What is varied is in the folder as it was asked for.
_VARIED = ("strength", "lr", "epochs", "taps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial.

    Args:
        state: complete; pruned, when it promised nothing; or failed.
        loss: the calibrated loss on what was held out, by which trials are compared; NaN if it is
            not complete.
        metric: by whose measure the data is judged.
        score: that measure on what was held out; NaN likewise.
        best_epoch: the one that was kept.
        losses: calibrated validation losses of the first training by the percent of it that were
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
        """What came of it, in words."""
        if self.state == "failed":
            return f"failed: {self.failure}"
        seconds = f"{self.seconds:.0f} s"
        if self.state == "pruned":
            return f"pruned after {max(self.losses)}% of the first training, {seconds}"
        score = f"{self.measure.display_name} {self.measure.format(self.score)}"
        return f"validation loss {self.loss:.4f}, {score}, {seconds}"

    def save(self, folder: Path) -> None:
        """Writes it into the folder of the trial."""
        write_atomically(folder / OUTCOME, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Outcome | None":
        """That of a trial; None if it has not ended.

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
    """Where a trial of a search lies."""
    return folder / TRIALS / str(number)


def outcomes(folder: Path) -> dict[int, Outcome]:
    """Of all trials of a search that have ended, by their numbers."""
    numbers = [int(path.name) for path in (folder / TRIALS).glob("*") if path.name.isdecimal()]
    found = {number: Outcome.load(trial_folder(folder, number)) for number in sorted(numbers)}
    return {number: outcome for number, outcome in found.items() if outcome is not None}


def clear(trial: Path) -> None:
    """Deletes what is large or of no use once a trial has ended."""
    for path in [*trial.glob("**/checkpoints"), *trial.glob("**/tensorboard")]:
        shutil.rmtree(path, ignore_errors=True)
    for name in ("attention.safetensors", "spent.json", "losses.json"):
        for path in trial.glob(f"**/{name}"):
            path.unlink()


def options_of(config: TrainConfig, asked: SearchOptions, threads: int | None) -> dict[str, Any]:
    """As `search -c` takes them; what changes no figure is not among them."""
    values = {**dataclasses.asdict(config), **{name: getattr(asked, name) for name in _VARIED}}
    shared = {name: value for name, value in values.items() if name not in RESULT_NEUTRAL_OPTIONS}
    return {**shared, "pruner": asked.pruner, "num_threads": threads}


def open_folder(folder: Path, config: TrainConfig, asked: SearchOptions) -> int | None:
    """Checks that a search may be written into a folder, or go on there.

    Args:
        folder: where it is to lie.
        config: the options that all trials share.
        asked: what is searched.

    Returns:
        The threads of each trial, if they are known.

    Raises:
        UserError: if the folder is in use for something else, or for another search.
    """
    check_output_location(folder, data=config.data)
    check_unlocked(folder)
    if config.overwrite or not (folder / SEARCH_FILE).is_file():
        found = set(folder.iterdir()) - {folder / LOCK} if folder.is_dir() else None
        if found != set(find_temporary_files(folder)):
            check_folder(folder, config)
        return asked.num_threads
    there = _load(folder / SEARCH_FILE)
    threads = asked.num_threads or there.get("num_threads")
    check_options(there, options_of(config, asked, threads), f"--out {folder} holds a search")
    if asked.storage is None and not (folder / STORAGE).is_file() and outcomes(folder):
        raise UserError(
            f"{folder} has trials, but its {STORAGE} is not there any more: give the --storage "
            "that they are in, another --out, or --overwrite to start anew"
        )
    return threads


def begin(folder: Path, values: dict[str, Any], *, overwrite: bool) -> bool:
    """Makes the folder, empty if it is to be overwritten, and writes down what is searched.

    Returns:
        Whether it is a new search.
    """
    for path in find_temporary_files(folder):
        path.unlink()
    new = overwrite or not (folder / SEARCH_FILE).is_file()
    if new:
        make_folder(folder, overwrite=overwrite)
    try:
        write_atomically(folder / SEARCH_FILE, yaml.safe_dump(values, sort_keys=False))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if there is nothing in it
        raise
    return new


def unfinished_runs(runs: Iterable[TrainConfig]) -> list[TrainConfig]:
    """Those that are still to be made; one with other options, once the best, gives way."""
    found = []
    for run in runs:
        folder = Path(run.out or "")
        same = not (folder / "config.yaml").is_file() or _same(folder, run)
        if not same:
            run = dataclasses.replace(run, overwrite=True, resume=False)
        if not same or not (folder / "result.json").is_file():
            found.append(run)
    return found


def _same(folder: Path, run: TrainConfig) -> bool:
    there, asked = TrainConfig.load(folder / "config.yaml"), run
    return all(
        getattr(there, field.name) == getattr(asked, field.name)
        for field in dataclasses.fields(TrainConfig)
        if field.name not in RESULT_NEUTRAL_OPTIONS
    )


def write_table(
    folder: Path, rows: Sequence[tuple[int, dict[str, Any], Outcome]], names: Sequence[str]
) -> None:
    """Writes `trials.csv`.

    Args:
        folder: of the search.
        rows: number, options and outcome of each trial that has ended.
        names: of the options that are searched.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measure = rows[0][2].measure if rows else METRICS["accuracy"]
    columns = ["trial", "state", "val_calibrated_loss", f"val_{measure.name}", *names]
    writer.writerow([*columns, "best_epoch", "seconds", "failure"])
    for number, options, outcome in rows:
        figures = ["" if math.isnan(value) else value for value in (outcome.loss, outcome.score)]
        epoch = "" if outcome.best_epoch is None else outcome.best_epoch
        own = [options.get(name, "") for name in names]
        row = [number, outcome.state, *figures, *own, epoch, outcome.seconds, outcome.failure]
        writer.writerow(row)
    write_atomically(folder / "trials.csv", text.getvalue())


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("num_threads", 1), int | None):
        raise UserError(
            f"{path} does not hold the options of a search any more: give another --out"
        )
    return values
