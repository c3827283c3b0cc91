"""Stratified draws by seed: splits that are missing, and a number of images per class."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError, first_few
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.metrics.task_types import Multiclass, TaskType
from delta_transfer.utils.seeds import derive_seed

DEFAULT_VAL_FRACTION = 0.15
DEFAULT_TEST_SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class PartialTaskData:
    """What a data set brings of a task; a split that is None may be drawn.

    Attributes:
        name: as of the task.
        display_name: what messages call the data, such as `'images/birds'`.
        classes: as of the task.
        train: what is learnt from, and what missing splits are drawn from.
        val: None where there is none.
        test: None where there is none.
        notes: what a user should know so far.
        metric: as of the task.
        task_type: as of the task.
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
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float | None,
    hint: str = "add images, or leave the class out",
) -> TaskData:
    """A task whose missing splits are drawn from train, class by class if it has classes.

    Args:
        given: the splits that there are.
        seed: the user's seed; it draws the test and the validation split apart.
        val_fraction: the part of the training images held out, if there is no validation split.
        test_fraction: the part of the training images to draw a test split of; None for none.
        hint: what to do about a class with too few images, for the message.

    Returns:
        The task, with notes on what was drawn and what is missing.

    Raises:
        UserError: if a class has too few images for the splits that are to be drawn.
    """
    notes = list(given.notes)
    train, val, test = given.train, given.val, given.test
    _check_enough(given, test_fraction=test_fraction, hint=hint)
    if test_fraction is not None:
        keep = 2 if val is None else 1
        draw = derive_seed(seed, "test")
        train, test = hold_out(train, test_fraction, seed=draw, min_left=keep)
        notes.append(_drawn_split_note(given, "test", test_fraction, len(test), seed))
    elif test is None:
        figure = given.task_type.metric.display_name
        notes.append(
            f"no test split: test {figure} will be null; ask for one with --test-split 0.2"
        )
    if val is None:
        train, val = hold_out(train, val_fraction, seed=derive_seed(seed, "validation"))
        notes.append(_drawn_split_note(given, "validation", val_fraction, len(val), seed))
    else:
        notes += unused_val_fraction(given.display_name, val_fraction)
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
    """Draw a fraction of every class: at least one image, leaving at least `min_left`.

    Args:
        split: what to draw from; every class has more than `min_left` images.
        fraction: the part of each class to draw, between 0 and 1.
        seed: the seed of this one draw (see `derive_seed`).
        min_left: how many images of each class stay at least.

    Returns:
        The rest and what was drawn, both in the order of `split`.
    """
    return _part(split, lambda n: min(max(1, round(fraction * n)), n - min_left), seed=seed)


def split_per_class(split: Split, count: int, *, seed: int) -> tuple[Split, Split]:
    """Draw `count` images of every class.

    Args:
        split: what to draw from; every class has at least `count` images.
        count: how many images of each class.
        seed: the seed of this one draw (see `derive_seed`).

    Returns:
        The rest and what was drawn, both in the order of `split`.
    """
    return _part(split, lambda n: count, seed=seed)


def sample_per_class(split: Split, count: int, *, classes: Sequence[str], seed: int) -> Split:
    """Draw `count` images of every class.

    Args:
        split: what to draw from.
        count: how many images of each class.
        classes: the class names, for the message.
        seed: the seed of this one draw.

    Returns:
        The images drawn, in the order of `split`.

    Raises:
        UserError: if a class has fewer images.
    """
    check_min_per_class(
        split,
        count,
        classes=classes,
        purpose=f"--samples-per-class {count}",
        hint=f"lower the number, add {split.sample_type}s or leave the class out",
    )
    return split_per_class(split, count, seed=seed)[1]


def check_min_per_class(
    split: Split, count: int, *, classes: Sequence[str], purpose: str, hint: str
) -> None:
    """Check that every class has at least `count` images to draw from.

    Args:
        split: what is drawn from.
        count: how many images of each class are needed.
        classes: the class names.
        purpose: what needs them, for the message.
        hint: what to do about it, for the message.

    Raises:
        UserError: naming the classes that have fewer, with their counts.
    """
    counts = Counter(split.class_indices)
    short = [f"'{name}' has {counts[i]}" for i, name in enumerate(classes) if counts[i] < count]
    if short:
        raise UserError(
            f"{purpose} needs at least {count} training {split.sample_type}s of every class, but "
            "class "
            f"{first_few(short)}: {hint}"
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


def parse_test_fraction(test_split: str, *, display_name: str, has_test: bool) -> float | None:
    """The part of train to draw a test split of, for data whose test split has no other name.

    Args:
        test_split: the option of the command.
        display_name: what messages call the data.
        has_test: whether the data brings a test split.

    Returns:
        The fraction; None if none is to be drawn.

    Raises:
        UserError: if it is neither the default nor a fraction, or there is a test split already.
    """
    if test_split == DEFAULT_TEST_SPLIT:
        return None
    if has_test:
        refuse_test_split(display_name, test_split)
    fraction = parse_fraction(test_split)
    if fraction is None:
        raise UserError(
            f"--test-split {test_split}: {display_name} has no split of this name; give a "
            "fraction such "
            "as 0.2 of the training images, or leave the option out"
        )
    return fraction


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


def _check_enough(given: PartialTaskData, *, test_fraction: float | None, hint: str) -> None:
    """Every class must have an image for each split that is drawn, and one left to learn from."""
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
    given: PartialTaskData, what: str, fraction: float, count: int, seed: int
) -> str:
    stratified = "stratified, " if isinstance(given.task_type, Multiclass) else ""
    return (
        f"no {what} split: {100 * fraction:g}% of train ({count} {given.train.sample_type}s), "
        f"{stratified}seed {seed}, is held out"
    )


