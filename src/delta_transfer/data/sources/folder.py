"""A folder of images in class folders becomes a Task."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from delta_transfer.data.images.decode import IMAGE_SUFFIXES, read_image
from delta_transfer.data.sources.listing import (
    find_files,
    format_suffix_counts,
    list_images,
    subfolders,
)
from delta_transfer.data.splits import (
    DEFAULT_TEST_SPLIT,
    VALIDATION_NAMES,
    PartialTaskData,
    SplitNames,
    check_split_classes,
    choose_splits,
    draw_missing_splits,
    find_name,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError

logger = logging.getLogger(__name__)

LAYOUT = (
    "a folder with a folder of images for each class, <class>/*, "
    "or with such folders for each split, {train,val,test}/<class>/* (val and test may be missing)"
)
"""What a data folder must look like, in words."""

# Without a `train` folder beside them, these would silently become classes.
_SPLIT_LIKE = (*VALIDATION_NAMES, "test", "training", "testing")
_ENDINGS = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True)
class FolderReader:
    """Reads an image by its path below the data folder."""

    root: Path

    def __call__(self, path: str) -> Image.Image:
        """The RGB image."""
        return read_image(self.root / path)


@dataclass(frozen=True)
class _Layout:
    """Where the splits lie: None where there is none; `test_fraction` is set to draw one."""

    train: Path
    val: Path | None = None
    test: Path | None = None
    test_fraction: float | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _FolderScan:
    """What lies in the class folders of a split.

    Attributes:
        images: of each class; no class is without.
        empty: the class folders without images.
        ignored_suffixes: how many files are no images, by their ending.
    """

    images: dict[str, list[str]]
    empty: tuple[str, ...]
    ignored_suffixes: Counter[str]


def load_folder(root: Path, *, seed: int, val_fraction: float, test_split: str) -> TaskData:
    """A task from `root/{train,val|valid|validation,test}/<class>/*` or from `root/<class>/*`.

    Images may lie in folders below the class folder; links to folders are followed; hidden
    files are skipped, and so are files that are no images, which a note counts. A missing
    validation split is drawn, class by class; a test split only if a fraction is asked for.

    Args:
        root: the folder.
        seed: draws the splits that are not there.
        val_fraction: the part of the training images held out for validation, if there is no
            validation folder.
        test_split: the name of the folder of the test split, or a fraction such as "0.2" of the
            training images to draw one.

    Returns:
        The task; its paths are relative to `root`, with forward slashes.

    Raises:
        UserError: if the folder does not look like this, or a class has too few images.
    """
    _check_is_folder(root)
    layout = _find_layout(root, test_split)
    folders = [path for path in (layout.train, layout.val, layout.test) if path is not None]
    found = {path: _scan(path, root) for path in folders}
    _refuse_empty(layout.train, found[layout.train])
    classes, lacking = _classes(found, root)
    splits = {path: _split(found[path].images, classes, root) for path in folders}
    given = PartialTaskData(
        name=os.path.basename(os.path.abspath(root)) or "data",
        display_name=f"'{root}'",
        classes=classes,
        train=splits[layout.train],
        val=None if layout.val is None else splits[layout.val],
        test=None if layout.test is None else splits[layout.test],
        notes=(*lacking, *_unused_notes(layout, found)),
    )
    return draw_missing_splits(
        given,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=layout.test_fraction,
        hint="add images, leave the class out, or bring these splits as folders",
    )


def load_labelled_folder(root: Path, *, test_split: str) -> tuple[tuple[str, ...], Split, bool]:
    """The images of a folder to measure a network on: of its test split, or all if it has none.

    Args:
        root: `root/{train,val,test}/<class>/*` or `root/<class>/*`; one class is enough.
        test_split: the name of the test split's folder.

    Returns:
        The class names; the images, whose paths are relative to `root`; whether they are a test
        split.

    Raises:
        UserError: if the folder does not look like this.
    """
    _check_is_folder(root)
    names = [folder.name for folder in subfolders(root)]
    test = find_name(names, (test_split.lower(),), display_name=f"'{root}'")
    layout = (
        _Layout(train=root, test=root / test) if test else _find_layout(root, DEFAULT_TEST_SPLIT)
    )
    everything = [folder for folder in (layout.train, layout.val) if folder is not None]
    folders = everything if layout.test is None else [layout.test]
    scanned = [_scan(folder, root) for folder in folders]
    unread = _format_ignored(scanned)
    if unread:
        logger.info("%s", unread)
    found = [each.images for each in scanned]
    classes = tuple(sorted({name for by_class in found for name in by_class}))
    merged = {name: [path for f in found for path in f.get(name, [])] for name in classes}
    return classes, _split(merged, classes, root), layout.test is not None


def _unused_notes(layout: _Layout, found: Mapping[Path, _FolderScan]) -> list[str]:
    notes = []
    if layout.unused:
        notes.append(f"folders that are no split and are not used: {', '.join(layout.unused)}")
    for folder in found:
        loose = len(list_images(folder))
        if loose:
            notes.append(
                f"images directly in '{folder}', in no class folder, are not used: {loose}"
            )
    unread = _format_ignored(found.values())
    return [*notes, unread] if unread else notes


def _format_ignored(found: Iterable[_FolderScan]) -> str:
    """What is skipped as no image, in words; "" if nothing is."""
    counts = sum((scanned.ignored_suffixes for scanned in found), Counter[str]())
    return f"files that are not read: {format_suffix_counts(counts)}" if counts else ""


def _check_is_folder(root: Path) -> None:
    if not root.exists():
        raise UserError(f"there is no folder '{root}': give {LAYOUT}")
    if not root.is_dir():
        raise UserError(f"'{root}' is a file, not a folder: give {LAYOUT}, or a .csv file")


def _find_layout(root: Path, test_split: str) -> _Layout:
    names = [folder.name for folder in subfolders(root)]
    chosen = choose_splits(names, test_split, display_name=f"'{root}'")
    if chosen.train is None:
        _check_flat(root, names, test_split, chosen.test_fraction)
        return _Layout(train=root, test_fraction=chosen.test_fraction)
    _refuse_class_called_train(root, chosen)
    return _Layout(
        train=root / chosen.train,
        val=None if chosen.val is None else root / chosen.val,
        test=None if chosen.test is None else root / chosen.test,
        test_fraction=chosen.test_fraction,
        unused=chosen.unused,
    )


def _check_flat(root: Path, names: Sequence[str], test_split: str, fraction: float | None) -> None:
    """Folders that are called like splits would become classes, which nobody wants."""
    likely = [name for name in names if name.lower() in _SPLIT_LIKE]
    if likely:
        raise UserError(
            f"'{root}' has the folder {_quoted(likely)} but no 'train': call the folder to learn "
            "from 'train' (or rename a class that is called like a split)"
        )
    if fraction is None and test_split != DEFAULT_TEST_SPLIT:
        raise UserError(
            f"--test-split {test_split}: '{root}' has no 'train' folder, so that its folders are "
            "classes, not splits; give a fraction such as 0.2"
        )


def _refuse_class_called_train(root: Path, chosen: SplitNames) -> None:
    """A flat folder of classes, of which one is called `train`, is no folder of splits."""
    train = root / str(chosen.train)
    if subfolders(train) or not list_images(train):
        return
    classes = [name for name in chosen.unused if list_images(root / name)]
    if classes:
        raise UserError(
            f"'{root}': the folder '{chosen.train}' is taken for a split, but it has images and "
            f"no class folders, as {_quoted(classes)} beside it: if it is a class, rename this "
            "class; if it is the training split, it must have class folders"
        )


def _scan(folder: Path, root: Path) -> _FolderScan:
    """The images of each class folder; there are some."""
    found = {path.name: find_files(path, root=root) for path in subfolders(folder)}
    scanned = _FolderScan(
        images={name: files.images for name, files in found.items() if files.images},
        empty=tuple(name for name, files in found.items() if not files.images),
        ignored_suffixes=sum((files.ignored_suffixes for files in found.values()), Counter[str]()),
    )
    if not scanned.images:
        raise UserError(
            f"'{folder}' has no images in class folders{_ignored_in_parentheses(scanned)}: "
            f"needed is {LAYOUT}; "
            f"the files must end in {_ENDINGS}"
        )
    return scanned


def _refuse_empty(folder: Path, scanned: _FolderScan) -> None:
    """Nothing can be learnt of a class without images."""
    if scanned.empty:
        raise UserError(
            f"'{folder}' has class folders without images: {_quoted(scanned.empty)}"
            f"{_ignored_in_parentheses(scanned)}; remove them, or add images ({_ENDINGS})"
        )


def _ignored_in_parentheses(scanned: _FolderScan) -> str:
    unread = _format_ignored([scanned])
    return f" ({unread})" if unread else ""


def _classes(found: Mapping[Path, _FolderScan], root: Path) -> tuple[tuple[str, ...], list[str]]:
    """The classes, at least two, and a note for each split that lacks one."""
    train = next(iter(found))
    notes = check_split_classes(
        {f"'{folder}'": scanned.images for folder, scanned in found.items()},
        display_name=f"'{root}'",
        hint="add these class folders, or remove them from the other splits",
        locations={},
    )
    classes = tuple(sorted(found[train].images))
    if len(classes) < 2:
        raise UserError(
            f"'{train}' has only one class, '{classes[0]}', and at least two are needed: give "
            f"{LAYOUT} (do the class folders lie one level deeper?)"
        )
    return classes, notes


def _split(found: dict[str, list[str]], classes: Sequence[str], root: Path) -> Split:
    pairs = [(path, label) for label, name in enumerate(classes) for path in found.get(name, [])]
    return Split(
        paths=tuple(path for path, _ in pairs),
        labels=tuple(label for _, label in pairs),
        read=FolderReader(root),
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
