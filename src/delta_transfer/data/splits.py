"""Splits: their names, stratified random draws of missing ones, and their checks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import ConfigError, DataError, first_few
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.metrics.task_types import Multiclass, TaskType
from delta_transfer.utils.seeds import derive_seed

DEFAULT_VAL_FRACTION = 0.15
DEFAULT_TEST_SPLIT = "test"

VALIDATION_NAMES = ("val", "valid", "validation")
"""The accepted names of a validation split."""

SPLIT_ALIASES = {"train": "train", **dict.fromkeys(VALIDATION_NAMES, "val"), "test": "test"}
"""The accepted values of a split column, and the split that each means."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """The user's choice of splits.

    Attributes:
        seed: draws the splits that the data does not have.
        val_fraction: the fraction of the training samples to hold out for validation, class by
            class, if the data has no validation split.
        test_split: the name of the test split, or a fraction such as "0.2" of the training samples
            to draw one from a dataset without.
    """

    seed: int
    val_fraction: float = DEFAULT_VAL_FRACTION
    test_split: str = DEFAULT_TEST_SPLIT

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"`seed={self.seed}`: must be 0 or more")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(
                f"`val_fraction={self.val_fraction:g}`: must be above 0 and below 1, for example "
                "0.15"
            )

    def refuse_test_split(self, display_name: str) -> None:
        """Refuse any choice of test split, for a dataset with its own.

        Raises:
            ConfigError: if `test_split` is not the default.
        """
        if self.test_split != DEFAULT_TEST_SPLIT:
            raise ConfigError(
                f"`test_split={self.test_split}`: {display_name} has its own test split; leave "
                "the option out"
            )

    def test_fraction(self, display_name: str, *, has_test: bool) -> float | None:
        """Return the fraction of train to draw as test split, for data without split names.

        Args:
            display_name: the name of the data in messages.
            has_test: whether the data has a test split.

        Returns:
            The fraction; None to draw none.

        Raises:
            ConfigError: if `test_split` is neither the default nor a fraction, or the data has a
                test split already.
        """
        if self.test_split == DEFAULT_TEST_SPLIT:
            return None
        if has_test:
            self.refuse_test_split(display_name)
        fraction = parse_fraction(self.test_split)
        if fraction is None:
            raise ConfigError(
                f"`test_split={self.test_split}`: {display_name} has no split of this name; use a "
                "fraction such as 0.2 of the training samples, or leave the option out"
            )
        return fraction

    def unused_val_fraction(self, display_name: str) -> list[str]:
        """Return a note if `val_fraction` was set for a dataset with its own validation split."""
        if self.val_fraction == DEFAULT_VAL_FRACTION:
            return []
        return [
            f"`val_fraction={self.val_fraction:g}` is ignored: {display_name} has its own "
            "validation split"
        ]


@dataclass(frozen=True, kw_only=True)
class PartialTaskData:
    """A dataset whose missing splits may still be drawn.

    Attributes:
        name: as in `TaskData`.
        display_name: the name of the data in messages, such as `'images/birds'`.
        classes: as in `TaskData`.
        train: the samples to train on, and to draw missing splits from.
        val: None if missing.
        test: None if missing.
        notes: sentences for the user so far.
        metric: as in `TaskData`.
        task_type: as in `TaskData`.
    """

    name: str
    display_name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split | None
    notes: tuple[str, ...] = ()
    metric: MetricName = "accuracy"
    task_type: TaskType = field(default_factory=Multiclass)


def draw_missing_splits(
    given: PartialTaskData,
    options: SplitOptions,
    *,
    test_fraction: float | None,
    hint: str = "add images, or leave the class out",
) -> TaskData:
    """Draw the missing splits of a dataset from train, class by class if it has classes.

    Args:
        given: the splits that exist.
        options: the seed, and the fraction for validation.
        test_fraction: the fraction of the training samples to draw as test split; None for none.
        hint: the fix for a class with too few images, for the message.

    Returns:
        The dataset, with notes on drawn and missing splits.

    Raises:
        DataError: if a class has too few images for the splits to draw.
    """
    notes = list(given.notes)
    train, val, test = given.train, given.val, given.test
    seed, val_fraction = options.seed, options.val_fraction
    _check_enough(given, test_fraction=test_fraction, hint=hint)
    if test_fraction is not None:
        min_left = 2 if val is None else 1
        test_seed = derive_seed(seed, "test")
        train, test = hold_out(train, test_fraction, seed=test_seed, min_left=min_left)
        notes.append(_drawn_split_note(given, "test", test_fraction, len(test), seed))
    elif test is None:
        metric = given.task_type.metric.display_name
        notes.append(f"no test split: test {metric} will be null; `test_split=0.2` draws one")
    if val is None:
        train, val = hold_out(train, val_fraction, seed=derive_seed(seed, "validation"))
        notes.append(_drawn_split_note(given, "validation", val_fraction, len(val), seed))
    else:
        notes += options.unused_val_fraction(given.display_name)
    return TaskData(
        name=given.name,
        classes=given.classes,
        train=train,
        val=val,
        test=test,
        notes=tuple(notes),
        metric=given.metric,
        task_type=given.task_type,
        val_drawn=given.val is None,
    )


def hold_out(split: Split, fraction: float, *, seed: int, min_left: int = 1) -> tuple[Split, Split]:
    """Draw a fraction of every class: at least one sample, leaving at least `min_left`.

    Args:
        split: the samples to draw from; every class has more than `min_left`.
        fraction: of each class, between 0 and 1.
        seed: the seed of this draw (see `derive_seed`).
        min_left: the number of samples of each class to leave at least.

    Returns:
        The rest and the drawn samples, both in the order of `split`.
    """
    return _draw(split, lambda n: min(max(1, round(fraction * n)), n - min_left), seed=seed)


def split_per_class(split: Split, count: int, *, seed: int) -> tuple[Split, Split]:
    """Draw `count` samples of every class.

    Args:
        split: the samples to draw from; every class has at least `count`.
        count: per class.
        seed: the seed of this draw (see `derive_seed`).

    Returns:
        The rest and the drawn samples, both in the order of `split`.
    """
    return _draw(split, lambda n: count, seed=seed)


def sample_per_class(split: Split, count: int, *, classes: Sequence[str], seed: int) -> Split:
    """Draw a subset with `count` samples of every class, in the order of `split`.

    Args:
        split: the samples to draw from.
        count: per class.
        classes: the class names, for the message.
        seed: the seed of this draw.

    Raises:
        DataError: if a class has fewer.
    """
    check_min_per_class(
        split,
        count,
        classes=classes,
        purpose=f"`samples_per_class={count}`",
        hint=f"lower the number, add {split.sample_type}s or leave the class out",
    )
    return split_per_class(split, count, seed=seed)[1]


def check_min_per_class(
    split: Split, count: int, *, classes: Sequence[str], purpose: str, hint: str
) -> None:
    """Check that every class has at least `count` samples to draw from.

    Args:
        split: the samples.
        count: the number needed per class.
        classes: the class names.
        purpose: the reason, for the message.
        hint: the fix, for the message.

    Raises:
        DataError: naming the classes that have fewer, with their counts.
    """
    counts = Counter(split.class_indices)
    short = [f"'{name}' has {counts[i]}" for i, name in enumerate(classes) if counts[i] < count]
    if short:
        raise DataError(
            f"{purpose} needs at least {count} training {split.sample_type}s of every class, but "
            f"class {first_few(short)}: {hint}"
        )


def parse_fraction(text: str) -> float | None:
    """Return the number between 0 and 1 in a `test_split`; None if it is not a number.

    Raises:
        ConfigError: if the number is outside the open interval.
    """
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 < value < 1:
        raise ConfigError(
            f"`test_split={text}`: a fraction must be above 0 and below 1, for example 0.2"
        )
    return value


def _check_enough(given: PartialTaskData, *, test_fraction: float | None, hint: str) -> None:
    """Check that every class has a sample for each split to draw, and one left to train on."""
    drawn = ["validation"] if given.val is None else []
    if test_fraction is not None:
        drawn.append("test")
    if drawn and isinstance(given.task_type, Multiclass):
        check_min_per_class(
            given.train,
            1 + len(drawn),
            classes=given.classes,
            purpose=f"drawing a {' and a '.join(drawn)} split",
            hint=hint,
        )


def _drawn_split_note(
    given: PartialTaskData, split: str, fraction: float, count: int, seed: int
) -> str:
    stratified = "stratified, " if isinstance(given.task_type, Multiclass) else ""
    return (
        f"no {split} split: {100 * fraction:g}% of train ({count} {given.train.sample_type}s), "
        f"{stratified}seed {seed}, is held out"
    )


def _draw(split: Split, count: Callable[[int], int], *, seed: int) -> tuple[Split, Split]:
    """Draw `count(n)` of the n samples of every class; return the rest and those."""
    generator = np.random.default_rng(seed)
    array = np.asarray(split.class_indices)
    drawn: list[int] = []
    for label in np.unique(array):
        members = generator.permutation(np.flatnonzero(array == label))
        drawn += members[: count(len(members))].tolist()
    chosen = set(drawn)
    rest = [index for index in range(len(split)) if index not in chosen]
    return split.subset(rest), split.subset(sorted(drawn))


def check_split_classes(
    found: Mapping[str, Iterable[str]],
    *,
    display_name: str,
    hint: str,
    locations: Mapping[str, str],
) -> list[str]:
    """Check that every class of the other splits is also in the training split.

    Args:
        found: the classes of each split, by the name of the split in messages; train comes first.
        display_name: the name of the data in messages.
        hint: the fix, for the message.
        locations: an addition to a class in messages, such as its line; may lack classes.

    Returns:
        A note for each of the other splits that lacks a class.

    Raises:
        DataError: naming the classes that each split lacks, if the training split lacks one.

    Example:
        >>> found = {"train": ["cat", "dog"], "val": ["cat"]}
        >>> check_split_classes(found, display_name="pets", hint="add some", locations={})
        ["no image of class 'dog' in val: its accuracy there is unknown"]
    """
    present = {split: set(classes) for split, classes in found.items()}
    everything = set().union(*present.values())
    lacking = {
        split: [f"'{name}'{locations.get(name, '')}" for name in sorted(everything - there)]
        for split, there in present.items()
        if everything - there
    }
    if next(iter(found)) in lacking:
        lists = "; ".join(f"{split} lacks {first_few(names)}" for split, names in lacking.items())
        raise DataError(
            f"{display_name}: train must have every class of the other splits, but {lists}: {hint}"
        )
    return [
        f"no image of class {first_few(names)} in {split}: "
        f"{'its' if len(names) == 1 else 'their'} accuracy there is unknown"
        for split, names in lacking.items()
    ]


@dataclass(frozen=True)
class SplitNames:
    """The names of the splits: None if missing; `test_fraction` is set to draw one."""

    train: str | None
    val: str | None = None
    test: str | None = None
    test_fraction: float | None = None
    unused: tuple[str, ...] = ()


def choose_splits(names: Sequence[str], test_split: str, *, display_name: str) -> SplitNames:
    """Find the splits by their names, ignoring case.

    Args:
        names: of the splits in the data.
        test_split: as in `SplitOptions`.
        display_name: the name of the data in messages.

    Returns:
        The splits; without a train split only `test` and `test_fraction` are set.

    Raises:
        UserError: if two names mean the same split, or `test_split` does not fit.
    """
    train = find_name(names, ("train",), display_name=display_name)
    test = find_name(names, (test_split.lower(),), display_name=display_name)
    fraction = parse_fraction(test_split) if test is None else None
    if train is None:
        return SplitNames(train=None, test=test, test_fraction=fraction)
    val = find_name(names, VALIDATION_NAMES, display_name=display_name)
    own_test = find_name(names, (DEFAULT_TEST_SPLIT,), display_name=display_name)
    if fraction is not None and own_test is not None:
        raise ConfigError(
            f"`test_split={test_split}`: {display_name} already has a test split, '{own_test}'; "
            "leave the option out, or remove that split"
        )
    if fraction is None and test is None and test_split != DEFAULT_TEST_SPLIT:
        raise ConfigError(
            f"`test_split={test_split}`: there is no such split in {display_name}, which has "
            f"{', '.join(names)}; name one of them, or use a fraction such as 0.2"
        )
    if test is not None and test in (train, val):
        raise ConfigError(
            f"`test_split={test_split}`: this is the training or validation split; name another "
            "split"
        )
    unused = tuple(name for name in names if name not in (train, val, test))
    return SplitNames(train=train, val=val, test=test, test_fraction=fraction, unused=unused)


def find_name(names: Sequence[str], wanted: Sequence[str], *, display_name: str) -> str | None:
    """Return the one name that is, in lower case, among those wanted; None if there is none.

    Raises:
        DataError: if there are several.
    """
    matches = [name for name in names if name.lower() in wanted]
    if len(matches) > 1:
        both = ", ".join(f"'{name}'" for name in matches)
        raise DataError(f"{display_name} has {both}, which mean the same split; keep one of them")
    return matches[0] if matches else None