def _part(split: Split, count: Callable[[int], int], *, seed: int) -> tuple[Split, Split]:
    """The rest, and `count(n)` samples of every class, of which there are n."""
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
    """Check that every class of the other splits is in the training split, too.

    Args:
        found: the classes of each split's images, by what messages call the split; the first is
            the training split.
        display_name: what messages call the data; it begins the message.
        hint: what to do about it, for the message.
        locations: what a message adds to a class, such as its line; classes may be missing.

    Returns:
        A note for each of the other splits that lacks a class.

    Raises:
        UserError: naming the classes that each split lacks, if the training split lacks one.

    Example:
        >>> found = {"train": ["cat", "dog"], "val": ["cat"]}
        >>> check_split_classes(found, display_name="pets", hint="add some", locations={})
        ["no image of class 'dog' in val: nothing is known there of how well it is told"]
    """
    present = {split: set(classes) for split, classes in found.items()}
    everything = set().union(*present.values())
    lacking = {
        split: [f"'{name}'{locations.get(name, '')}" for name in sorted(everything - there)]
        for split, there in present.items()
        if everything - there
    }
    if next(iter(found)) in lacking:
        said = "; ".join(f"{split} lacks {first_few(names)}" for split, names in lacking.items())
        raise UserError(
            f"{display_name}: the splits must have the same classes, or val and test fewer, but "
            f"{said}: "
            f"{hint}"
        )
    return [
        f"no image of class {first_few(names)} in {split}: nothing is known there of how well "
        f"{'it is' if len(names) == 1 else 'they are'} told"
        for split, names in lacking.items()
    ]


VALIDATION_NAMES = ("val", "valid", "validation")
"""What a validation split may be called."""

SPLIT_ALIASES = {"train": "train", **dict.fromkeys(VALIDATION_NAMES, "val"), "test": "test"}
"""What a column of splits may hold, and which split it means."""


@dataclass(frozen=True)
class SplitNames:
    """The names of the splits: None where there is none; `test_fraction` is set to draw one."""

    train: str | None
    val: str | None = None
    test: str | None = None
    test_fraction: float | None = None
    unused: tuple[str, ...] = ()


def choose_splits(names: Sequence[str], test_split: str, *, display_name: str) -> SplitNames:
    """Tell the splits apart by their names, in small or capital letters.

    Args:
        names: what the data has.
        test_split: the option of the command: the name of the test split, or a fraction of train.
        display_name: what messages call the data.

    Returns:
        The splits; without a train split only `test` and `test_fraction` are looked for.

    Raises:
        UserError: if two names mean the same split, or the test split cannot be as asked for.
    """
    train = find_name(names, ("train",), display_name=display_name)
    test = find_name(names, (test_split.lower(),), display_name=display_name)
    fraction = parse_fraction(test_split) if test is None else None
    if train is None:
        return SplitNames(train=None, test=test, test_fraction=fraction)
    val = find_name(names, VALIDATION_NAMES, display_name=display_name)
    own_test = find_name(names, (DEFAULT_TEST_SPLIT,), display_name=display_name)
    if fraction is not None and own_test is not None:
        raise UserError(
            f"--test-split {test_split}: {display_name} already has a test split, '{own_test}'; "
            "leave the option out, or take that split away"
        )
    if fraction is None and test is None and test_split != DEFAULT_TEST_SPLIT:
        raise UserError(
            f"--test-split {test_split}: there is no such split in {display_name}, which has "
            f"{', '.join(names)}; name one of them, or give a fraction such as 0.2"
        )
    if test is not None and test in (train, val):
        raise UserError(
            f"--test-split {test_split}: this is what is learnt from or chosen on, and nothing "
            "may be chosen on the test split; name another split"
        )
    unused = tuple(name for name in names if name not in (train, val, test))
    return SplitNames(train=train, val=val, test=test, test_fraction=fraction, unused=unused)


def find_name(names: Sequence[str], wanted: Sequence[str], *, display_name: str) -> str | None:
    """The one name that is, in small letters, among those wanted; None if there is none.

    Raises:
        UserError: if there are several.
    """
    matches = [name for name in names if name.lower() in wanted]
    if len(matches) > 1:
        both = ", ".join(f"'{name}'" for name in matches)
        raise UserError(f"{display_name} has {both}, which mean the same split; keep one of them")
    return matches[0] if matches else None
