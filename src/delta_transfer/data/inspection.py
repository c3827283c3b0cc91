"""Inspect all images before training: unreadable ones, leaks, duplicates and rare classes."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from delta_transfer.data.image_cache.reader import ImageCacheReader
from delta_transfer.data.image_cache.writer import ImageCacheWriter
from delta_transfer.data.scanning import ImageScan, scan_images
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import DataError, first_few
from delta_transfer.utils.devices import cpu_count

IMBALANCE_THRESHOLD = 3
"""The ratio of the largest to the smallest class from which a note is added."""

_SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}

_LEAKAGE_EFFECTS = {
    ("train", "val"): "the validation loss is optimistic",
    ("train", "test"): "test accuracy is optimistic",
    ("val", "test"): "test accuracy is optimistic, as the epoch is selected on them",
}
"""The harm of images that are in both of two splits."""


@dataclass(frozen=True)
class DatasetReport:
    """The result of inspecting all samples of a dataset.

    Attributes:
        task: without unreadable images; its notes list duplicates and rare classes.
        warnings: sentences that the user must see: left out images, images in two splits, images
            with two labels.
        content_hashes: of each sample of `task`, by its path.
    """

    task: TaskData
    warnings: tuple[str, ...]
    content_hashes: Mapping[str, str]


def inspect_images(
    task: TaskData, *, num_threads: int | None = None, cache_writer: ImageCacheWriter | None = None
) -> DatasetReport:
    """Read every image of every split once, and report problems.

    Images are identical if they have the same size and the same decoded pixels. The result does not
    depend on the number of threads.

    Args:
        task: the dataset.
        num_threads: as in `scan_images`; None for one per available core, at most 8.
        cache_writer: caches the images of `train`, `val` and `test`.

    Returns:
        The dataset without unreadable images, and warnings to be shown.

    Raises:
        DataError: if no image of a split, or no training image of a class, can be read.
        ValueError: if `num_threads` is below 1.

    Example:
        >>> from PIL import Image
        >>> images = {name: Image.new("RGB", (4, 4), name) for name in ("red", "blue")}
        >>> train = Split(("red", "blue"), (0, 1), images.__getitem__)
        >>> task = TaskData(name="two", classes=("r", "b"), train=train, val=train, test=None)
        >>> inspect_images(task).warnings[0].split(":")[0]
        '2 of 2 validation images are also among the training images'
    """
    if num_threads is None:
        num_threads = min(8, cpu_count())
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    named = [("train", task.train), ("val", task.val), ("test", task.test)]
    splits = {name: split for name, split in named if split is not None}
    on_image = None if cache_writer is None else cache_writer.add
    images = scan_images(splits, num_threads=num_threads, on_image=on_image)
    bad = [image for image in images if not image.content_hash]
    good = [image for image in images if image.content_hash]
    if bad:
        _check_enough_left(task, good, bad)
        task = _without(task, splits, bad)
    if cache_writer is not None:
        task = _attach_image_cache(task, cache_writer.finish())
    notes = (*_duplicates(task, good), *_imbalance(task))
    warnings = (
        *_unreadable_warnings(task, good, bad),
        *_leakage_warnings(task, good),
        *_conflicting_label_warnings(task, good),
    )
    return DatasetReport(
        task=replace(task, notes=(*task.notes, *notes)),
        warnings=warnings,
        content_hashes={image.path: image.content_hash for image in good},
    )


def _check_enough_left(task: TaskData, good: Sequence[ImageScan], bad: Sequence[ImageScan]) -> None:
    """Refuse a split without images, and a class without training images."""
    if not good:
        raise DataError(
            f"none of the {len(bad)} images of {task.name} can be read; replace them: "
            f"{_reasons(bad)}"
        )
    for split in _SPLIT_NAMES:
        lost = [image for image in bad if image.split == split]
        if lost and not any(image.split == split for image in good):
            raise DataError(
                f"none of the {len(lost)} {_SPLIT_NAMES[split]} images of {task.name} can be read; "
                f"replace them, or remove this split: {_reasons(lost)}"
            )
    lost_classes = _lost_classes("train", good, bad)
    if lost_classes:
        lost = [image for image in bad if image.split == "train" and image.label in lost_classes]
        raise DataError(
            f"no training image of class {_class_names(task, lost_classes)} can be read; replace "
            f"them, or leave the class out: {_reasons(lost)}"
        )


def _without(task: TaskData, splits: Mapping[str, Split], bad: Sequence[ImageScan]) -> TaskData:
    lost = {(image.split, image.path) for image in bad}
    kept = {
        name: split.subset(
            index for index, path in enumerate(split.paths) if (name, path) not in lost
        )
        for name, split in splits.items()
    }
    return replace(task, train=kept["train"], val=kept["val"], test=kept.get("test"))


def _attach_image_cache(task: TaskData, image_cache: ImageCacheReader) -> TaskData:
    return replace(
        task,
        train=replace(task.train, image_cache=image_cache),
        val=replace(task.val, image_cache=image_cache),
        test=None if task.test is None else replace(task.test, image_cache=image_cache),
    )


def _unreadable_warnings(
    task: TaskData, good: Sequence[ImageScan], bad: Sequence[ImageScan]
) -> list[str]:
    if not bad:
        return []
    warnings = [
        f"{len(bad)} of {len(good) + len(bad)} images cannot be read and are left out; replace "
        f"or remove them: {_reasons(bad)}"
    ]
    for split in ("val", "test"):
        lost = _lost_classes(split, good, bad)
        if lost:
            warnings.append(
                f"no {_SPLIT_NAMES[split]} image of class {_class_names(task, lost)} is left: "
                f"{'its' if len(lost) == 1 else 'their'} accuracy is unknown"
            )
    return warnings


def _leakage_warnings(task: TaskData, good: Sequence[ImageScan]) -> list[str]:
    """Return warnings of images that are in two splits."""
    first: dict[str, dict[str, ImageScan]] = {split: {} for split in _SPLIT_NAMES}
    for image in good:
        first[image.split].setdefault(image.content_hash, image)
    warnings = []
    for (one, other), effect in _LEAKAGE_EFFECTS.items():
        pairs = [
            (first[one][image.content_hash], image)
            for image in good
            if image.split == other and image.content_hash in first[one]
        ]
        if pairs:
            total = sum(image.split == other for image in good)
            shown = first_few([_format_pair(task, pair) for pair in pairs])
            warnings.append(
                f"{len(pairs)} of {total} {_SPLIT_NAMES[other]} images are also among the "
                f"{_SPLIT_NAMES[one]} images: {shown}; {effect}: remove one of each"
            )
    return warnings


def _conflicting_label_warnings(task: TaskData, good: Sequence[ImageScan]) -> list[str]:
    """Return a warning of identical training images of different classes."""
    groups = [group for group in _identical(good) if len({each.label for each in group}) > 1]
    if not groups:
        return []
    pairs = [
        (group[0], next(each for each in group if each.label != group[0].label)) for group in groups
    ]
    shown = first_few([_format_pair(task, pair) for pair in pairs])
    return [
        f"identical training images of different classes: {len(groups)}, such as {shown}; "
        "remove all but the right one"
    ]


def _duplicates(task: TaskData, good: Sequence[ImageScan]) -> list[str]:
    """Return a note on identical training images of the same class."""
    groups = [group for group in _identical(good) if len({each.label for each in group}) == 1]
    count = sum(len(group) - 1 for group in groups)
    if not count:
        return []
    shown = first_few([_format_pair(task, (group[0], group[1])) for group in groups])
    return [f"duplicate training images within a class: {count}, such as {shown}"]


def _imbalance(task: TaskData) -> list[str]:
    counts = Counter(task.train.class_indices).most_common()
    (most, largest), (least, smallest) = counts[0], counts[-1]
    if largest < IMBALANCE_THRESHOLD * smallest:
        return []
    return [
        f"imbalanced classes: '{task.classes[most]}' has {largest} training images, "
        f"'{task.classes[least]}' has {smallest}; see also the mean class accuracy"
    ]


def _identical(good: Sequence[ImageScan]) -> list[list[ImageScan]]:
    """Return the groups of identical training images."""
    groups: dict[str, list[ImageScan]] = defaultdict(list)
    for image in good:
        if image.split == "train":
            groups[image.content_hash].append(image)
    return [group for group in groups.values() if len(group) > 1]


def _lost_classes(split: str, good: Sequence[ImageScan], bad: Sequence[ImageScan]) -> list[int]:
    left = {image.label for image in good if image.split == split}
    return sorted({image.label for image in bad if image.split == split} - left)


def _class_names(task: TaskData, labels: Sequence[int]) -> str:
    return first_few([f"'{task.classes[label]}'" for label in labels])


def _format_pair(task: TaskData, pair: tuple[ImageScan, ImageScan]) -> str:
    """Format two identical images, with their classes if different."""
    if len({image.label for image in pair}) == 1:
        return " = ".join(f"'{image.path}'" for image in pair)
    return " = ".join(f"'{image.path}' ({task.classes[image.label]})" for image in pair)


def _reasons(bad: Sequence[ImageScan]) -> str:
    return first_few([f"'{image.path}' ({image.reason[:120]})" for image in bad])
