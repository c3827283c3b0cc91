"""Which of the splits that a data set has, by their names, is which split of the task."""

from collections.abc import Sequence
from dataclasses import dataclass

from delta_transfer.data.splits import DEFAULT_TEST_SPLIT, parse_fraction
from delta_transfer.errors import UserError

VALIDATION = ("val", "valid", "validation")
"""What a validation split may be called."""

SPLITS = {"train": "train", **dict.fromkeys(VALIDATION, "val"), "test": "test"}
"""What a column of splits may hold, and which split it means."""


@dataclass(frozen=True)
class SplitNames:
    """The names of the splits: None where there is none; `test_fraction` is set to draw one."""

    train: str | None
    val: str | None = None
    test: str | None = None
    test_fraction: float | None = None
    unused: tuple[str, ...] = ()


def choose_splits(names: Sequence[str], test_split: str, *, source: str) -> SplitNames:
    """Tell the splits apart by their names, in small or capital letters.

    Args:
        names: what the data has.
        test_split: the option of the command: the name of the test split, or a fraction of train.
        source: what messages call the data.

    Returns:
        The splits; without a train split only `test` and `test_fraction` are looked for.

    Raises:
        UserError: if two names mean the same split, or the test split cannot be as asked for.
    """
    train = find_name(names, ("train",), source=source)
    test = find_name(names, (test_split.lower(),), source=source)
    fraction = parse_fraction(test_split) if test is None else None
    if train is None:
        return SplitNames(train=None, test=test, test_fraction=fraction)
    val = find_name(names, VALIDATION, source=source)
    own_test = find_name(names, (DEFAULT_TEST_SPLIT,), source=source)
    if fraction is not None and own_test is not None:
        raise UserError(
            f"--test-split {test_split}: {source} already has a test split, '{own_test}'; "
            "leave the option out, or take that split away"
        )
    if fraction is None and test is None and test_split != DEFAULT_TEST_SPLIT:
        raise UserError(
            f"--test-split {test_split}: there is no such split in {source}, which has "
            f"{', '.join(names)}; name one of them, or give a fraction such as 0.2"
        )
    if test is not None and test in (train, val):
        raise UserError(
            f"--test-split {test_split}: this is what is learnt from or chosen on, and nothing "
            "may be chosen on the test split; name another split"
        )
    unused = tuple(name for name in names if name not in (train, val, test))
    return SplitNames(train=train, val=val, test=test, test_fraction=fraction, unused=unused)


def find_name(names: Sequence[str], wanted: Sequence[str], *, source: str) -> str | None:
    """The one name that is, in small letters, among those wanted; None if there is none.

    Raises:
        UserError: if there are several.
    """
    matches = [name for name in names if name.lower() in wanted]
    if len(matches) > 1:
        both = ", ".join(f"'{name}'" for name in matches)
        raise UserError(f"{source} has {both}, which mean the same split; keep one of them")
    return matches[0] if matches else None
