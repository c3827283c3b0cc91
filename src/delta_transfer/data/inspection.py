"""Look at every picture once: unreadable ones are left out, identical and rare ones are told of."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from delta_transfer.data.image_cache.reader import KeptPictures
from delta_transfer.data.image_cache.writer import Keeper
from delta_transfer.data.scanning import LookedAt, look_at_all
from delta_transfer.data.task import Split, Task
from delta_transfer.errors import UserError, first_few
from delta_transfer.utils.devices import cores

IMBALANCE = 3
"""A note is given when the largest class has so many times the pictures of the smallest."""

_WORDS = {"train": "training", "val": "validation", "test": "test"}

_LEAKS = {
    ("train", "val"): "the loss by which the epoch is chosen is flattered",
    ("train", "test"): "accuracy on test is flattered",
    ("val", "test"): "accuracy on test is flattered, as the epoch is chosen on them",
}
"""What is wrong with pictures that lie in both of two splits."""


@dataclass(frozen=True)
class CheckedPictures:
    """What a look at every picture of a task has shown.

    Attributes:
        task: without the pictures that cannot be read; its notes tell of copies and rare classes.
        warnings: sentences that the user must see: what is left out, what lies in two splits,
            which pictures have two labels.
        digests: a hash of size and pixels of each picture of `task`, by its path.
    """

    task: Task
    warnings: tuple[str, ...]
    digests: Mapping[str, str]


def check_pictures(
    task: Task, *, threads: int | None = None, keeper: Keeper | None = None
) -> CheckedPictures:
    """Read every picture of every split once.

    Pictures are identical if they have the same size and, decoded, the same pixels. What is found
    does not depend on the number of threads.

    Args:
        task: its pictures are read; nothing else of it is needed.
        threads: how many read at the same time, as in `look_at_all`; None for one per core that
            this process may use, at most 8.
        keeper: keeps the pictures of `train`, `val` and `test`, so that none is decoded again.

    Returns:
        The task without unreadable pictures, with warnings that are still to be shown.

    Raises:
        UserError: if no picture of a split, or no training picture of a class, can be read.
        ValueError: if `threads` is below 1.

    Example:
        >>> from PIL import Image
        >>> pictures = {name: Image.new("RGB", (4, 4), name) for name in ("red", "blue")}
        >>> train = Split(("red", "blue"), (0, 1), pictures.__getitem__)
        >>> task = Task(name="two", classes=("r", "b"), train=train, val=train, test=None)
        >>> check_pictures(task).warnings[0].split(":")[0]
        '2 of 2 validation pictures are among the training pictures, too'
    """
    if threads is None:
        threads = min(8, cores())
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    named = [("train", task.train), ("val", task.val), ("test", task.test)]
    splits = {name: split for name, split in named if split is not None}
    keep = None if keeper is None else keeper.keep
    pictures = look_at_all(splits, threads=threads, keep=keep)
    bad = [picture for picture in pictures if not picture.digest]
    good = [picture for picture in pictures if picture.digest]
    if bad:
        _check_enough_left(task, good, bad)
        task = _without(task, splits, bad)
    if keeper is not None:
        task = _with_kept(task, keeper.finish())
    notes = (*_copies(task, good), *_imbalance(task))
    warnings = (*_left_out(task, good, bad), *_leaks(task, good), *_two_labels(task, good))
    return CheckedPictures(
        task=replace(task, notes=(*task.notes, *notes)),
        warnings=warnings,
        digests={picture.path: picture.digest for picture in good},
    )


def _check_enough_left(task: Task, good: Sequence[LookedAt], bad: Sequence[LookedAt]) -> None:
    """A split without pictures, or a class without training pictures, cannot be worked with."""
    if not good:
        raise UserError(
            f"none of the {len(bad)} pictures of {task.name} can be read; replace them: "
            f"{_reasons(bad)}"
        )
    for split in _WORDS:
        lost = [picture for picture in bad if picture.split == split]
        if lost and not any(picture.split == split for picture in good):
            raise UserError(
                f"none of the {len(lost)} {_WORDS[split]} pictures of {task.name} can be read; "
                f"replace them, or remove this split: {_reasons(lost)}"
            )
    gone = _classes_gone("train", good, bad)
    if gone:
        lost = [picture for picture in bad if picture.split == "train" and picture.label in gone]
        raise UserError(
            f"no training picture of class {_class_names(task, gone)} can be read; replace them, "
            f"or leave the class out: {_reasons(lost)}"
        )


def _without(task: Task, splits: Mapping[str, Split], bad: Sequence[LookedAt]) -> Task:
    lost = {(picture.split, picture.path) for picture in bad}
    kept = {
        name: split.subset(
            index for index, path in enumerate(split.paths) if (name, path) not in lost
        )
        for name, split in splits.items()
    }
    return replace(task, train=kept["train"], val=kept["val"], test=kept.get("test"))


def _with_kept(task: Task, kept: KeptPictures) -> Task:
    return replace(
        task,
        train=replace(task.train, kept=kept),
        val=replace(task.val, kept=kept),
        test=None if task.test is None else replace(task.test, kept=kept),
    )


def _left_out(task: Task, good: Sequence[LookedAt], bad: Sequence[LookedAt]) -> list[str]:
    if not bad:
        return []
    warnings = [
        f"{len(bad)} of {len(good) + len(bad)} pictures cannot be read and are left out; replace "
        f"or remove them: {_reasons(bad)}"
    ]
    for split in ("val", "test"):
        gone = _classes_gone(split, good, bad)
        if gone:
            warnings.append(
                f"no {_WORDS[split]} picture of class {_class_names(task, gone)} is left, so that "
                f"nothing is known of how well {'it is' if len(gone) == 1 else 'they are'} told"
            )
    return warnings


def _leaks(task: Task, good: Sequence[LookedAt]) -> list[str]:
    """Warnings of pictures that lie in two splits."""
    first: dict[str, dict[str, LookedAt]] = {split: {} for split in _WORDS}
    for picture in good:
        first[picture.split].setdefault(picture.digest, picture)
    warnings = []
    for (one, other), harm in _LEAKS.items():
        pairs = [
            (first[one][picture.digest], picture)
            for picture in good
            if picture.split == other and picture.digest in first[one]
        ]
        if pairs:
            total = sum(picture.split == other for picture in good)
            shown = first_few([_equal(task, pair) for pair in pairs])
            warnings.append(
                f"{len(pairs)} of {total} {_WORDS[other]} pictures are among the {_WORDS[one]} "
                f"pictures, too: {shown}; {harm}: remove one of each"
            )
    return warnings


def _two_labels(task: Task, good: Sequence[LookedAt]) -> list[str]:
    """A warning of identical training pictures of different classes."""
    groups = [group for group in _identical(good) if len({each.label for each in group}) > 1]
    if not groups:
        return []
    pairs = [
        (group[0], next(each for each in group if each.label != group[0].label)) for group in groups
    ]
    shown = first_few([_equal(task, pair) for pair in pairs])
    return [
        f"identical training pictures of different classes: {len(groups)}, such as {shown}; "
        "remove all but the right one"
    ]


def _copies(task: Task, good: Sequence[LookedAt]) -> list[str]:
    """A note on identical training pictures of the same class."""
    groups = [group for group in _identical(good) if len({each.label for each in group}) == 1]
    count = sum(len(group) - 1 for group in groups)
    if not count:
        return []
    shown = first_few([_equal(task, (group[0], group[1])) for group in groups])
    return [f"training pictures that are copies of others of their class: {count}, such as {shown}"]


def _imbalance(task: Task) -> list[str]:
    counts = Counter(task.train.class_indices).most_common()
    (most, largest), (least, smallest) = counts[0], counts[-1]
    if largest < IMBALANCE * smallest:
        return []
    return [
        f"classes differ in size: '{task.classes[most]}' has {largest} training pictures, "
        f"'{task.classes[least]}' has {smallest}; look at the mean class accuracy, in which all "
        "classes count the same"
    ]


def _identical(good: Sequence[LookedAt]) -> list[list[LookedAt]]:
    """The training pictures that there are more than one of, in groups."""
    groups: dict[str, list[LookedAt]] = defaultdict(list)
    for picture in good:
        if picture.split == "train":
            groups[picture.digest].append(picture)
    return [group for group in groups.values() if len(group) > 1]


def _classes_gone(split: str, good: Sequence[LookedAt], bad: Sequence[LookedAt]) -> list[int]:
    left = {picture.label for picture in good if picture.split == split}
    return sorted({picture.label for picture in bad if picture.split == split} - left)


def _class_names(task: Task, labels: Sequence[int]) -> str:
    return first_few([f"'{task.classes[label]}'" for label in labels])


def _equal(task: Task, pair: tuple[LookedAt, LookedAt]) -> str:
    """Two identical pictures, with their classes where these differ."""
    if len({picture.label for picture in pair}) == 1:
        return " = ".join(f"'{picture.path}'" for picture in pair)
    return " = ".join(f"'{picture.path}' ({task.classes[picture.label]})" for picture in pair)


def _reasons(bad: Sequence[LookedAt]) -> str:
    return first_few([f"'{picture.path}' ({picture.reason[:120]})" for picture in bad])
