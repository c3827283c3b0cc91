"""Images in class folders."""

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
    SplitOptions,
    check_split_classes,
    choose_splits,
    draw_missing_splits,
    find_name,
)
from delta_transfer.data.task import LabelledSplit, Split, TaskData
from delta_transfer.errors import ConfigError, DataError, first_few

logger = logging.getLogger(__name__)

LAYOUT = (
    "a folder with a folder of images for each class, <class>/*, "
    "or with such folders for each split, {train,val,test}/<class>/* (val and test may be missing)"
)
"""The expected data folder, for messages."""

# Without a `train` folder beside them, these would silently become classes.
_SPLIT_LIKE = (*VALIDATION_NAMES, "test", "training", "testing")
_SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True)
class FolderReader:
    """Reads an image by its path below the data folder."""

    root: Path

    def __call__(self, path: str) -> Image.Image:
        """Return the RGB image."""
        return read_image(self.root / path)


@dataclass(frozen=True)
class _Layout:
    """The folders of the splits: None if missing; `test_fraction` is set to draw one."""

    train: Path
    val: Path | None = None
    test: Path | None = None
    test_fraction: float | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _FolderScan:
    """The class folders of a split.

    Attributes:
        images: of each class with images.
        empty: the class folders without images.
        ignored_suffixes: the number of other files, by their suffix.
    """

    images: dict[str, list[str]]
    empty: tuple[str, ...]
    ignored_suffixes: Counter[str]


def load_folder(root: Path, options: SplitOptions) -> TaskData:
    """Load `root/{train,val|valid|validation,test}/<class>/*` or `root/<class>/*`.

    Class folders may have subfolders; links to folders are followed; hidden files are skipped, and
    other files that are not images are counted in a note.

    Args:
        root: the folder.
        options: the missing splits to draw.

    Returns:
        The dataset; its paths are relative to `root`, with forward slashes.

    Raises:
        UserError: if the folder does not look like this, or a class has too few images.
    """
    _check_is_folder(root)
    layout = _find_layout(root, options.test_split)
    folders = [path for path in (layout.train, layout.val, layout.test) if path is not None]
    found = {path: _scan(path, root) for path in folders}
    if found[layout.train].empty:
        raise DataError(
            f"'{layout.train}' has class folders without images: "
            f"{_quoted(found[layout.train].empty)}{_ignored_in_parentheses(found[layout.train])}; "
            f"remove them, or add images ({_SUFFIXES})"
        )
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
        options,
        test_fraction=layout.test_fraction,
        hint="add images, leave the class out, or provide these splits as folders",
    )


