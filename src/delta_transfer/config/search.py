"""The options of search."""

import dataclasses
import math
from typing import Literal

from delta_transfer.config.commands import check_least
from delta_transfer.errors import UserError

DEFAULT_TRIALS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of search, in the place of some of train.

    Args:
        trials: number of configurations to try, those in the folder included; 20 if neither this
            nor minutes is given.
        minutes: start no trial after this many; those that have started are finished.
        strength: what is searched, on a logarithmic scale: LOW:HIGH, and auto beside it where auto
            trains twice; a number or auto, which is not searched; or search, a hundredth to 100
            times the method's own.
        lr: what is searched, on a logarithmic scale: LOW:HIGH; a number or find, which is not
            searched; or search, a tenth to 10 times that of the preset.
        epochs: what is searched: comma-separated numbers; one, which is not searched; or search,
            half, once and twice as many as the preset has.
        taps: search, which tries the taps of auto, and the last three, two or one of them; or names
            as for train, which are not searched.
        pruner: median ends a trial whose validation loss is above the median of the trials before,
            at the same percent of the training (not in its first third, nor before five are
            complete); none ends none.
        out: folder of the search; runs/search-DATA-METHOD-TIME if not given. An existing search in
            this folder is resumed; you can add trials.
        overwrite: delete what is in that folder and search from scratch.
        storage: address of a database that Optuna takes, such as mysql://..., in place of the file
            search.db in the folder.
        jobs: trials at the same time; as many as there are GPUs, or as cores and memory allow, if
            not given. What is tried next depends on the results so far, so that only with 1 the
            trials are the same each time.
        num_threads: CPU threads of each trial, on which its last digits depend; a fair share of the
            cores if not given, and in an existing folder those of before.
        ray: address of a Ray cluster that makes the trials: auto, HOST:PORT or ray://HOST:PORT, or
            local, which starts one here; all its nodes need the data and --out under the same path.
    """

    trials: int | None = None
    minutes: float | None = None
    strength: str = "search"
    lr: str = "search"
    epochs: str = "search"
    taps: str = "search"
    pruner: Literal["median", "none"] = "median"
    out: str | None = None
    overwrite: bool = False
    storage: str | None = None
    jobs: int | None = None
    num_threads: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        check_least("--trials", self.trials, 1)
        check_least("--jobs", self.jobs, 1)
        check_least("--num-threads", self.num_threads, 1)
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"--minutes must be above 0, got {self.minutes:g}")
        parse_number_or_range("strength", self.strength)
        parse_number_or_range("lr", self.lr)
        parse_whole_numbers("epochs", self.epochs)


Range = tuple[float, float]

VARIED = ("strength", "lr", "epochs", "taps")

_RANGES = {"strength": ("auto", "0.01:100"), "lr": ("find", "1e-4:1e-2")}  # word, example


def parse_number_or_range(name: str, text: str) -> float | Range | str:
    """Read `--strength` or `--lr`: a word, a number, or LOW:HIGH.

    Raises:
        UserError: if it is something else.
    """
    word, example = _RANGES[name]
    if text in ("search", word):
        return text
    low, colon, high = text.partition(":")
    try:
        first, last = float(low), float(high if colon else low)
    except ValueError as error:
        raise UserError(
            f"--{name} {text}: give LOW:HIGH, two numbers above 0 such as {example}, or what is "
            f"not searched: a number or {word}"
        ) from error
    if colon and not 0 < first < last < math.inf:
        raise UserError(
            f"--{name} {text}: LOW must be above 0 and below HIGH, for example {example}"
        )
    return (first, last) if colon else first


def parse_whole_numbers(name: str, text: str) -> tuple[int, ...] | Literal["search"]:
    """Read `--epochs`: search, or whole numbers.

    Raises:
        UserError: if it is something else.
    """
    if text == "search":
        return "search"
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(
            f"--{name} {text}: give whole numbers above 0 with commas between, 5,10,20, or one, "
            "which is not searched"
        )
    if len(set(map(int, parts))) < len(parts):
        raise UserError(f"--{name} {text}: give each once")
    return tuple(map(int, parts))
