"""The options of search."""

import dataclasses
import math
from typing import Literal

from delta_transfer.config.train import Count, Positive, check_values
from delta_transfer.errors import ConfigError

DEFAULT_TRIALS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of search that replace some of train.

    Args:
        trials: number of configurations, with those already in the folder (default 20, or no limit
            with minutes).
        minutes: start no trial after this many minutes, and finish those that run (default no
            limit).
        strength: range LOW:HIGH on a logarithmic scale, in addition to auto where that trains
            twice; a number or auto is not searched; search (default) is 0.01 to 100 times the
            method's own.
        lr: range LOW:HIGH on a logarithmic scale; a number or find is not searched; search
            (default) is 0.1 to 10 times the preset's.
        epochs: comma-separated choices; a single number is not searched; search (default) is half,
            once and twice the preset's.
        taps: search (default) tries the automatic taps and the last three, two and one of them;
            names as for train are not searched.
        pruner: median (default) stops a trial whose validation loss is above the median of earlier
            ones at the same fraction of training (not in the first third, nor before five trials
            have finished); none.
        out: output folder (default runs/search-DATA-METHOD-TIME). An existing search in it is
            resumed; you can add trials.
        overwrite: delete the folder's contents and start over.
        storage: Optuna storage URL, such as mysql://..., instead of the file search.db in the
            folder.
        jobs: number of parallel trials (default the number of GPUs, or what cores and memory
            allow). Only with 1 are the trials reproducible.
        num_threads: CPU threads of each trial, on which the last digits of results depend (default
            a fair share of the cores, or as before in an existing folder).
        ray: address of a Ray cluster that runs the trials: auto, HOST:PORT, ray://HOST:PORT, or
            local to start one here; every node needs the data and --out at the same path.
    """

    trials: Count | None = None
    minutes: Positive | None = None
    strength: str = "search"
    lr: str = "search"
    epochs: str = "search"
    taps: str = "search"
    pruner: Literal["median", "none"] = "median"
    out: str | None = None
    overwrite: bool = False
    storage: str | None = None
    jobs: Count | None = None
    num_threads: Count | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        check_values(self)
        parse_number_or_range("strength", self.strength)
        parse_number_or_range("lr", self.lr)
        parse_whole_numbers("epochs", self.epochs)


Range = tuple[float, float]

VARIED = ("strength", "lr", "epochs", "taps")

_RANGES = {"strength": ("auto", "0.01:100"), "lr": ("find", "1e-4:1e-2")}  # word, example


def parse_number_or_range(name: str, text: str) -> float | Range | str:
    """Return the word, number or range (LOW:HIGH) in the text of `strength` or `lr`.

    Raises:
        ConfigError: if the text is anything else.
    """
    word, example = _RANGES[name]
    if text in ("search", word):
        return text
    low, colon, high = text.partition(":")
    try:
        first, last = float(low), float(high if colon else low)
    except ValueError as error:
        raise ConfigError(
            f"`{name}={text}` must be LOW:HIGH such as {example}, a number, {word} or search"
        ) from error
    if colon and not 0 < first < last < math.inf:
        raise ConfigError(
            f"`{name}={text}`: LOW must be above 0 and below HIGH, for example {example}"
        )
    return (first, last) if colon else first


def parse_whole_numbers(name: str, text: str) -> tuple[int, ...] | Literal["search"]:
    """Return the whole numbers in a comma-separated text, or "search".

    Raises:
        ConfigError: if the text is anything else, or a number is repeated.
    """
    if text == "search":
        return "search"
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"`{name}={text}` must be whole numbers above 0, separated by commas, such as 5,10,20"
        )
    if len(set(map(int, parts))) < len(parts):
        raise ConfigError(f"`{name}={text}`: list each number once")
    return tuple(map(int, parts))
