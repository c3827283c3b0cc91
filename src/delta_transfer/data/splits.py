"""Stratified draws by seed: splits that are held out, and a number of pictures per class."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from delta_transfer.data.base import Split
from delta_transfer.errors import UserError

DEFAULT_VAL_FRACTION = 0.15
DEFAULT_TEST_SPLIT = "test"


def hold_out(split: Split, fraction: float, *, seed: int, keep: int = 1) -> tuple[Split, Split]:
    """Draw a fraction of every class: at least one picture, leaving at least `keep`.

    Args:
        split: what to draw from; every class has more than `keep` pictures.
        fraction: the part of each class to draw, between 0 and 1.
        seed: the seed of this one draw (see `derive_seed`).
        keep: how many pictures of each class stay at least.

    Returns:
        The rest and what was drawn, both in the order of `split`.
    """
    drawn = _draw(split.labels, lambda n: min(max(1, round(fraction * n)), n - keep), seed=seed)
    chosen = set(drawn)
    rest = [index for index in range(len(split)) if index not in chosen]
    return split.subset(rest), split.subset(drawn)


def take_per_class(split: Split, count: int, *, classes: Sequence[str], seed: int) -> Split:
    """Draw `count` pictures of every class.

    Args:
        split: what to draw from.
        count: how many pictures of each class.
        classes: the class names, for the message.
        seed: the seed of this one draw.

    Returns:
        The pictures drawn, in the order of `split`.

    Raises:
        UserError: if a class has fewer pictures.
    """
    require_per_class(
        split,
        count,
        classes=classes,
        wish=f"--samples-per-class {count}",
        mend="lower the number, add pictures or leave the class out",
    )
    return split.subset(_draw(split.labels, lambda n: count, seed=seed))


def require_per_class(
    split: Split, count: int, *, classes: Sequence[str], wish: str, mend: str
) -> None:
    """Check that every class has at least `count` pictures to draw from.

    Args:
        split: what is drawn from.
        count: how many pictures of each class are needed.
        classes: the class names.
        wish: what needs them, for the message.
        mend: what to do about it, for the message.

    Raises:
        UserError: naming the classes that have fewer, with their counts.
    """
    counts = Counter(split.labels)
    short = [f"'{name}' has {counts[i]}" for i, name in enumerate(classes) if counts[i] < count]
    if short:
        raise UserError(
            f"{wish} needs at least {count} training pictures of every class, but class "
            f"{_some(short)}: {mend}"
        )


def parse_fraction(text: str) -> float | None:
    """The number between 0 and 1 that a text says, None if it is no number.

    Raises:
        UserError: if it is a number outside the open interval.
    """
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 < value < 1:
        raise UserError(
            f"--test-split {text}: a fraction must be above 0 and below 1, for example 0.2"
        )
    return value


def refuse_test_split(name: str, test_split: str) -> None:
    """Refuse any choice of test split for a data set that brings its own.

    Raises:
        UserError: if `test_split` is not the default.
    """
    if test_split != DEFAULT_TEST_SPLIT:
        raise UserError(
            f"--test-split {test_split}: {name} has its own test split; leave the option out"
        )


def unused_val_fraction(name: str, val_fraction: float) -> list[str]:
    """A note for a data set with its own validation split, if a fraction was asked for."""
    if val_fraction == DEFAULT_VAL_FRACTION:
        return []
    return [f"--val-fraction {val_fraction:g} is ignored: {name} has its own validation split"]


def _draw(labels: Sequence[int], count: Callable[[int], int], *, seed: int) -> list[int]:
    """Ascending indices of `count(n)` samples of every class, of which there are n."""
    generator = np.random.default_rng(seed)
    array = np.asarray(labels)
    drawn: list[int] = []
    for label in np.unique(array):
        members = generator.permutation(np.flatnonzero(array == label))
        drawn += members[: count(len(members))].tolist()
    return sorted(drawn)


def _some(items: Sequence[str], limit: int = 5) -> str:
    """The first few items in words, and how many more there are."""
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")