def load_labelled_folder(root: Path, *, test_split: str) -> LabelledSplit:
    """Load the test split of a folder, or all its images without one.

    Args:
        root: as for `load_folder`, but one class is enough.
        test_split: the name of the test split's folder.

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
    scans = [_scan(folder, root) for folder in folders]
    ignored = _format_ignored(scans)
    if ignored:
        logger.info("%s", ignored)
    classes = tuple(sorted({name for scan in scans for name in scan.images}))
    merged = {
        name: [path for scan in scans for path in scan.images.get(name, [])] for name in classes
    }
    return LabelledSplit(classes, _split(merged, classes, root), is_test=layout.test is not None)


def split_of_files(base: Path, files: Sequence[tuple[str | Path, int]], *, hint: str) -> Split:
    """Make a split of files with their labels, which must exist below a folder.

    Args:
        base: the folder.
        files: as its dataset's lists name them, with their classes.
        hint: the fix, for messages.

    Raises:
        DataError: if files are missing or outside of the folder.
    """
    paths = tuple(Path(file).relative_to(base).as_posix() for file, _ in files)
    outside = [path for path in paths if ".." in path.split("/")]
    if outside:
        raise DataError(
            f"'{base}' has lists with images outside of it: {first_few(outside)}; these are not "
            f"the files of this dataset: {hint}"
        )
    missing = [path for path in paths if not (base / path).is_file()]
    if missing:
        raise DataError(
            f"'{base}' lacks {len(missing)} of {len(paths)} images in its lists: "
            f"{first_few(missing)}; {hint}"
        )
    labels = tuple(int(label) for _, label in files)
    return Split(paths=paths, labels=labels, read=FolderReader(base))


def _unused_notes(layout: _Layout, found: Mapping[Path, _FolderScan]) -> list[str]:
    notes = []
    if layout.unused:
        notes.append(f"unused folders, which are not splits: {', '.join(layout.unused)}")
    for folder in found:
        loose = len(list_images(folder))
        if loose:
            notes.append(f"unused images directly in '{folder}', not in a class folder: {loose}")
    ignored = _format_ignored(found.values())
    return [*notes, ignored] if ignored else notes


def _format_ignored(found: Iterable[_FolderScan]) -> str:
    """Return a note on files that are not images; "" if there are none."""
    counts = sum((scan.ignored_suffixes for scan in found), Counter[str]())
    return f"ignored files: {format_suffix_counts(counts)}" if counts else ""


def _check_is_folder(root: Path) -> None:
    if not root.exists():
        raise DataError(f"there is no folder '{root}': pass {LAYOUT}")
    if not root.is_dir():
        raise DataError(f"'{root}' is a file, not a folder: pass {LAYOUT}, or a .csv file")


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
    """Refuse folders with the names of splits, which would become classes."""
    likely = [name for name in names if name.lower() in _SPLIT_LIKE]
    if likely:
        raise DataError(
            f"'{root}' has the folder {_quoted(likely)} but no 'train': rename the training "
            "folder to 'train' (or the class, if it is one)"
        )
    if fraction is None and test_split != DEFAULT_TEST_SPLIT:
        raise ConfigError(
            f"`test_split={test_split}`: '{root}' has no 'train' folder, so its folders are "
            "classes, not splits; use a fraction such as 0.2"
        )


def _refuse_class_called_train(root: Path, chosen: SplitNames) -> None:
    """Refuse a flat folder of classes, one of which is named `train`."""
    train = root / str(chosen.train)
    if subfolders(train) or not list_images(train):
        return
    classes = [name for name in chosen.unused if list_images(root / name)]
    if classes:
        raise DataError(
            f"'{root}': '{chosen.train}' has images but no class folders, the same as "
            f"{_quoted(classes)}: if it is a class, rename it; if it is the training split, make "
            "class folders in it"
        )


def _scan(folder: Path, root: Path) -> _FolderScan:
    """Find the images of each class folder, at least one."""
    found = {path.name: find_files(path, root=root) for path in subfolders(folder)}
    scan = _FolderScan(
        images={name: files.images for name, files in found.items() if files.images},
        empty=tuple(name for name, files in found.items() if not files.images),
        ignored_suffixes=sum((files.ignored_suffixes for files in found.values()), Counter[str]()),
    )
    if not scan.images:
        raise DataError(
            f"'{folder}' has no images in class folders{_ignored_in_parentheses(scan)}: it must "
            f"be {LAYOUT}; accepted files: {_SUFFIXES}"
        )
    return scan


def _ignored_in_parentheses(scan: _FolderScan) -> str:
    ignored = _format_ignored([scan])
    return f" ({ignored})" if ignored else ""


def _classes(found: Mapping[Path, _FolderScan], root: Path) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes, at least two, and a note for each split that lacks one."""
    train = next(iter(found))
    notes = check_split_classes(
        {f"'{folder}'": scan.images for folder, scan in found.items()},
        display_name=f"'{root}'",
        hint="add these class folders, or remove them from the other splits",
        locations={},
    )
    classes = tuple(sorted(found[train].images))
    if len(classes) < 2:
        raise DataError(
            f"'{train}' has only one class, '{classes[0]}', and needs at least two: pass {LAYOUT} "
            "(are the class folders one level deeper?)"
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
